"""Environments that are saved and carry on elsewhere."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from typing import ClassVar

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.data import Unbounded
from torchrl.envs import Compose, InitTracker, RewardSum, StepCounter, TensorDictPrimer

from benchmarks.invariants import differences
from envs import MorphogenesisEnv, ResumableEnv, RewardConfig, make_task
from envs.actions import HEADS, Op
from envs.batched.optimizers import SGD
from tests.support.environments import act, legal_action, play, small_env

NO_SIZES = dict.fromkeys(("batches_per_epoch", "minibatch_size", "validation_size"))
TASKS = {
    "digits": {},
    "pydoc": {"task": "pydoc"},
    "scaffold": {"task": "scaffold", "max_epochs": 40, **NO_SIZES},
}


def play_on(env: MorphogenesisEnv, state: TensorDict, steps: int, seed: int) -> list[TensorDict]:
    """States of more steps with random legal actions, the rows that end reset alone."""
    generator, states = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        state = act(env, state, **legal_action(state, generator))
        states.append(state)
        if state["done"].any():
            state = env.reset(state.clone().set("_reset", state["done"]))
            states.append(state)
    return states


@pytest.mark.parametrize("options", TASKS.values(), ids=TASKS)
def test_another_instance_goes_on_bitwise(options):
    env = small_env(**options)
    state = play_on(env, env.reset(), 13, seed=0)[-1]
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = play_on(env, state, 12, seed=1)

    other = small_env(**{**options, "seed": 99})
    play(other, [{}] * 2)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))  # nothing in it but data
    assert differences(other.observe(), state) == []
    got = play_on(other, state, 12, seed=1)
    assert len(got) == len(expected)
    assert all(differences(a, b) == [] for a, b in zip(got, expected, strict=True))
    same = zip(other.population.weights, env.population.weights, strict=True)
    assert all(a.equal(b) for a, b in same)


def test_a_row_that_fails_afterwards_goes_back_to_its_snapshot():
    env, other = small_env(seed=0), small_env(seed=1)
    state = play(env, [{}] * 6)[-1]
    other.load_state_dict(env.state_dict())
    for each in (env, other):
        each.population.host_params[1] = torch.nan
    a, b = act(env, state), act(other, state)
    assert a["metrics", "rollback"].any()
    assert differences(a, b) == []
    assert other.population.params.equal(env.population.params)


def test_what_was_saved_stays_as_it_is():
    env = small_env()
    state = play(env, [{}] * 2)[-1]
    saved = env.state_dict()
    first = play_on(env, state, 8, seed=2)
    for _ in range(2):
        env.load_state_dict(saved)
        again = play_on(env, state, 8, seed=2)
        assert all(differences(a, b) == [] for a, b in zip(again, first, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 2}, "with num_envs=2, got one with num_envs=3; make this"),
        ({"num_slots": 2}, "with num_slots=2, got one with num_slots=3"),
        ({"task": "digits_full"}, "with task.name='digits_full', got one with task.name='digits'"),
        ({"task": replace(make_task("digits"), seed_lr=0.1)}, "with task.seed_lr=0.1, got one"),
        ({"task": replace(make_task("digits"), optimizer=SGD(0.5))}, "with task.optimizer='SGD"),
        ({"max_epochs": 9}, "with max_epochs=9, got one with max_epochs=8"),
        ({"gates": "strict"}, "with gates='strict', got one with gates='permissive'"),
        ({"time_limit": "truncate"}, "with time_limit='truncate', got one with"),
        ({"batches_per_epoch": 2}, "with batches_per_epoch=2, got one with batches_per_epoch=1"),
        ({"minibatch_size": 4}, "with minibatch_size=4, got one with"),
        ({"validation_size": 41}, "with validation_size=41, got one with"),
        ({"reward": RewardConfig(stage=0.2)}, "with reward.stage=0.2, got one with reward.stage"),
        (
            {"reward": RewardConfig(intervention={Op.WAIT: 0.1})},
            r"with reward.intervention\[WAIT\]=0.1, got one with no reward",
        ),
        (
            {"reward": RewardConfig(mode="sparse"), "counterfactual_every": 2},
            "with counterfactual_every=2, got one with counterfactual_every=1",
        ),
    ],
)
def test_the_state_of_another_environment_is_refused(changes, message):
    other = small_env(**changes)
    before = play(other, [{}])[-1]
    params = other.population.params.clone()
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(small_env().state_dict())
    assert differences(other.observe(), before) == []
    assert other.population.params.equal(params)


def test_a_state_without_options_is_refused():
    saved = small_env().get_extra_state()
    del saved["options"]
    with pytest.raises(ValueError, match=r"with task.name='digits', got one with no task.name"):
        small_env().set_extra_state(saved)


# -- in torchrl's transforms and collectors --------------------------------------------------


class LastLegal(TensorDictModuleBase):
    """A policy without chance that counts its steps as a recurrent one would."""

    in_keys: ClassVar = ["action_mask", "count"]
    out_keys: ClassVar = [*(("action", head) for head in HEADS), ("next", "count")]

    def forward(self, data: TensorDict) -> TensorDict:
        masks, count = data["action_mask"], data["count"]
        steps = torch.arange(masks["op"].shape[1])
        op = (masks["op"] * (steps + 1)).argmax(1)
        rows = torch.arange(len(op))
        for head in HEADS:
            legal = masks["slot"][rows, op] if head == "slot" else masks[head]
            turn = (count.squeeze(1) + rows) % legal.shape[1]
            wanted = legal * (1 + (torch.arange(legal.shape[1]) - turn[:, None]) % legal.shape[1])
            data["action", head] = op if head == "op" else wanted.argmax(1)
        return data.set(("next", "count"), count + 1)


def make_world(seed: int) -> ResumableEnv:
    counter = TensorDictPrimer({"count": Unbounded((1,), dtype=torch.int64)}, expand_specs=True)
    env = small_env(seed=seed)
    return ResumableEnv(env, Compose(InitTracker(), counter, StepCounter(), RewardSum()))


def test_a_loop_goes_on_bitwise():
    env, other, policy = make_world(0), make_world(5), LastLegal()
    data, expected = env.reset(), []
    for step in range(20):
        stepped, data = env.step_and_maybe_reset(policy(data))
        if step == 10:
            saved = env.state_dict()
        expected.append(stepped.clone())
    other.load_state_dict(saved)
    data = other.reset()
    for step in range(11, 20):
        stepped, data = other.step_and_maybe_reset(policy(data))
        assert differences(stepped, expected[step]) == []
    assert other.reset()["step_count"].eq(0).all()  # only the first reset after loading goes on


def test_plain_steps_are_saved_too_and_a_step_instead_of_a_reset_goes_on():
    env, other, policy = make_world(0), make_world(5), LastLegal()
    stepped = env.step(policy(env.reset()))
    saved, root = env.state_dict(), env.step_mdp(stepped)
    expected = env.step(policy(root.clone()))
    other.load_state_dict(saved)
    got = other.step(policy(root.clone()))
    assert differences(got, expected) == []
    assert other.reset()["step_count"].eq(0).all()


def single(seed: int) -> Collector:
    return Collector(
        make_world(seed), LastLegal(), frames_per_batch=30, total_frames=-1, use_buffers=False
    )


def several(seed: int) -> MultiSyncCollector:
    worlds = [partial(make_world, seed), partial(make_world, seed + 1)]
    return MultiSyncCollector(
        worlds, LastLegal(), frames_per_batch=60, total_frames=-1, cat_results=0
    )


@pytest.mark.parametrize("make", [single, several])
def test_a_collector_goes_on_bitwise(make):
    collector, other = make(0), make(50)
    try:
        batches = iter(collector)
        next(batches)
        saved = collector.state_dict()
        expected = [next(batches).clone() for _ in range(2)]
        other.load_state_dict(saved)
        other.reset()
        for want, got in zip(expected, other, strict=False):
            want, got = want.exclude("collector"), got.exclude("collector")
            assert differences(got, want) == []
    finally:
        collector.shutdown()
        other.shutdown()
