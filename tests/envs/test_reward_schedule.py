"""Weights of the reward that change with an environment's steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.envs import ParallelEnv

from benchmarks.invariants import differences
from envs import Ramp, RewardConfig, RewardSchedule
from envs.actions import Op
from envs.reward_schedule import SCHEDULED
from tests.support.environments import GROW, act, play, small_env

CHEAP = RewardConfig()
DEAR = replace(CHEAP, rent=0.5, intervention={**CHEAP.intervention, Op.GERMINATE: 2.0})
RAMPS = (
    Ramp("intervention.GERMINATE", start=0.0, begin=0.25, end=0.75),
    Ramp("rent", start=1.0, end=0.5),
)
SCHEDULE = RewardSchedule(DEAR, RAMPS, steps=20, every=5)
"""Of four episodes of five steps: 0, 0, 1 and 2 for GERMINATE, 1, 0.75, 0.5 and 0.5 for rent."""
PRICES = [(0.0, 1.0), (0.0, 0.75), (1.0, 0.5), (2.0, 0.5)]

scheduled_env = partial(small_env, max_epochs=5, reward=SCHEDULE, num_envs=3)


@given(
    st.sampled_from(SCHEDULED),
    st.floats(0, 9),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
    st.floats(0, 1),
)
def test_a_ramp_is_constant_then_linear_then_final(key, start, ends, progress):
    begin, end = ends
    weight = Ramp(key, start, begin, end).weight(progress, 3.0)
    if progress < begin:
        assert weight == start
    elif progress >= end:
        assert weight == 3.0
    else:
        share = (progress - begin) / (end - begin)
        assert weight == pytest.approx((1 - share) * start + share * 3.0)


@pytest.mark.parametrize("key", SCHEDULED)
def test_every_weight_can_be_scheduled_and_nothing_else_moves(key):
    schedule = RewardSchedule(RewardConfig(), [Ramp(key, start=7.0, end=0.5)], steps=10)
    assert schedule.at(10) == replace(schedule.final, intervention=schedule.at(10).intervention)
    got, final = schedule.at(0).weights(), schedule.at(10).weights()
    changed = {name for name, weight in got.items() if weight != final[name]}
    assert changed == {key.replace(".", "[") + "]" * ("." in key)}
    assert {got[name] for name in changed} == {7.0}


def test_a_step_is_paid_at_the_prices_of_its_episode():
    """The same world at constant prices is paid the same terms, episode by episode."""
    env = scheduled_env()
    for germinate, rent in PRICES:
        prices = replace(
            DEAR, rent=rent, intervention={**DEAR.intervention, Op.GERMINATE: germinate}
        )
        constant = small_env(max_epochs=5, reward=prices, num_envs=3)
        own = constant.get_extra_state()["options"]
        constant.set_extra_state(env.get_extra_state() | {"options": own})
        steps, expected = play(env, [*GROW, {}, {}]), play(constant, [*GROW, {}, {}])
        cost = steps[1]["reward_terms", "intervention"]
        assert torch.equal(cost, torch.full_like(cost, -germinate))
        for got, want in zip(steps, expected, strict=True):
            assert differences(got, want) == []


def test_saved_in_the_middle_it_goes_on_bitwise():
    env, other = scheduled_env(), scheduled_env(seed=99)
    play(env, [*GROW, {}, {}])
    play(env, GROW)
    play(other, GROW)
    other.load_state_dict(env.state_dict())
    for heads in [{"op": Op.PRUNE}, {}]:
        got, want = (act(each, each.observe(), **heads) for each in (other, env))
        assert differences(got, want) == []
    for got, want in zip(play(other, GROW), play(env, GROW), strict=True):
        assert differences(got, want) == []


def test_a_state_of_another_schedule_is_refused():
    other = scheduled_env(reward=replace(SCHEDULE, steps=40))
    with pytest.raises(ValueError, match="reward_schedule"):
        other.load_state_dict(scheduled_env().state_dict())
    with pytest.raises(ValueError, match="reward_schedule"):
        scheduled_env(reward=DEAR).load_state_dict(scheduled_env().state_dict())


def test_processes_have_the_same_prices():
    alone = scheduled_env(num_envs=2)
    together = ParallelEnv(2, partial(scheduled_env, num_envs=2))
    try:
        plant = alone.reset()
        parallel = together.reset()
        for step in range(15):
            for env_state in (plant, parallel):
                env_state["action"] = alone.action_spec.zero()["action"].expand(env_state.shape)
                env_state["action", "op"] = torch.full(env_state.shape, Op.GERMINATE)
            plant, parallel = alone.step(plant)["next"], together.step(parallel)["next"]
            paid = parallel["reward_terms", "intervention"]
            assert torch.equal(paid[0], plant["reward_terms", "intervention"]), step
            assert torch.equal(paid[1], paid[0])
            if plant["done"].all():
                plant, parallel = alone.reset(), together.reset()
    finally:
        together.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Ramp("gamma", 0.5), "key of a schedule must be one of"),
        (lambda: Ramp("rent", -1.0), "start of rent's schedule must be .* at least 0, got -1"),
        (lambda: Ramp("rent", 1.0, end=1.5), "end of rent's schedule must be .* at most 1"),
        (lambda: Ramp("rent", 1.0, 0.8, 0.2), "begin of rent's schedule must be .* at most 0.2"),
        (lambda: RewardSchedule(DEAR, RAMPS, steps=0), "steps must be"),
        (lambda: RewardSchedule(DEAR, RAMPS * 2, steps=9), "each key once, got 'intervention"),
    ],
)
def test_what_is_no_schedule_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_interactions_that_are_paid_at_first_are_measured_then():
    schedule = RewardSchedule(RewardConfig(synergy=0, hindsight=0), [Ramp("synergy", 1.0)], steps=9)
    with pytest.raises(ValueError, match="counterfactual_every must be 1"):
        small_env(reward=schedule, counterfactual_every=2)
