"""The factored action of a growing network: heads, choices and which head matters for which op.

Everything that both the world and an agent need to know about an action stands here and
nowhere else. The causal relevance table is the tensor :data:`CAUSAL_RELEVANCE`; masks, losses,
monitors and plots read it.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class StageTraits:
    """A row of the table of stages.

    Attributes:
        colour: of a slot in pictures.
        following: the stage after an ADVANCE, or after a cool-down; None: neither leads out of it.
        cool_down: length of a cool-down, in observations; None: it is none.
        potential: of a slot for the reward, before its weight.
        trains: the seed runs in training.
        mixed: the seed acts on the host's features, if its α is above 0.
    """

    colour: str
    following: Stage | None = None
    cool_down: int | None = None
    potential: float = 0.0
    trains: bool = False
    mixed: bool = False


STAGES: dict[Stage, StageTraits] = {
    Stage.UNKNOWN: StageTraits("#BBBBBB"),
    Stage.DORMANT: StageTraits("#BBBBBB"),
    Stage.GERMINATED: StageTraits("#F0E442", following=Stage.TRAINING, potential=1.0),
    Stage.TRAINING: StageTraits("#E69F00", following=Stage.BLENDING, potential=2.0, trains=True),
    Stage.BLENDING: StageTraits(
        "#56B4E9", following=Stage.HOLDING, potential=3.5, trains=True, mixed=True
    ),
    Stage.HOLDING: StageTraits("#0072B2", potential=5.5, trains=True, mixed=True),
    Stage.FOSSILIZED: StageTraits("#009E73", potential=6.0, trains=True, mixed=True),
    Stage.PRUNED: StageTraits("#D55E00", following=Stage.EMBARGOED, cool_down=1),
    Stage.EMBARGOED: StageTraits("#CC79A7", following=Stage.RESETTING, cool_down=5),
    Stage.RESETTING: StageTraits("#882255", following=Stage.DORMANT, cool_down=1),
}
"""All that is particular to a stage but for what its ops do (:mod:`envs.lifecycle`)."""


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

_TEMPOS = {"FAST": 3, "STANDARD": 5, "SLOW": 8}
_ALPHA_TARGETS = {"HALF": 0.5, "SEVENTY": 0.7, "FULL": 1.0}
_ALPHA_SPEEDS = {"INSTANT": 0, "FAST": 3, "MEDIUM": 5, "SLOW": 8}

TEMPO_EPOCHS: tuple[int, ...] = tuple(_TEMPOS.values())
"""Epochs of the first ramp, by choice of head ``tempo``."""

ALPHA_TARGETS: tuple[float, ...] = tuple(_ALPHA_TARGETS.values())
"""The α values of head ``alpha_target``."""

ALPHA_SPEED_EPOCHS: tuple[int, ...] = tuple(_ALPHA_SPEEDS.values())
"""Epochs of a ramp, by choice of head ``alpha_speed``."""

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


@dataclass(frozen=True)
class Head:
    """A row of the table of heads.

    Attributes:
        choices: names of what its indices mean; the host's own where it is empty.
        ops: those for which the choice has an effect.
    """

    choices: tuple[str, ...]
    ops: tuple[Op, ...]


_ON_A_SLOT = tuple(op for op in Op if op is not Op.WAIT)

HEAD_TABLE: dict[str, Head] = {
    "op": Head(tuple(op.name for op in Op), tuple(Op)),
    "slot": Head((), _ON_A_SLOT),
    "blueprint": Head(BLUEPRINTS, (Op.GERMINATE,)),
    "style": Head(tuple(style.name for style in Style), (Op.GERMINATE, Op.SET_ALPHA_TARGET)),
    "tempo": Head(tuple(_TEMPOS), (Op.GERMINATE,)),
    "alpha_target": Head(tuple(_ALPHA_TARGETS), (Op.GERMINATE, Op.SET_ALPHA_TARGET)),
    "alpha_speed": Head(tuple(_ALPHA_SPEEDS), (Op.SET_ALPHA_TARGET, Op.PRUNE)),
    "alpha_curve": Head(tuple(curve.name for curve in AlphaCurve), (Op.SET_ALPHA_TARGET, Op.PRUNE)),
}
"""All heads, in order. The weight of a head's entropy isn't here: it is the agent's."""

HEADS: tuple[str, ...] = tuple(HEAD_TABLE)
"""Names of the action's heads; the op comes first because it conditions the others."""

CAUSAL_RELEVANCE: torch.Tensor = torch.tensor(
    [[op in head.ops for head in HEAD_TABLE.values()] for op in Op]
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
    sizes = {name: len(head.choices) for name, head in HEAD_TABLE.items()}
    return sizes | {"slot": num_slots, "blueprint": num_blueprints}
