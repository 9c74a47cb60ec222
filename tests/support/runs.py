"""A training run that tests can afford often, and what it leaves."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from torch import Tensor

from benchmarks.killing import numbers, same_weights
from esper_rl import load_policy

TINY = (
    "env.num_envs=4",
    "env.max_epochs=5",
    "env.batches_per_epoch=1",
    "env.minibatch_size=8",
    "env.validation_size=20",
    "ppo.epochs=1",
    "ppo.minibatches=2",
    "steps_per_iteration=20",
    "total_steps=40",
    "eval_episodes=3",
    "workers=1",
    "save_seconds=0",
    "loggers=[]",
)
"""Two iterations of one episode on each of four rows."""


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Lines of a run's metrics."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in line.items()} for line in csv.DictReader(file)
        ]


def weights(run: Path) -> dict[str, Tensor]:
    """Of a run's policy and value, by name."""
    return load_policy(run).network.state_dict()


def command(*words: str) -> list[str]:
    """The command of a process that runs ``esper-rl`` with these words."""
    return [sys.executable, "-m", "esper_rl", *words]


def assert_same_run(a: Path, b: Path) -> None:
    """The same metrics, timings aside, and the same weights, bitwise."""
    assert numbers(a) == numbers(b)
    assert same_weights(a, b)
