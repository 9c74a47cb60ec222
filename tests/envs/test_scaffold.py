"""The scaffold task's best plan: what it earns, and that its neighbours earn less."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from envs import MorphogenesisEnv, RewardConfig
from envs.actions import HEADS, Op, Stage
from envs.tasks.scaffold import BEST_PLAN, BEST_RETURN, WAIT_RETURN, Plan

EPOCHS = 150


def play(plans: list[Plan]) -> tuple[torch.Tensor, torch.Tensor, TensorDict]:
    """Discounted returns, whether all actions succeeded, and the last state of every plan."""
    env = MorphogenesisEnv("scaffold", num_envs=len(plans))
    assert env.max_epochs == EPOCHS
    state = env.reset()
    total, legal = torch.zeros(len(plans)), torch.ones(len(plans), dtype=torch.bool)
    for step in range(EPOCHS):
        heads = {
            head: torch.tensor([int(plan.get(step, {}).get(head, 0)) for plan in plans])
            for head in HEADS
        }
        state = env.step(state.set("action", TensorDict(heads, [len(plans)])))["next"]
        total += RewardConfig().gamma ** step * state["reward"].squeeze(1)
        legal &= state["last_action_success"].squeeze(1)
    assert state["terminated"].all()
    return total, legal, state


def test_stated_returns() -> None:
    (best, wait), legal, state = play([BEST_PLAN, {}])
    assert legal.all()
    assert best.item() == pytest.approx(BEST_RETURN, abs=1e-3)
    assert wait.item() == pytest.approx(WAIT_RETURN, abs=1e-3)
    assert state["metrics", "stage"][0].tolist() == [Stage.DORMANT, Stage.FOSSILIZED, Stage.DORMANT]


def test_the_help_pays_many_epochs_later() -> None:
    """Without the helper the same plan earns much less, and so does keeping it."""
    (prune,) = [step for step, action in BEST_PLAN.items() if action["op"] == Op.PRUNE]
    assert prune - min(BEST_PLAN) > 50
    alone = {step: action for step, action in BEST_PLAN.items() if action["slot"] != 0}
    kept = {step: action for step, action in BEST_PLAN.items() if step != prune}
    returns, legal, _ = play([alone, kept])
    assert legal.all()
    assert (returns < BEST_RETURN - 0.3).all()


def test_neighbours_earn_less() -> None:
    neighbours: list[Plan] = []
    for step, action in BEST_PLAN.items():
        rest = {t: a for t, a in BEST_PLAN.items() if t != step}
        neighbours.append(rest)
        moved = [step + by for by in (-20, -5, -2, -1, 1, 2, 5, 20)]
        neighbours += [{**rest, t: action} for t in moved if 0 <= t < EPOCHS and t not in rest]
        for head in set(action) - {"op"}:
            others = set(range(3)) - {action[head]}
            neighbours += [{**BEST_PLAN, step: {**action, head: index}} for index in others]
    returns, legal, _ = play(neighbours)
    assert legal.sum() > 20
    assert returns[legal].max() <= BEST_RETURN + 1e-3
