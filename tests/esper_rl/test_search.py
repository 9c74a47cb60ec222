"""The search for the best schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from envs import MorphogenesisEnv
from esper_rl.config import TrainConfig
from esper_rl.evaluation import schedule_search as search
from esper_rl.evaluation.schedule_search import (
    all_schedules,
    best_schedule,
    play_schedules,
    single_schedules,
)

Configure = Callable[..., TrainConfig]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Environment steps of every call of ``play_schedules``."""
    taken = []
    play = search.play_schedules

    def counted(config: TrainConfig, schedules, seed):
        taken.append(len(schedules) * config.env.max_epochs)
        return play(config, schedules, seed)

    monkeypatch.setattr(search, "play_schedules", counted)
    return taken


def test_steps_stay_within_the_budget(tiny_config: Configure, steps: list[int]) -> None:
    found = best_schedule(tiny_config(), budget=5 * 40 + 4, episodes=3)
    *searching, evaluating = steps
    assert sum(searching) == found.steps
    assert 5 * 30 <= found.steps <= 5 * 40
    assert evaluating == 5 * 3
    assert len(found.evaluation.returns) == 3
    assert len(searching) == 2


def test_it_repeats_itself(tiny_config: Configure) -> None:
    first, second = (best_schedule(tiny_config(), 100, 3, seed=4) for _ in range(2))
    assert first.schedule == second.schedule
    assert first.evaluation.returns.equal(second.evaluation.returns)


def test_the_schedule_that_earns_most_wins(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point for every seed, and noise, which more hosts take away."""

    def play(config: TrainConfig, schedules, seed: int):
        noise = torch.randn(len(schedules), generator=torch.Generator().manual_seed(seed))
        returns = torch.tensor([float(len(schedule)) for schedule in schedules]) + 0.5 * noise
        return search.Evaluation(returns, returns, returns, returns)

    monkeypatch.setattr(search, "play_schedules", play)
    found = best_schedule(tiny_config(), budget=5 * 400)
    assert len(found.schedule) == 3
    assert 100 < found.tried <= 200
    assert found.evaluation.returns.mean() == pytest.approx(3, abs=0.3)


def test_all_are_tried_where_there_are_few() -> None:
    env = MorphogenesisEnv("scaffold", num_envs=1, max_epochs=10)
    one_slot = MorphogenesisEnv(num_envs=1, num_slots=1, max_epochs=10)
    blueprints = int(one_slot.population.offered.sum())
    found = all_schedules(one_slot, at_most=1000)
    assert found[0] == ()
    assert len(found) == len(set(found)) == 1 + blueprints * 4
    assert {epoch for ((_, _, epoch),) in found[1:]} == {0, 1, 2, 4}
    assert all_schedules(env, at_most=1000) == []
    assert single_schedules(one_slot) == found
    three = single_schedules(MorphogenesisEnv(num_envs=1, max_epochs=10))
    assert len(three) == len(set(three)) == 1 + 3 * blueprints * 4
    assert max(map(len, three)) == 1


def test_waiting_wins_where_every_seed_costs(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(config: TrainConfig, schedules, seed: int):
        returns = torch.tensor([-float(len(schedule)) for schedule in schedules])
        return search.Evaluation(returns, returns, returns, returns)

    monkeypatch.setattr(search, "play_schedules", play)
    found = best_schedule(tiny_config(), budget=5 * 40)
    assert (found.schedule, str(found)) == ((), "wait")


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ((3, "norm", 0), "slot must be an integer from 0 to 2, got 3"),
        ((0, "oak", 0), "blueprint must be one of .*, got 'oak'"),
        ((0, "lora", 0), "lora"),
    ],
)
def test_schedules_that_the_world_does_not_have(tiny_config: Configure, seed, message) -> None:
    with pytest.raises(ValueError, match=message):
        play_schedules(tiny_config(), [(), (seed,)], seed=0)


def test_bad_input(tiny_config: Configure) -> None:
    with pytest.raises(ValueError, match="budget must be an integer of at least 5, got 4"):
        best_schedule(tiny_config(), budget=4)
