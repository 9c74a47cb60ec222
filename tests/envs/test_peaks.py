"""What a slot remembers of who has helped it, by the rows and the moments that count."""

from __future__ import annotations

from dataclasses import fields

import torch

from envs.actions import Stage
from envs.credit import credit_helpers, record_measurements
from envs.populations.base import Validation
from envs.state import Slots
from tests.support.slots import make
from tests.support.states import make_state

HELPED, HELPER = 0, 1


def measured(together: float, rows: list[bool]) -> Validation:
    """Two seeds in every row that give so many points together, and nothing alone."""
    count = len(rows)
    lost = torch.tensor([[0.0, together, together, together]]).expand(count, 4)
    return Validation(
        loss=torch.ones(count),
        accuracy=torch.full((count,), 50.0),
        lost=lost,
        variance=torch.zeros(count, 4),
        ablated=torch.ones(count, 2, dtype=torch.bool),
    )


def record(slots: Slots, together: float, rows: list[bool]) -> None:
    record_measurements(slots, measured(together, rows), torch.tensor(rows))


def epoch_without_fossils(slots: Slots) -> None:
    credit_helpers(make_state(slots), torch.zeros(1, 2, dtype=torch.bool))


def empty(slots: Slots, slot: int) -> None:
    slots.empty(torch.arange(2)[None] == slot, Stage.PRUNED)


def delay_of_credit(slots: Slots) -> int:
    """Epochs between the helper's end and the helped seed's fossilizing in the next epoch."""
    slots.contribution = torch.ones(1, 2)
    state = make_state(slots)
    credit_helpers(state, torch.arange(2)[None] == HELPED)
    assert state.pending_hindsight_credit[0, HELPER] > 0
    return int(state.hindsight_delay[0, HELPER])


def test_rows_that_are_not_due_keep_all_that_they_have() -> None:
    old = make(num_rows=3, num_slots=2, contribution=1.0, shapley=2.0, interaction=3.0, peak=4.0)
    old.helper_gone = torch.full_like(old.helper_gone, 5)
    new = old.copy()
    record(new, 8.0, [False, True, False])
    changed = {
        f.name for f in fields(Slots) if not getattr(old, f.name).equal(getattr(new, f.name))
    }
    assert changed >= {"contribution", "shapley", "interaction", "peak", "helper_gone"}
    for name in changed:
        assert getattr(new, name)[[0, 2]].equal(getattr(old, name)[[0, 2]]), name


def test_a_higher_peak_is_the_living_seeds_own() -> None:
    """A seed that helps more than the one that has left the slot takes its place."""
    slots = make(num_slots=2, blueprint=1, stage=Stage.HOLDING, alpha=1.0)
    record(slots, 2.0, [True])
    empty(slots, HELPER)
    for _ in range(7):
        epoch_without_fossils(slots)
    record(slots, 1.0, [True])  # another seed that helps less
    assert slots.peak[0, HELPED, HELPER] == 2.0
    assert slots.helper_gone[0, HELPED, HELPER] == 7
    record(slots, 3.0, [True])
    assert slots.peak[0, HELPED, HELPER] == 3.0
    assert delay_of_credit(slots) == 0


def test_a_helper_that_was_replanted_is_gone_since_it_left_first() -> None:
    """Its successor in the slot has helped nobody: that it leaves, too, changes nothing."""
    slots = make(num_slots=2, blueprint=1, stage=Stage.HOLDING, alpha=1.0)
    record(slots, 2.0, [True])
    empty(slots, HELPER)
    for _ in range(4):
        epoch_without_fossils(slots)
    slots.blueprint = torch.ones_like(slots.blueprint)
    for _ in range(3):
        epoch_without_fossils(slots)
    empty(slots, HELPER)
    for _ in range(2):
        epoch_without_fossils(slots)
    assert delay_of_credit(slots) == 9
