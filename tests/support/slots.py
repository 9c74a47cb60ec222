"""Slots as a test wants them, and what is done to them."""

from __future__ import annotations

from dataclasses import fields

import torch

from envs.actions import (
    BLUEPRINTS,
    HEADS,
    Op,
    Stage,
)
from envs.lifecycle import (
    apply_action,
    legal_slots,
)
from envs.state import Slots

CPU = torch.device("cpu")
OFFERED = torch.tensor([name != "noop" and "lora" not in name for name in BLUEPRINTS])
CONV = BLUEPRINTS.index("conv_light")
OTHER = BLUEPRINTS.index("norm")
HOST_GRADIENT = 2.0
INSTANT, FAST, MEDIUM, SLOW = range(4)
HALF, SEVENTY, FULL = range(3)
LIVE = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]
MIXED = [Stage.BLENDING, Stage.HOLDING]


def make(num_rows: int = 1, num_slots: int = 1, **values) -> Slots:
    """Slots that hold nothing but what is named, the same in every slot or broadcast."""
    slots = Slots.dormant(num_rows, num_slots, CPU)
    for name, value in values.items():
        old = getattr(slots, name)
        setattr(slots, name, torch.as_tensor(value, dtype=old.dtype).expand(old.shape).clone())
    return slots


def seed(stage: Stage, alpha: float | None = None, **values) -> Slots:
    """One slot with a healthy seed that may do all that its stage allows."""
    if alpha is None:
        alpha = 0.7 if stage in MIXED or stage == Stage.FOSSILIZED else 0.0
    defaults = {
        "clock": 2,
        "blueprint": CONV if stage in LIVE else -1,
        "alpha": alpha,
        "ramp_target": 0.7,
        "ramp_epochs": 3,
        "gradient_norm": HOST_GRADIENT,
        "contribution": 5.0,
        "contribution_age": 0,
    }
    return make(stage=stage, **{**defaults, **values})


def act(slots: Slots, op: Op, *, strict: bool = False, **heads: int):
    """Apply one action to all rows."""
    num_rows = slots.stage.shape[0]
    action = {head: torch.full((num_rows,), heads.get(head, 0)) for head in HEADS}
    action["op"] = torch.full((num_rows,), int(op))
    if "blueprint" not in heads:
        action["blueprint"] = torch.full((num_rows,), CONV)
    return apply_action(slots, action, legal(slots, strict=strict), OFFERED)


def legal(slots: Slots, *, strict: bool = False) -> torch.Tensor:
    host = torch.full((slots.stage.shape[0],), HOST_GRADIENT)
    return legal_slots(slots, host, strict=strict)


def differing(old: Slots, new: Slots) -> set[str]:
    return {
        field.name
        for field in fields(Slots)
        if not torch.equal(getattr(old, field.name), getattr(new, field.name))
    }


def value(slots: Slots, name: str):
    return getattr(slots, name).item()
