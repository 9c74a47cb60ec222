"""The factored action of a growing network: heads, choices and which head matters for which op.

Everything that both the world and an agent need to know about an action stands here and
nowhere else. The causal relevance table is the tensor :data:`CAUSAL_RELEVANCE`; masks, losses,
monitors and plots read it.
"""

from __future__ import annotations

from enum import IntEnum

import torch


class Op(IntEnum):
    """Operations, one of which is done in every epoch (head ``op``)."""

    WAIT = 0
    GERMINATE = 1
    SET_ALPHA_TARGET = 2
    PRUNE = 3
    FOSSILIZE = 4
    ADVANCE = 5


class Stage(IntEnum):
    """Stages of a seed's life; the value is also the position in the stage one-hot (10 wide)."""

    UNKNOWN = 0
    DORMANT = 1
    GERMINATED = 2
    TRAINING = 3
    BLENDING = 4
    HOLDING = 5
    FOSSILIZED = 6
    PRUNED = 7
    EMBARGOED = 8
    RESETTING = 9


class AlphaMode(IntEnum):
    """Directions in which a slot's α can move."""

    HOLD = 0
    UP = 1
    DOWN = 2


class Algorithm(IntEnum):
    """Ways to mix a seed's output into the host's features."""

    ADD = 0
    MULTIPLY = 1
    GATE = 2


class AlphaCurve(IntEnum):
    """The shape of an α ramp (head ``alpha_curve``)."""

    LINEAR = 0
    COSINE = 1
    SIGMOID_GENTLE = 2
    SIGMOID = 3
    SIGMOID_SHARP = 4


class Style(IntEnum):
    """Blend algorithm and ramp shape of a seed (head ``style``)."""

    LINEAR_ADD = 0
    LINEAR_MULTIPLY = 1
    SIGMOID_ADD = 2
    GATED_GATE = 3


BLUEPRINTS: tuple[str, ...] = (
    "noop",
    "conv_light",
    "attention",
    "norm",
    "depthwise",
    "bottleneck",
    "conv_small",
    "conv_heavy",
    "lora",
    "lora_large",
    "mlp_small",
    "mlp",
    "flex_attention",
)
"""Names of the blueprints, in the order of head ``blueprint``."""

TEMPO_EPOCHS: tuple[int, ...] = (3, 5, 8)
"""Epochs of the first ramp for the choices FAST, STANDARD, SLOW of head ``tempo``."""

ALPHA_TARGETS: tuple[float, ...] = (0.5, 0.7, 1.0)
"""The α values of head ``alpha_target``."""

ALPHA_SPEED_EPOCHS: tuple[int, ...] = (0, 3, 5, 8)
"""Epochs of a ramp for the choices INSTANT, FAST, MEDIUM, SLOW of head ``alpha_speed``."""

SIGMOID_STEEPNESS: dict[AlphaCurve, float] = {
    AlphaCurve.SIGMOID_GENTLE: 6.0,
    AlphaCurve.SIGMOID: 12.0,
    AlphaCurve.SIGMOID_SHARP: 24.0,
}
"""Steepness of the logistic curves of head ``alpha_curve``."""

STYLE_ALGORITHM: tuple[Algorithm, ...] = (
    Algorithm.ADD,
    Algorithm.MULTIPLY,
    Algorithm.ADD,
    Algorithm.GATE,
)
"""The blend algorithm of each choice of head ``style``."""

STYLE_CURVE: tuple[AlphaCurve, ...] = (
    AlphaCurve.LINEAR,
    AlphaCurve.LINEAR,
    AlphaCurve.SIGMOID,
    AlphaCurve.LINEAR,
)
"""The curve of the ramp that starts blending, for each choice of head ``style``."""

HEADS: tuple[str, ...] = (
    "op",
    "slot",
    "blueprint",
    "style",
    "tempo",
    "alpha_target",
    "alpha_speed",
    "alpha_curve",
)
"""Names of the action's heads; the op comes first because it conditions the others."""

_RELEVANT_HEADS: dict[Op, tuple[str, ...]] = {
    Op.WAIT: (),
    Op.GERMINATE: ("slot", "blueprint", "style", "tempo", "alpha_target"),
    Op.SET_ALPHA_TARGET: ("slot", "style", "alpha_target", "alpha_speed", "alpha_curve"),
    Op.PRUNE: ("slot", "alpha_speed", "alpha_curve"),
    Op.FOSSILIZE: ("slot",),
    Op.ADVANCE: ("slot",),
}

CAUSAL_RELEVANCE: torch.Tensor = torch.tensor(
    [[head == "op" or head in _RELEVANT_HEADS[op] for head in HEADS] for op in Op]
)
"""Bool ``[6 ops, 8 heads]``: does the head have an effect when the op is taken?"""


def head_sizes(num_slots: int, num_blueprints: int = len(BLUEPRINTS)) -> dict[str, int]:
    """Number of choices of every head, in the order of :data:`HEADS`.

    Args:
        num_slots: number of slots of the host.
        num_blueprints: more than 13 where hosts have blueprints of their own.

    Examples:
        >>> head_sizes(3)["slot"], head_sizes(3)["op"]
        (3, 6)
    """
    return {
        "op": len(Op),
        "slot": num_slots,
        "blueprint": num_blueprints,
        "style": len(Style),
        "tempo": len(TEMPO_EPOCHS),
        "alpha_target": len(ALPHA_TARGETS),
        "alpha_speed": len(ALPHA_SPEED_EPOCHS),
        "alpha_curve": len(AlphaCurve),
    }
