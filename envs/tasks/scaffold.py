"""A world of formulas, where the best plan is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envs.hosts.analytic import AnalyticHosts, SeedCurve
from envs.tasks.base import Task

CURVES: dict[str, SeedCurve] = {
    "conv_light": SeedCurve(peak=9.0, epochs=8.0, help=0.0, params=100),
    "attention": SeedCurve(peak=4.0, epochs=5.0, help=0.5, params=100),
    "norm": SeedCurve(peak=0.0, epochs=1.0, help=1.0, params=100),
    "depthwise": SeedCurve(peak=12.0, epochs=12.0, help=0.0, params=150),
    "bottleneck": SeedCurve(peak=18.0, epochs=30.0, help=0.0, params=200),
    "conv_small": SeedCurve(peak=6.0, epochs=5.0, help=0.0, params=50),
    "conv_heavy": SeedCurve(peak=80.0, epochs=200.0, help=0.0, params=500),
}
"""The blueprints: quick small gains, and one that is worth waiting for and worth helping."""

PLACES: tuple[float, ...] = (0.6, 1.0, 0.8)
"""What a seed gives in every slot, beside what it gives in the best one."""

HOST_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class ScaffoldTask(Task):
    """A first seed helps a second one along and is then best removed."""

    def make_hosts(
        self,
        num_rows: int,
        num_slots: int,
        device: torch.device,
        *,
        batches_per_epoch: int | None = None,
        minibatch_size: int | None = None,
        validation_size: int | None = None,
    ) -> AnalyticHosts:
        sizes = {
            "batches_per_epoch": batches_per_epoch,
            "minibatch_size": minibatch_size,
            "validation_size": validation_size,
        }
        for name, value in sizes.items():
            if value is not None:
                raise ValueError(
                    f"{name} means nothing to the task {self.name!r}, which has no data; "
                    f"leave it out (None), got {value!r}"
                )
        return AnalyticHosts(CURVES, PLACES[:num_slots], HOST_SIZE, num_rows, device)


def scaffold() -> ScaffoldTask:
    return ScaffoldTask(
        name="scaffold",
        description="no data, learning curves in closed form; a helper seed pays 50 epochs later",
        num_slots=len(PLACES),
        max_epochs=150,
        host_lr=0.0,
        seed_lr=1.0,
        parameter_budget=8 * HOST_SIZE,
        loss_limit=10.0,
    )
