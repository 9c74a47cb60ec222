"""A world of formulas about credit over many epochs, where the best plan is known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from envs.actions import ALPHA_TARGETS, BLUEPRINTS, Op
from envs.populations.formula import FormulaPopulation, SeedCurve
from envs.reward import RewardConfig
from envs.tasks.base import Task
from envs.tasks.plans import BestPlan, Plan

CURVES: dict[str, SeedCurve] = {
    "attention": SeedCurve(params=50),
    "bottleneck": SeedCurve(params=50),
    "conv_heavy": SeedCurve(params=300, peak=70.0, helped=62.0, alone=80.0),
}
"""The blueprints: one that is worth waiting for, and two of which one helps it."""

HELPERS: tuple[str, ...] = tuple(name for name, curve in CURVES.items() if curve.peak == 0)
"""Candidates for the helper of an episode."""

HOST_SIZE = 1000


def _germinate(slot: int, blueprint: str, alpha: float) -> dict[str, int]:
    """Added, by the fastest ramp."""
    index, target = BLUEPRINTS.index(blueprint), ALPHA_TARGETS.index(alpha)
    return {"op": Op.GERMINATE, "slot": slot, "blueprint": index, "alpha_target": target}


def _advance(slot: int) -> dict[str, int]:
    return {"op": Op.ADVANCE, "slot": slot}


_FIRST_TRY: Plan = {
    0: _germinate(0, HELPERS[0], 0.5),
    1: _advance(0),
    2: _germinate(1, "conv_heavy", 1.0),
    3: _advance(1),
    4: _advance(0),
    5: _advance(1),
}

BEST_PLAN = BestPlan(
    plan={
        **_FIRST_TRY,
        7: _advance(0),
        8: _advance(1),
        66: {"op": Op.FOSSILIZE, "slot": 1},
        67: {"op": Op.PRUNE, "slot": 0},
    },
    otherwise={
        **_FIRST_TRY,
        7: {"op": Op.PRUNE, "slot": 0},
        8: _advance(1),
        15: _germinate(0, HELPERS[1], 0.5),
        16: _advance(0),
        17: _advance(0),
        20: _advance(0),
        78: {"op": Op.FOSSILIZE, "slot": 1},
        79: {"op": Op.PRUNE, "slot": 0},
    },
    decided_at=6,
    feature="slot1_interaction_sum_norm",
    discounted_return=3.631,
)
"""The pair of plans with the largest discounted return for the task's own prices.

A candidate is planted at slot 0 and ``conv_heavy`` behind it. When both are mixed in, at step 6,
their interaction shows whether the candidate is the helper of this episode; if it isn't, it is
pruned and the other one takes its place. 62 epochs later ``conv_heavy`` is ripe and fossilized;
the helper is in its way now and pruned.

No pair that differs in one event earns more: not with an event left out, moved to another step,
exchanged with the next or with another choice in one head, not with any event added, nor with the
rest shifted in time (``python -m benchmarks.scaffold --search`` tries them all).
"""

WAIT_RETURN = 0.221
"""Discounted return of never doing anything."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaffoldTask(Task):
    """A first seed helps a second one along and is then best removed.

    What is hard is credit, not exploration: planting the right helper is worth nothing for 66
    epochs, and which of two candidates is right differs from episode to episode. Only the
    interaction with the seed behind it tells, as soon as both are mixed in (see
    :class:`~envs.populations.formula.FormulaPopulation`).
    """

    def make_population(
        self, num_rows: int, num_slots: int, device: torch.device
    ) -> FormulaPopulation:
        return FormulaPopulation(CURVES, HOST_SIZE, num_rows, num_slots, device)


def scaffold() -> ScaffoldTask:
    """144 epochs; the best way to play is :data:`BEST_PLAN`."""
    return ScaffoldTask(
        name="scaffold",
        description="no data, closed-form learning curves; a helper pays 66 epochs later",
        topology="analytic",
        num_slots=3,
        max_epochs=144,
        host_lr=1.0,
        seed_lr=1.0,
        parameter_budget=8 * HOST_SIZE,
        loss_limit=10.0,
        reward=RewardConfig(
            upkeep=0.0,
            synergy=15.0,
            prune=0.1,
            intervention={
                Op.GERMINATE: 0.02,
                Op.FOSSILIZE: 0.01,
                Op.PRUNE: 0.005,
                Op.SET_ALPHA_TARGET: 0.005,
            },
        ),
        best_plan=BEST_PLAN,
    )
