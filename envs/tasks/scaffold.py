"""A world of formulas, where the best plan is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envs.actions import ALPHA_SPEED_EPOCHS, ALPHA_TARGETS, BLUEPRINTS, Op
from envs.populations.formula import FormulaPopulation, SeedCurve
from envs.reward import RewardConfig
from envs.tasks.base import Task

CURVES: dict[str, SeedCurve] = {
    "conv_light": SeedCurve(peak=13.0, epochs=20.0, help=0.0, params=50),
    "attention": SeedCurve(peak=11.0, epochs=10.0, help=0.5, params=50),
    "norm": SeedCurve(peak=0.0, epochs=1.0, help=1.0, params=50),
    "depthwise": SeedCurve(peak=15.0, epochs=40.0, help=0.0, params=100),
    "bottleneck": SeedCurve(peak=16.0, epochs=60.0, help=0.0, params=100),
    "conv_small": SeedCurve(peak=12.0, epochs=10.0, help=0.0, params=50),
    "conv_heavy": SeedCurve(peak=80.0, epochs=180.0, help=0.0, params=300),
}
"""The blueprints: quick small gains, and one that is worth waiting for and worth helping."""

PLACES: tuple[float, ...] = (0.6, 1.0, 0.8)
"""Output of a seed in every slot, as a share of its output in the best one."""

HOST_SIZE = 1000


Plan = dict[int, dict[str, int]]
"""An episode's actions: heads by step; steps that are left out are WAIT, heads 0."""


def _germinate(slot: int, blueprint: str) -> dict[str, int]:
    """Added at full strength, by the fastest ramp."""
    index, full = BLUEPRINTS.index(blueprint), ALPHA_TARGETS.index(1.0)
    return {"op": Op.GERMINATE, "slot": slot, "blueprint": index, "alpha_target": full}


BEST_PLAN: Plan = {
    30: _germinate(0, "norm"),
    31: {"op": Op.ADVANCE, "slot": 0},
    32: _germinate(1, "conv_heavy"),
    33: {"op": Op.ADVANCE, "slot": 1},
    34: {"op": Op.ADVANCE, "slot": 0},
    35: {"op": Op.ADVANCE, "slot": 1},
    96: {"op": Op.PRUNE, "slot": 0, "alpha_speed": ALPHA_SPEED_EPOCHS.index(0)},
    97: {"op": Op.ADVANCE, "slot": 1},
    132: {"op": Op.FOSSILIZE, "slot": 1},
}
"""The plan with the largest discounted return for the default rewards.

``norm`` at slot 0 helps and gives nothing itself; ``conv_heavy`` at slot 1, the best place, learns
three times as fast beside it, and alone doesn't get half as far. When it is ripe the helper is in
the way: it is pruned, 66 epochs after it was planted. Begun at step 30, the seed has learned
everything just in time; begun at once, it would pay rent for longer, which costs 1 % of the gap
to always waiting.

No plan that differs from it in one event earns more: not with an event left out, moved to another
step, exchanged with the next or with another choice in one head, not with any event added, nor
with the rest shifted in time (``benchmarks/scaffold.py --search`` tries them all).
"""

BEST_RETURN, WAIT_RETURN = 3.476, -0.289
"""Returns of :data:`BEST_PLAN` and of never doing anything; the world is exact.

They are discounted by the reward's γ, as the agent maximises them: only so do the potentials
cancel. Undiscounted, a potential costs (1 − γ)·Φ in every step, and learning late would pay.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaffoldTask(Task):
    """A first seed helps a second one along and is then best removed."""

    def make_population(
        self, num_rows: int, num_slots: int, device: torch.device
    ) -> FormulaPopulation:
        return FormulaPopulation(CURVES, PLACES[:num_slots], HOST_SIZE, num_rows, device)


def scaffold() -> ScaffoldTask:
    """150 epochs; the best plan is :data:`BEST_PLAN`."""
    return ScaffoldTask(
        name="scaffold",
        description="no data, learning curves in closed form; a helper seed pays 50 epochs later",
        topology="analytic",
        num_slots=len(PLACES),
        max_epochs=150,
        host_lr=1.0,
        seed_lr=0.75,
        parameter_budget=8 * HOST_SIZE,
        loss_limit=10.0,
        reward=RewardConfig(
            upkeep=0.0, synergy=0.0, hindsight=0.0, fossilize=0.1, fossilize_limit=1.0
        ),
    )
