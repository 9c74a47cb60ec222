"""The reward of an environment: what follows from what it shows, in all modes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import MorphogenesisEnv
from envs.actions import Op, Stage
from envs.reward import MODES, REWARD_TERMS, RewardConfig
from tests.support.environments import act, legal_action, small_env
from tests.support.rewards import CONFIG, GAMMA, POTENTIAL

HOST_PARAMETERS = (8 + 16) + (8 * 16 + 32) + (16 * 32 + 64) + (32 * 10 + 10)
"""Of ``digits``: convolutions without bias, norms, classifier."""

A, W = Op.ADVANCE, Op.WAIT
G, T, P, F = Op.GERMINATE, Op.SET_ALPHA_TARGET, Op.PRUNE, Op.FOSSILIZE
LIVES = [
    [G, A, A, W, W, A, F, W, W, W],  # fossilized
    [G, A, A, W, W, P, W, W, W, W],  # pruned while it holds still in BLENDING
    [G, A, A, W, W, A, P, W, W, W],  # the same from HOLDING
    [G, P, W, W, W, W, W, W, G, W],  # too early, then refused in the cool-down
    [G, A, A, W, W, T, W, W, W, A],  # re-aimed
    [F, W, A, T, P, W, W, G, G, W],  # refused, planted late
]


def hand_computed(op: Op, old: dict, new: dict, gamma: float, last: bool) -> dict[str, float]:
    """All terms of one row with one slot, from the metrics before and after the step."""
    accuracy, contribution = new["val_accuracy"] / 100, new["contribution"]
    potential = [POTENTIAL.get(Stage(each["stage"]), 0) for each in (old, new)]
    share = new["alpha"] * new["seed_params"] / HOST_PARAMETERS
    bonus = 0.25 * (new["stage"] == Stage.FOSSILIZED and contribution >= 1)
    return {
        "progress": 5 * (gamma * accuracy - old["val_accuracy"] / 100),
        "stage": 0.1 * (gamma * potential[1] - potential[0]),
        "rent": -0.03 * math.log(1 + share),
        "shock": -0.02 * (new["alpha"] - old["alpha"]) ** 2,
        "intervention": -{G: 0.02, T: 0.005, P: 0.005, F: 0.01}.get(op, 0),
        "fossilize": (op == F) * (0.5 * contribution / 100 - 0.05 * (contribution <= 0)),
        "prune": (op == P) * 0.4 * min(max(-old["contribution"] / 100, -0.2), 0.2),
        "upkeep": -0.04 * (new["alpha"] > 0 and new["stage"] != Stage.FOSSILIZED),
        "terminal": last * (4 * accuracy + bonus),
        # Of several seeds, or of other modes:
        **dict.fromkeys(("synergy", "hindsight", "outcome", "hasty_prune", "governor"), 0.0),
    }


@pytest.mark.parametrize("alpha_speed", [0, 1])
@pytest.mark.parametrize("time_limit", ["terminate", "truncate"])
def test_terms_follow_from_what_the_environment_shows(time_limit, alpha_speed):
    length = len(LIVES[0])
    env = small_env(
        num_envs=len(LIVES),
        num_slots=1,
        max_epochs=length,
        reward=CONFIG,
        time_limit=time_limit,
        validation_size=100,
        minibatch_size=32,
        batches_per_epoch=5,
    )
    states = [env.reset()]
    for ops in zip(*LIVES, strict=True):
        # The target matters to GERMINATE and to the SET_ALPHA_TARGET that aims elsewhere.
        target = 0 if T in ops else 2
        heads = {"blueprint": 7, "style": 0, "alpha_target": target, "alpha_speed": alpha_speed}
        states.append(act(env, states[-1], op=[int(op) for op in ops], **heads))

    paid = set()
    for t, (before, after) in enumerate(pairwise(states)):
        last = t == length - 1
        gamma = 0 if last and time_limit == "terminate" else GAMMA
        for row, life in enumerate(LIVES):
            old, new = (
                {name: value.item() for name, value in each["metrics"][row].items()}
                for each in (before, after)
            )
            op = Op(new["executed_op"])
            assert (op == life[t]) == after["last_action_success"][row].item()
            want = hand_computed(op, old, new, gamma, last)
            got = {name: after["reward_terms", name][row].item() for name in REWARD_TERMS}
            assert got == pytest.approx(want, abs=1e-5), (row, t)
            assert after["reward"][row].item() == pytest.approx(sum(want.values()), abs=1e-5)
            paid |= {name for name in got if got[name] != 0}
    # The case leaves none out.
    assert paid == MODES["shaped"] - {"synergy", "hindsight", "governor"}


def random_play(seed: int, **options: object) -> list:
    """States of whole episodes of 24 rows with legal ops that often plant and seldom prune."""
    env = MorphogenesisEnv("scaffold", num_envs=24, seed=0, **options)
    generator = torch.Generator().manual_seed(seed)
    states = [env.reset()]
    for _ in range(env.max_epochs):
        states.append(act(env, states[-1], **legal_action(states[-1], generator)))
    return states


@pytest.mark.parametrize("mode", MODES)
def test_terms_sum_to_the_reward_in_every_mode(mode):
    weights = RewardConfig(mode=mode)
    states = random_play(1, reward=weights, max_epochs=60)
    paid = dict.fromkeys(REWARD_TERMS, False)
    for state in states[1:]:
        terms = torch.stack([state["reward_terms", name] for name in REWARD_TERMS])
        assert state["reward"].equal(terms.sum(0))
        for name in REWARD_TERMS:
            paid[name] |= bool(state["reward_terms", name].any())
    # Formulas don't fail.
    assert {name for name, is_paid in paid.items() if is_paid} == MODES[mode] - {"governor"}


@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([0.9, 0.995, 1.0]))
@settings(max_examples=10, deadline=None)
def test_potentials_telescope_over_any_legal_episode(seed, gamma):
    """Their discounted sum is what the first state was worth, with a minus."""
    weights = RewardConfig(gamma=gamma)
    states = random_play(seed, reward=weights, max_epochs=50)
    assert states[-1]["terminated"].all()
    first = weights.progress * states[0]["metrics", "val_accuracy"] / 100
    for name, worth in (("progress", first), ("stage", 0 * first), ("synergy", 0 * first)):
        paid = sum(gamma**t * s["reward_terms", name] for t, s in enumerate(states[1:]))
        torch.testing.assert_close(paid, -worth, atol=1e-3, rtol=0)


def test_credit_and_interactions_are_paid_as_shown():
    weights = RewardConfig()
    states = random_play(3, reward=weights)
    paid = 0
    for before, after in pairwise(states):
        credit = before["metrics", "pending_hindsight_credit"].sum(1, keepdim=True)
        torch.testing.assert_close(
            after["reward_terms", "hindsight"], weights.hindsight * credit, atol=1e-6, rtol=0
        )
        paid += int((credit > 0).sum())
        worth = [
            s["metrics", "interaction"].triu(1).clamp(0, 10).sum((1, 2))[:, None] / 100
            for s in (before, after)
        ]
        gamma = weights.gamma * ~after["terminated"]
        want = weights.synergy * (gamma * worth[1] - worth[0])
        torch.testing.assert_close(after["reward_terms", "synergy"], want, atol=1e-5, rtol=0)
    assert paid > 0


def test_interactions_that_are_paid_for_are_measured_in_every_epoch():
    with pytest.raises(ValueError, match=r"must be 1 .* pays synergy and hindsight"):
        MorphogenesisEnv(num_envs=1, counterfactual_every=2)
    only = RewardConfig(synergy=0.0)
    with pytest.raises(ValueError, match="pays hindsight, which"):
        MorphogenesisEnv(num_envs=1, counterfactual_every=2, reward=only)
    for weights in (RewardConfig(synergy=0.0, hindsight=0.0), RewardConfig(mode="simplified")):
        MorphogenesisEnv(num_envs=1, counterfactual_every=2, reward=weights)
