"""A small world with a policy and its steps, and a training run that tests can afford often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tensordict import TensorDictBase

from esper_rl.config import TrainConfig, compose_config
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from tests.support.fake_world import FakeWorld, collect, small_actor_critic
from tests.support.runs import TINY


@pytest.fixture
def tiny_overrides(tmp_path: Path) -> list[str]:
    """Two iterations of one episode on each of four rows, into ``tmp_path / "run"``."""
    return [*TINY, f"run_dir={tmp_path / 'run'}"]


@pytest.fixture
def tiny_config(tiny_overrides: list[str]) -> Callable[..., TrainConfig]:
    """Makes the configuration of a tiny run, with some fields replaced."""

    def make(*overrides: str) -> TrainConfig:
        return compose_config([*tiny_overrides, *overrides])

    return make


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld(num_envs=12)


@pytest.fixture
def ac(world: FakeWorld) -> ActorCritic:
    return small_actor_critic(world)


@pytest.fixture
def batch(world: FakeWorld, ac: ActorCritic) -> TensorDictBase:
    """Fresh steps ``[12, 10]`` with resets in between."""
    return compute_advantages(collect(world, ac, steps=10), ac)
