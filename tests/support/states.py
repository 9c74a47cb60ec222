"""States of rows as a test wants them."""

from __future__ import annotations

import torch

from envs.reward import REWARD_TERMS
from envs.state import History, Slots, State

CPU = torch.device("cpu")


def make_state(slots: Slots | None = None, history: History | None = None, **values) -> State:
    """One row in which nothing has happened, but for what is named."""
    slots = Slots.dormant(1, 1, CPU) if slots is None else slots
    state = State.fresh(
        slots.stage.shape[1],
        REWARD_TERMS,
        episode=torch.zeros(1, dtype=torch.int64),
        key=torch.zeros(1, dtype=torch.int64),
        loss=torch.ones(1),
        accuracy=torch.full((1,), 10.0),
    )
    state.slots = slots
    state.history = state.history if history is None else history
    set_fields(state, values)
    return state


def set_fields(rows: Slots | State, values: dict[str, object]) -> None:
    """Give fields new values, broadcast to the shape that they have."""
    for name, value in values.items():
        old = getattr(rows, name)
        setattr(rows, name, torch.as_tensor(value, dtype=old.dtype).expand(old.shape).clone())
