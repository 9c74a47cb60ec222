"""Credit: what each seed contributes, what two give together, and who helped whom.

All follows from the accuracy with seeds left out (:class:`envs.populations.left_out.SetsLeftOut`).
"""

from __future__ import annotations

from functools import cache
from math import factorial

import torch
from torch import Tensor

from envs.populations.base import Validation
from envs.populations.left_out import ALL_SUBSETS, sets_left_out
from envs.state import ROUNDING, Slots, State

NOISE = 2.0
"""Standard errors that an interaction must exceed to be remembered as help."""

CREDIT = 0.1
"""Hindsight credit of a helper for each accuracy point of its peak interaction."""

MOST_CREDIT = 0.2
"""Hindsight credit of all helpers of one fossilized seed, at most."""


def contributions(lost: Tensor, num_slots: int) -> Tensor:
    """Accuracy now less accuracy with a slot's α forced to 0, in points: ``[n, S]``.

    Args:
        lost: of a :class:`~envs.populations.base.Validation`, ``[n, K]``.
        num_slots: S.
    """
    return lost[:, sets_left_out(num_slots, lost.device).singles]


def interactions(lost: Tensor, num_slots: int) -> Tensor:
    """Points that two seeds give together beyond what each gives alone: ``[n, S, S]``.

    acc(all) − acc(without i) − acc(without j) + acc(without both); symmetric, 0 for a seed with
    itself, and 0 where it is so small that it may be rounding.

    Args:
        lost: of a :class:`~envs.populations.base.Validation`, ``[n, K]``.
        num_slots: S.

    Examples:
        >>> interactions(torch.tensor([[0.0, 6.0, 2.0, 7.0]]), 2)
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    sets = sets_left_out(num_slots, lost.device)
    alone = lost[:, sets.singles]
    together = alone[:, :, None] + alone[:, None, :] - lost[:, sets.pairs]
    real = (sets.singles[:, None] != sets.singles) & (together.abs() >= ROUNDING)
    return torch.where(real, together, 0.0)


def interaction_noise(variance: Tensor, num_slots: int) -> Tensor:
    """Standard errors of interactions in points, ``[n, S, S]``: of a sum of four accuracies.

    Args:
        variance: of a :class:`~envs.populations.base.Validation`, ``[n, K]``.
        num_slots: S.
    """
    sets = sets_left_out(num_slots, variance.device)
    alone, both = variance[:, sets.singles], variance[:, sets.pairs]
    summed = variance[:, :1, None] + alone[:, :, None] + alone[:, None, :] + both
    return summed.sqrt()


def shapley_values(lost: Tensor, num_slots: int) -> Tensor:
    """Shapley values in points: ``[n, S]``; their sum is acc(all) − acc(none).

    The mean, over all orders in which the seeds could be added, of what each adds then
    (Shapley 1953, "A Value for n-Person Games").

    Args:
        lost: of a :class:`~envs.populations.base.Validation` with all sets, ``[n, 2^S]``.
        num_slots: S, at most :data:`envs.populations.left_out.ALL_SUBSETS`.

    Examples:
        >>> shapley_values(torch.tensor([[0.0, 6.0, 2.0, 10.0]]), 2)
        tensor([[7., 3.]])
    """
    return (lost[:, None, :] * _shapley_weights(num_slots, lost.device)).sum(2)


def age_measurements(slots: Slots) -> None:
    """Count an epoch since every slot's last measurement, if there was one."""
    age = slots.contribution_age
    slots.contribution_age = torch.where(age >= 0, age + 1, age)


def record_measurements(slots: Slots, validation: Validation, measured: Tensor) -> None:
    """Record the measurements of a validation of all rows.

    Args:
        slots: changed in place; slots that were not left out keep their last contribution.
        validation: of all rows.
        measured: bool ``[N]``: rows that count; the others keep all that they have.
    """
    num_slots, lost = slots.num_slots, validation.lost
    here = validation.ablated & measured[:, None]
    contribution = contributions(lost, num_slots)
    change = contribution - slots.contribution
    slots.contribution_change = torch.where(here, change, slots.contribution_change)
    slots.contribution = torch.where(here, contribution, slots.contribution)
    slots.contribution_age = torch.where(here, 0, slots.contribution_age)
    if num_slots <= ALL_SUBSETS:
        slots.shapley = torch.where(here, shapley_values(lost, num_slots), slots.shapley)

    rows = measured[:, None, None]
    interaction = interactions(lost, num_slots)
    slots.interaction = torch.where(rows, interaction, slots.interaction)
    # The largest of many measurements is large by chance alone; what may be chance isn't help.
    noise = interaction_noise(validation.variance, num_slots)
    higher = rows & (interaction > NOISE * noise) & (interaction > slots.peak)
    slots.peak = torch.where(higher, interaction, slots.peak)
    slots.helper_gone = torch.where(higher, -1, slots.helper_gone)


def credit_helpers(state: State, fossilized: Tensor) -> None:
    """Credit the slots that have helped a seed which was fossilized and contributes.

    Each is credited 0.1 for a point of its peak interaction with that seed, all of them together
    at most 0.2. The credit waits in the state for the next step's reward. Then every helper that
    has left its slot is an epoch longer gone.

    Args:
        state: changed in place.
        fossilized: bool ``[N, S]``, in this step, at most one a row.
    """
    slots = state.slots
    succeeds = fossilized & (slots.contribution > 0)
    credit = CREDIT * slots.peak * succeeds[:, :, None]  # [N, who was helped, by whom]
    credit = credit * (MOST_CREDIT / credit.sum(2, keepdim=True).clamp(min=MOST_CREDIT))
    delay = slots.helper_gone.clamp(min=0) * (credit > 0)
    state.pending_hindsight_credit, state.hindsight_delay = credit.sum(1), delay.sum(1)
    slots.helper_gone = slots.helper_gone + (slots.helper_gone >= 0)


@cache
def _shapley_weights(num_slots: int, device: torch.device) -> Tensor:
    """Share of each set's loss in each slot's value: ``[S, 2^S]``."""
    weights = torch.zeros(num_slots, 1 << num_slots, dtype=torch.float32)
    for slot in range(num_slots):
        for left_out in range(1 << num_slots):
            if left_out >> slot & 1:
                absent = left_out.bit_count()
                orders = factorial(num_slots - absent) * factorial(absent - 1)
                share = orders / factorial(num_slots)
                weights[slot, left_out] += share
                weights[slot, left_out - (1 << slot)] -= share
    return weights.to(device)
