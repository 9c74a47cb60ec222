"""Contribution of each seed: accuracy now minus accuracy with its α forced to 0."""

from __future__ import annotations

import torch

from envs.populations.base import Validation
from envs.state import Slots


def age_contributions(slots: Slots) -> None:
    """Count an epoch since every slot's last measurement, if there was one."""
    age = slots.contribution_age
    slots.contribution_age = torch.where(age >= 0, age + 1, age)


def record_contributions(slots: Slots, validation: Validation) -> None:
    """Take over the contributions that a validation of all rows has measured.

    Args:
        slots: changed in place; slots that were not ablated keep their last contribution.
        validation: of all rows.
    """
    measured = validation.ablated
    change = validation.contribution - slots.contribution
    slots.contribution_change = torch.where(measured, change, slots.contribution_change)
    slots.contribution = torch.where(measured, validation.contribution, slots.contribution)
    slots.contribution_age = torch.where(measured, 0, slots.contribution_age)
