"""Contribution of each seed: accuracy now minus accuracy with its α forced to 0."""

from __future__ import annotations

import torch

from envs.populations.base import Validation
from envs.state import Slots


def record_contributions(slots: Slots, validation: Validation) -> None:
    """Update every slot's contribution, in accuracy points, from a validation of all rows.

    Slots that were not ablated keep their last contribution, an epoch older.

    Args:
        slots: changed in place.
        validation: of all rows, with ``accuracy_without`` where it was measured.
    """
    measured = validation.ablated
    contribution = validation.accuracy[:, None] - validation.accuracy_without
    change = contribution - slots.contribution
    age = torch.where(slots.contribution_age >= 0, slots.contribution_age + 1, -1)
    slots.contribution_change = torch.where(measured, change, slots.contribution_change)
    slots.contribution = torch.where(measured, contribution, slots.contribution)
    slots.contribution_age = torch.where(measured, 0, age)
