"""A training run so small that tests can afford many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from esper_rl.training.config import TrainConfig, parse_overrides

TINY = (
    "env.num_envs=4",
    "env.max_epochs=5",
    "env.batches_per_epoch=1",
    "env.minibatch_size=8",
    "env.validation_size=20",
    "ppo.epochs=1",
    "steps_per_iteration=20",
    "total_steps=40",
    "eval_episodes=3",
    "workers=1",
)


@pytest.fixture
def tiny_overrides(tmp_path: Path) -> list[str]:
    """Two iterations of one episode on each of four rows, into ``tmp_path / "run"``."""
    return [*TINY, f"run_dir={tmp_path / 'run'}"]


@pytest.fixture
def tiny_config(tiny_overrides: list[str]) -> Callable[..., TrainConfig]:
    """Makes the configuration of a tiny run, with some fields replaced."""

    def make(*overrides: str) -> TrainConfig:
        return parse_overrides([*tiny_overrides, *overrides])

    return make
