"""A seed's life: which ops are legal where, what they do, α ramps and clocks.

All functions work on :class:`Slots`, tensors ``[N, S]`` for N rows of S slots, and replace
tensors instead of writing into them, so a tensor handed out once never changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from envs.actions import (
    ALPHA_SPEED_EPOCHS,
    ALPHA_TARGETS,
    HEADS,
    SIGMOID_STEEPNESS,
    STAGES,
    STYLE_ALGORITHM,
    STYLE_CURVE,
    TEMPO_EPOCHS,
    Algorithm,
    AlphaCurve,
    AlphaMode,
    Op,
    Stage,
    Style,
    head_sizes,
)
from envs.batched.workers import one_thread
from envs.lookup import look_up
from envs.state import Slots

GATES: tuple[str, ...] = ("permissive", "strict", "hidden")
"""Values of the environment's ``gates``."""

_FOLLOWING = [stage if row.following is None else row.following for stage, row in STAGES.items()]
_COOL_DOWN = [math.inf if row.cool_down is None else row.cool_down for row in STAGES.values()]
_STEEPNESS = [SIGMOID_STEEPNESS.get(curve, 0.0) for curve in AlphaCurve]
_SIGMOID_START = [1 / (1 + math.exp(steepness / 2)) for steepness in _STEEPNESS]

STRICT_GRADIENT_RATIO = 0.10
"""Strict gate 2: the seed's gradient norm over the host's."""

STRICT_CONTRIBUTION = 1.0
"""Strict gate 5: accuracy points."""


@dataclass
class Applied:
    """Result of an action.

    Attributes:
        success: bool ``[N]``; False where it was refused and the step runs as WAIT.
        op: int64 ``[N]``, the op that was carried out.
        acted: bool ``[N, S]``, slots on which an op was carried out.
        germinated: bool ``[N, S]``, slots where a seed was planted.
        gated: bool ``[N, S]``, slots whose algorithm became GATE.
        fossilized: bool ``[N, S]``.
        pruned: bool ``[N, S]``, slots on which PRUNE was carried out.
    """

    success: Tensor
    op: Tensor
    acted: Tensor
    germinated: Tensor
    gated: Tensor
    fossilized: Tensor
    pruned: Tensor


def legal_slots(slots: Slots, host_gradient: Tensor, *, strict: bool) -> Tensor:
    """Find the slots in which each op is legal: bool ``[N, 6, S]``.

    Args:
        slots: the slots.
        host_gradient: the hosts' gradient norms, float32 ``[N]``.
        strict: also ask for a healthy gradient (gate 2) and a contribution (gate 5).
    """
    stage = slots.stage
    holds = slots.alpha_mode == AlphaMode.HOLD
    germinated, training = stage == Stage.GERMINATED, stage == Stage.TRAINING
    blended, holding = (stage == Stage.BLENDING) & holds, (stage == Stage.HOLDING) & holds
    mixed = blended | holding
    trained = training & (slots.clock >= 1)
    finished = holding & (slots.alpha > 0)
    if strict:
        trained &= slots.gradient_norm >= STRICT_GRADIENT_RATIO * host_gradient[:, None]
        finished &= (slots.contribution_age >= 0) & (slots.contribution >= STRICT_CONTRIBUTION)
    by_op = {
        Op.WAIT: torch.ones_like(holds),
        Op.GERMINATE: stage == Stage.DORMANT,
        Op.SET_ALPHA_TARGET: mixed,
        Op.PRUNE: germinated | training | mixed,
        Op.FOSSILIZE: finished,
        Op.ADVANCE: germinated | trained | blended,
    }
    return torch.stack([by_op[op] for op in Op], dim=1)


def action_masks(legal: Tensor, offered: Tensor) -> dict[str, Tensor]:
    """Legal choices of every head.

    Args:
        legal: bool ``[N, 6, S]`` from :func:`legal_slots`.
        offered: bool ``[blueprints]``, those that the host has.

    Returns:
        ``op`` ``[N, 6]``; ``slot`` ``[N, 6, S]``, by op; the others ``[N, size]``.
    """
    num_rows, _, num_slots = legal.shape
    masks = {
        head: torch.ones(num_rows, size, dtype=torch.bool, device=legal.device)
        for head, size in head_sizes(num_slots, len(offered)).items()
    }
    masks["op"] = legal.any(2)
    masks["slot"] = legal
    masks["blueprint"] = offered.expand(num_rows, -1).clone()
    return masks


def draw_action(masks: TensorDictBase) -> dict[str, Tensor]:
    """Draw what is legal, uniformly: the op, then a slot that is legal for it, then the rest.

    Args:
        masks: bool, of every head, ``[..., size]``, and ``slot`` by op, ``[..., 6, S]``.

    Returns:
        int64 ``[...]`` by head.
    """
    op = _draw(masks["op"])
    of_op = op[..., None, None].expand(*op.shape, 1, masks["slot"].shape[-1])
    others = {head: _draw(masks[head]) for head in HEADS if head not in ("op", "slot")}
    return {"op": op, "slot": _draw(masks["slot"].gather(-2, of_op).squeeze(-2)), **others}


def _draw(mask: Tensor) -> Tensor:
    """One uniform draw among the true entries of every row, ``[..., n]`` to ``[...]``."""
    return torch.multinomial(mask.flatten(0, -2).float(), 1).reshape(mask.shape[:-1])


def apply_action(
    slots: Slots, action: dict[str, Tensor], legal: Tensor, offered: Tensor
) -> Applied:
    """Carry out the actions that are legal; the others change nothing.

    Args:
        slots: changed in place.
        action: int64 ``[N]`` a head, well-formed.
        legal: bool ``[N, 6, S]``.
        offered: bool ``[blueprints]``, those that the host has.
    """
    device = legal.device
    num_rows, _, num_slots = legal.shape
    rows = torch.arange(num_rows, device=device)
    op = action["op"]
    success = legal[rows, op, action["slot"]] | (op == Op.WAIT)
    success &= offered[action["blueprint"]] | (op != Op.GERMINATE)
    op = torch.where(success, op, Op.WAIT)
    here = torch.arange(num_slots, device=device) == action["slot"][:, None]
    carried_out = torch.where(here, op[:, None], Op.WAIT)

    def choice(table: Sequence[float], head: str) -> Tensor:
        """Look up the meaning of the head's choice, as a column ``[N, 1]``."""
        return look_up(table, action[head])[:, None]

    style = action["style"][:, None]
    target = choice(ALPHA_TARGETS, "alpha_target")
    speed = choice(ALPHA_SPEED_EPOCHS, "alpha_speed")

    germinated = carried_out == Op.GERMINATE
    slots.enter(germinated, Stage.GERMINATED)
    slots.blueprint = torch.where(germinated, action["blueprint"][:, None], slots.blueprint)
    slots.ramp_target = torch.where(germinated, target, slots.ramp_target)
    slots.ramp_epochs = torch.where(germinated, choice(TEMPO_EPOCHS, "tempo"), slots.ramp_epochs)
    slots.ramp_curve = torch.where(germinated, choice(STYLE_CURVE, "style"), slots.ramp_curve)

    advanced = carried_out == Op.ADVANCE
    blending = advanced & (slots.stage == Stage.TRAINING)
    slots.enter(advanced, look_up(_FOLLOWING, slots.stage))

    retargeted = carried_out == Op.SET_ALPHA_TARGET
    styled = germinated | retargeted
    gated = styled & (style == Style.GATED_GATE)
    gated &= germinated | (slots.algorithm != Algorithm.GATE)
    slots.algorithm = torch.where(styled, choice(STYLE_ALGORITHM, "style"), slots.algorithm)

    fossilized = carried_out == Op.FOSSILIZE
    slots.enter(fossilized, Stage.FOSSILIZED)

    pruned = carried_out == Op.PRUNE
    fades = pruned & (slots.alpha > 0) & (speed > 0)
    slots.enter(fades & (slots.stage == Stage.HOLDING), Stage.BLENDING)

    slots.ramp(
        blending | retargeted | fades,
        torch.where(blending, slots.ramp_target, torch.where(fades, 0.0, target)),
        torch.where(blending, slots.ramp_epochs, speed),
        torch.where(blending, slots.ramp_curve, action["alpha_curve"][:, None]),
        removing=fades,
    )
    slots.empty(pruned & ~fades, Stage.PRUNED)

    acted = carried_out != Op.WAIT
    return Applied(success, op, acted, germinated, gated, fossilized, pruned)


@one_thread
def advance_alpha(slots: Slots) -> None:
    """One epoch of every running ramp; a ramp to removal that arrives empties its slot."""
    running = slots.alpha_mode != AlphaMode.HOLD
    done = slots.ramp_done + running
    arrived = running & (done >= slots.ramp_epochs)
    progress = alpha_curve(slots.ramp_curve, done.float() / slots.ramp_epochs.clamp(min=1))
    on_the_way = torch.lerp(slots.ramp_start, slots.ramp_target, progress)
    alpha = torch.where(arrived, slots.ramp_target, on_the_way)
    slots.alpha = torch.where(running, alpha, slots.alpha)
    slots.ramp_done = done
    slots.alpha_mode = torch.where(arrived, AlphaMode.HOLD, slots.alpha_mode)
    slots.empty(arrived & slots.removing, Stage.PRUNED)


def alpha_curve(curve: Tensor, t: Tensor) -> Tensor:
    """Compute the progress of a ramp, in [0, 1].

    LINEAR t; COSINE (1 − cos πt)/2; SIGMOID the logistic of the curve's steepness around ½,
    rescaled to run from 0 to 1.

    Args:
        curve: int64, an :class:`~envs.actions.AlphaCurve` each.
        t: share of the ramp's epochs that is over, in [0, 1], same shape.

    Examples:
        >>> alpha_curve(torch.tensor([0, 1, 3]), torch.tensor([0.5, 0.5, 1.0]))
        tensor([0.5000, 0.5000, 1.0000])
    """
    progress = torch.where(curve == AlphaCurve.COSINE, (1 - torch.cos(math.pi * t)) / 2, t)
    steepness, low = look_up(_STEEPNESS, curve), look_up(_SIGMOID_START, curve)
    rescaled = (torch.sigmoid(steepness * (t - 0.5)) - low) / (1 - 2 * low)
    return torch.where(steepness > 0, rescaled, progress).clamp(0.0, 1.0)


def advance_clocks(slots: Slots) -> None:
    """Cool-downs that have run their length move on; then every busy slot counts an epoch."""
    over = slots.clock >= look_up(_COOL_DOWN, slots.stage)
    slots.enter(over, look_up(_FOLLOWING, slots.stage))
    slots.clock = slots.clock + (slots.stage != Stage.DORMANT)
    slots.age = slots.age + slots.has_module
