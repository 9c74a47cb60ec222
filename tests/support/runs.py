"""A training run that tests can afford often, and what it leaves."""

from __future__ import annotations

import csv
from pathlib import Path

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
)
"""Two iterations of one episode on each of four rows."""


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Lines of a run's metrics."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {name: float(value) for name, value in line.items()} for line in csv.DictReader(file)
        ]
