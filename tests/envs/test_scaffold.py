"""The scaffold task's best plan, and what makes the task a measure of credit."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from envs import MorphogenesisEnv
from envs.actions import BLUEPRINTS, HEADS, Op, Stage
from envs.tasks.plans import Plan
from envs.tasks.scaffold import BEST_PLAN, HELPERS, WAIT_RETURN, scaffold
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import PlanPolicy, RandomPolicy, WaitPolicy
from tests.support.environments import column

TASK = scaffold()
HELPED, DECOYED = 0, 1
"""Worlds in which the first candidate is the helper, or isn't."""


def play(
    plans: list[Plan], worlds: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[TensorDictBase]]:
    """Discounted returns, whether all actions succeeded, and the states of every plan."""
    env = MorphogenesisEnv("scaffold", num_envs=len(plans), seed=0)
    env.reset()
    helpers = [BLUEPRINTS.index(HELPERS[world]) for world in worlds]
    env.population.helper = torch.tensor(helpers)
    states = [env.observe()]
    total, legal = torch.zeros(len(plans)), torch.ones(len(plans), dtype=torch.bool)
    for step in range(env.max_epochs):
        heads = {
            head: torch.tensor([int(plan.get(step, {}).get(head, 0)) for plan in plans])
            for head in HEADS
        }
        action = TensorDict(heads, [len(plans)])
        states.append(env.step(states[-1].clone().set("action", action))["next"])
        total += env.reward_config.gamma**step * states[-1]["reward"].squeeze(1)
        legal &= states[-1]["last_action_success"].squeeze(1)
    assert states[-1]["terminated"].all()
    return total, legal, states


BOTH = [BEST_PLAN.plan, BEST_PLAN.otherwise]


def test_stated_returns() -> None:
    returns, legal, states = play([*BOTH, {}], [HELPED, DECOYED, HELPED])
    assert legal.all()
    assert returns[:2].mean().item() == pytest.approx(BEST_PLAN.discounted_return, abs=1e-3)
    assert returns[2].item() == pytest.approx(WAIT_RETURN, abs=1e-3)
    final = states[-1]["metrics", "stage"]
    assert (final[:2, 1] == Stage.FOSSILIZED).all()
    assert not (states[-1]["metrics", "alpha"][:2, 0] > 0).any()  # the helper has gone


def test_the_plan_decides_by_what_it_sees() -> None:
    decided_at = BEST_PLAN.decided_at
    before = [{t: a for t, a in plan.items() if t <= decided_at - 1} for plan in BOTH]
    assert before[0] == before[1]
    _, _, states = play(BOTH, [HELPED, DECOYED])
    told = column(BEST_PLAN.feature)
    for step in range(decided_at):
        one, other = states[step]["observation"]
        assert one.equal(other)
    one, other = states[decided_at]["observation"]
    assert (one[told] > 0, other[told] > 0) == (True, False)
    credit = [c for c in range(len(one)) if (c - 25) % 29 in (24, 25) and c >= 25]
    assert set((one != other).nonzero().flatten().tolist()) <= set(credit)


def test_help_shows_as_soon_as_both_are_mixed_in() -> None:
    _, _, (*states,) = play([BEST_PLAN.plan], [HELPED])
    alpha = torch.cat([state["metrics", "alpha"] for state in states])
    together = (alpha[:, 0] > 0) & (alpha[:, 1] > 0)
    boost = torch.cat([s["observation"][:, column("slot1_boost_received_norm")] for s in states])
    assert together.nonzero()[0] == BEST_PLAN.decided_at
    assert (boost > 0)[:60].equal(together[:60])


def test_the_help_pays_at_least_60_epochs_later_and_not_before() -> None:
    _, _, states = play(BOTH, [HELPED, DECOYED])
    accuracy = torch.cat([state["metrics", "val_accuracy"] for state in states], 1)
    planted = [0, 15]
    for row, start in enumerate(planted):
        paid = (accuracy[row] > 50).nonzero()[0].item()
        assert paid - start >= 60
        assert accuracy[row, :paid].max() < 32


def test_the_helper_is_needed_and_best_removed() -> None:
    plan = BEST_PLAN.plan
    (prune,) = [step for step, action in plan.items() if action["op"] == Op.PRUNE]
    alone = {step: action for step, action in plan.items() if action["slot"] != 0}
    kept = {step: action for step, action in plan.items() if step != prune}
    returns, legal, _ = play([plan, alone, kept], [HELPED] * 3)
    assert legal.all()
    assert returns[1] < WAIT_RETURN + 0.1
    assert returns[2] < returns[0] - 0.04


def test_an_idle_start_costs() -> None:
    late = [{step + 10: action for step, action in plan.items()} for plan in BOTH]
    returns, legal, _ = play([*BOTH, *late], [HELPED, DECOYED] * 2)
    assert legal.all()
    assert returns[2:].mean() < returns[:2].mean() - 0.05


def test_deciding_blindly_closes_less_than_60_percent() -> None:
    """Whichever of its two plans it plays, whatever it sees."""
    for plan in BOTH:
        returns, _, _ = play([plan, plan], [HELPED, DECOYED])
        gap = BEST_PLAN.discounted_return - WAIT_RETURN
        assert (returns.mean().item() - WAIT_RETURN) / gap < 0.6


def test_neighbours_earn_less() -> None:
    for world, plan in enumerate(BOTH):
        best = play([plan], [world])[0].item()
        neighbours: list[Plan] = []
        for step, action in plan.items():
            if step <= BEST_PLAN.decided_at:
                continue  # for one of the worlds alone, which is which isn't known yet
            rest = {t: a for t, a in plan.items() if t != step}
            neighbours.append(rest)
            moved = [step + by for by in (-20, -5, -2, -1, 1, 2, 5, 20)]
            neighbours += [{**rest, t: action} for t in moved if 0 <= t < 144 and t not in rest]
            for head in set(action) - {"op"}:
                others = set(range(3)) - {action[head]}
                neighbours += [{**plan, step: {**action, head: index}} for index in others]
        returns, legal, _ = play(neighbours, [world] * len(neighbours))
        assert legal.sum() > 10
        assert returns[legal].max() <= best + 1e-4


def test_random_play_finds_the_help_and_its_pay_off() -> None:
    """In at least one of 200 episodes; exploration isn't what is hard."""
    torch.manual_seed(0)
    env, policy = MorphogenesisEnv("scaffold", num_envs=1000, seed=0), RandomPolicy()
    found = env.rollout(env.max_epochs, policy)
    accuracy = found["next", "metrics", "val_accuracy"].squeeze(-1).amax(1)
    assert (accuracy > 50).float().mean().item() >= 1 / 200


def test_the_best_plan_as_a_policy() -> None:
    env = MorphogenesisEnv("scaffold", num_envs=64, seed=3)
    gamma = env.reward_config.gamma
    policy = PlanPolicy(BEST_PLAN, env.max_epochs)
    for _ in range(2):  # it starts anew with every episode
        returns = evaluate(policy, env, 64, gamma=gamma).returns
        helped = env.population.helper == BLUEPRINTS.index(HELPERS[0])
        assert 0.2 < helped.float().mean() < 0.8
        best = play(BOTH, [HELPED, DECOYED])[0]
        assert set(returns.mul(1e3).round().tolist()) == set(best.mul(1e3).round().tolist())
    waiting = evaluate(WaitPolicy(), env, 64, gamma=gamma).returns
    assert waiting.mean().item() == pytest.approx(WAIT_RETURN, abs=1e-3)
