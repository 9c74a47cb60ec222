"""The governor: rows that fail go back to when they were well, and the others go on."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.invariants import differences
from envs.actions import Op, Stage
from envs.governor import Governor
from envs.lifecycle import Applied
from envs.populations.tensor_rows import TensorRows
from envs.registration import make_task
from tests.support.environments import (
    CONV_LIGHT,
    GROW,
    HOLDING,
    act,
    column,
    fully_live,
    play,
    reset_rows,
    small_env,
)
from tests.support.states import make_state

# -- when a row has failed -------------------------------------------------------------------


class OneWeight(TensorRows):
    """A population whose network is a number."""

    weights, optimizer_state = [torch.zeros(1, 1)], [torch.zeros(1, 1)]

    def __init__(self) -> None:
        self.keep_first()

    def count_seed_params(self, blueprint, algorithm):
        return torch.zeros(1, 1)


def nothing_done() -> Applied:
    no = torch.zeros(1, 1, dtype=torch.bool)
    return Applied(~no[0], torch.zeros(1, dtype=torch.int64), no, no, no, no, no)


def judged(losses: list[float], guessing: float | None = math.log(10)) -> list[bool]:
    """Does each epoch end in a rollback?"""
    governor, state, failures = Governor(OneWeight(), 10.0, guessing), make_state(), []
    for loss in losses:
        failed = governor.find_failures(state, torch.tensor([loss], dtype=torch.float32))
        governor.roll_back(state, failed, nothing_done())
        failures.append(failed.item())
    return failures


def judged_slowly(losses: list[float]) -> list[bool]:
    """The same by the rules' own words, one epoch after the other."""
    healthy, over, failures = [], 0, []
    for loss in losses:
        latest = healthy[-20:]
        mean, sigma = (fmean(latest), pstdev(latest)) if latest else (0.0, 0.0)
        for limit in (mean + 6 * sigma, 3 * mean, 0.6 * math.log(10) / mean if mean else 1):
            assume(not math.isclose(loss, limit, rel_tol=1e-4))
        too_high = not loss <= 10 and loss > mean + 6 * sigma and loss > 3 * mean
        over = over + 1 if too_high else 0
        knew = len(latest) >= 10 and mean < 0.6 * math.log(10)
        forgot = knew and abs(loss - math.log(10)) <= 0.065 * math.log(10)
        failed = not math.isfinite(loss) or over == 3 or forgot
        if not failed and not too_high:
            healthy.append(loss)
        over = 0 if failed else over
        failures.append(failed)
    return failures


LOSSES = [0.1, 0.5, 1.0, 1.2, 1.6, 2.1, 2.2, 2.4, 2.5, 9.0, 11.0, 35.0, 200.0, 3e4, math.inf]


@given(st.lists(st.sampled_from([*LOSSES, math.nan]), max_size=40))
def test_failures_are_those_of_the_rules(losses):
    assert judged(losses) == judged_slowly(losses)


KNOWS = [0.5] * 10


@pytest.mark.parametrize(
    ("losses", "fails"),
    [
        ([*KNOWS, 2.3], True),
        ([*KNOWS, 2.1], False),  # bad, but not guessing
        ([*KNOWS, 2.5], False),
        ([*KNOWS[1:], 2.3], False),  # nine epochs say too little
        ([2.3] * 30, False),  # it has never known anything
        ([1.4] * 10 + [2.3], False),
        ([*KNOWS, 11.0, 11.0], False),  # two epochs may be an accident
        ([*KNOWS, 11.0, 11.0, 11.0], True),
        ([*KNOWS, 11.0, 11.0, 9.0, 11.0, 11.0], False),
        ([8.0, 11.0, 11.0, 11.0], False),  # not far above the mean
        ([11.0, 11.0, 11.0], True),
        ([*KNOWS, math.nan], True),
        ([math.inf], True),
    ],
)
def test_a_row_fails(losses, fails):
    assert judged(losses)[-1] is fails
    assert not any(judged(losses)[:-1])


def test_where_guessing_means_nothing_no_loss_is_a_sign_of_it():
    assert not any(judged([*KNOWS, 2.3], guessing=None))


# -- faults in an environment ----------------------------------------------------------------

BAD = 2
OTHERS = [0, 1, 3]


def rolled_back(state) -> list[bool]:
    return state["metrics", "rollback"].squeeze(1).tolist()


def nan_in_the_host(env) -> None:
    env.population.host_params[BAD, 5] = math.nan


def infinity_in_a_seed(env) -> None:
    slot = (env.state.slots.blueprint[BAD] >= 0).nonzero().item()
    env.population.seed_params[slot][BAD, -1] = math.inf  # a place that no seed of that kind uses


def reset_classifier(env) -> None:
    """After the next epoch of training the row's classifier is as it was at creation."""
    train = env.population.train_epoch
    size = env.task.host.segments[-1].size

    def train_once(*args):
        norms = train(*args)
        env.population.host_params[BAD, -size:] = 0
        env.population.train_epoch = train
        return norms

    env.population.train_epoch = train_once


@pytest.mark.parametrize("fault", [nan_in_the_host, infinity_in_a_seed])
def test_the_other_rows_go_on_as_if_nothing_had_happened(fault):
    env, twin = (small_env(num_envs=4, max_epochs=12) for _ in range(2))
    state, healthy = fully_live(env)[-1], fully_live(twin)[-1]
    saved = env.population.saved[0].clone()
    fault(env)
    state, healthy = act(env, state), act(twin, healthy)
    assert rolled_back(state) == [False, False, True, False]
    assert env.population.params[BAD].equal(saved[BAD])
    assert not env.population.buffers[0][BAD].any()
    for _ in range(4):
        assert differences(state, healthy, OTHERS) == []
        assert env.population.params[OTHERS].equal(twin.population.params[OTHERS])
        assert all(value.isfinite().all() for value in state.values(True, True))
        assert env.observation_spec.is_in(state.select(*env.observation_spec.keys(True, True)))
        state, healthy = act(env, state), act(twin, healthy)
        assert not any(rolled_back(state))


def test_a_seed_that_explodes_takes_only_its_own_row_back():
    task = replace(make_task("digits"), seed_lr=1e4)
    env, twin = (small_env(task=task, num_envs=4) for _ in range(2))
    state, healthy = env.reset(), twin.reset()
    seen = [False] * 4
    for op in (Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT, Op.WAIT):
        ops = [op if row == BAD else Op.WAIT for row in range(4)]
        state = act(env, state, op=ops, slot=2, blueprint=CONV_LIGHT, alpha_target=2)
        healthy = act(twin, healthy)
        seen = [a or b for a, b in zip(seen, rolled_back(state), strict=True)]
        assert differences(state, healthy, OTHERS) == []
    assert seen == [False, False, True, False]


def test_a_row_that_has_lost_what_it_knew_goes_back():
    env, twin = (small_env(**LEARNS) for _ in range(2))
    state, healthy = (play(each, [{}] * 12)[-1] for each in (env, twin))
    assert (state["metrics", "val_loss"] < 1).all()
    saved = env.population.saved[0].clone()
    reset_classifier(env)
    state, healthy = act(env, state), act(twin, healthy)
    assert rolled_back(state) == [False, False, True, False]
    assert env.population.params[BAD].equal(saved[BAD])
    assert differences(state, healthy, OTHERS) == []
    assert state["metrics", "val_loss"][BAD] < 1  # the snapshot's
    state = act(env, state)
    assert not any(rolled_back(state))
    assert state["metrics", "val_loss"][BAD] < 1


LEARNS = {
    "task": "digits_full",
    "num_envs": 4,
    "max_epochs": 20,
    "batches_per_epoch": 5,
    "minibatch_size": 64,
    "validation_size": 200,
}


# -- what a rollback does --------------------------------------------------------------------


def broken(env, state, **heads):
    """The state after a step in which the last row's host is nan."""
    env.population.host_params[-1] = math.nan
    return act(env, state, **heads)


def test_a_row_shows_its_snapshot_and_its_seeds_are_lost():
    env = small_env(num_envs=2, max_epochs=12, validation_size=200)
    states = play(env, [*GROW, {}])
    state = broken(env, states[-1])
    assert rolled_back(state) == [False, True]
    start = states[0]
    for name in ("val_loss", "val_accuracy", "host_gradient_norm"):
        assert state["metrics", name][1].equal(start["metrics", name][1])
    for name in ("best_accuracy_norm", "loss_trend", "accuracy_volatility"):
        assert state["observation"][1, column(name)] == start["observation"][1, column(name)]
    assert state["metrics", "stage"][:, 0].tolist() == [Stage.BLENDING, Stage.EMBARGOED]
    assert state["blueprint_indices"][:, 0].tolist() == [CONV_LIGHT, -1]
    assert state["metrics", "seed_params"][1] == 0
    assert state["metrics", "epoch"].squeeze(1).tolist() == [5, 5]  # time goes on
    assert state["reward_terms", "governor"].squeeze(1).tolist() == [0, -10]
    assert not state["action_mask", "slot"][1, Op.GERMINATE, 0]
    for _ in range(6):
        state = act(env, state)
    assert state["metrics", "stage"][1, 0] == Stage.DORMANT


@pytest.mark.parametrize(
    ("plan", "op", "slot", "done"),
    [
        (GROW[:1], Op.ADVANCE, 0, False),
        (GROW[:1], Op.WAIT, 0, True),
        (GROW[:1], Op.GERMINATE, 1, False),
        (HOLDING, Op.FOSSILIZE, 0, False),
        (HOLDING, Op.PRUNE, 0, True),  # at once: the seed is gone by its own action
        (HOLDING, Op.ADVANCE, 0, False),  # refused anyway
    ],
)
def test_an_action_on_a_seed_that_is_lost_is_undone(plan, op, slot, done):
    env = small_env(num_envs=2, max_epochs=12, validation_size=200)
    state = broken(env, play(env, plan)[-1], op=op, slot=slot)
    assert rolled_back(state) == [False, True]
    assert state["last_action_success"][1].item() is done
    assert state["last_action_op"][1] == op
    assert state["metrics", "executed_op"][1] == (op if done else Op.WAIT)
    terms = state["reward_terms"]
    if not done:
        for name in ("intervention", "fossilize", "prune"):
            assert terms[name][1] == 0, name
    assert state["blueprint_indices"][1].tolist() == [-1] * 3


def test_fossilized_seeds_come_back_bitwise():
    env = small_env(num_envs=2, max_epochs=14, validation_size=200)
    plan = [*HOLDING, {"op": Op.FOSSILIZE}, {"op": Op.GERMINATE, "slot": 1, "blueprint": 7}, {}]
    states = play(env, plan)
    fossilized = states[len(HOLDING) + 1]
    params = env.population.saved[0].clone()
    state = broken(env, states[-1])
    assert state["metrics", "stage"][1].tolist() == [
        Stage.FOSSILIZED,
        Stage.EMBARGOED,
        Stage.DORMANT,
    ]
    assert env.population.params[1].equal(params[1])
    for name in ("val_accuracy", "val_loss", "contribution", "shapley", "gradient_norm"):
        assert state["metrics", name][1].equal(fossilized["metrics", name][1]), name
    assert state["metrics", "seed_params"][1].equal(fossilized["metrics", "seed_params"][1])


def test_the_third_rollback_ends_the_episode_and_a_reset_forgets_it():
    env = small_env(num_envs=2, max_epochs=12, time_limit="truncate")
    state = env.reset()
    for times in (1, 2, 3):
        state = broken(env, state)
        assert rolled_back(state) == [False, True]
        assert state["terminated"].squeeze(1).tolist() == [False, times == 3]
        assert state["done"].squeeze(1).tolist() == [False, times == 3]
    assert not state["truncated"].any()
    state = reset_rows(env, state, [1])
    assert not any(rolled_back(state))
    assert not state["done"].any()
    state = broken(env, state)
    assert not state["done"].any()


def test_the_third_rollback_at_the_time_limit_is_no_truncation():
    """The value of what would come after it is none: the network has failed for good."""
    env = small_env(num_envs=2, max_epochs=3, time_limit="truncate")
    state = env.reset()
    for _ in range(3):
        state = broken(env, state)
    assert state["done"].all()
    assert state["truncated"].squeeze(1).tolist() == [True, False]
    assert state["terminated"].squeeze(1).tolist() == [False, True]


@pytest.mark.parametrize("op", [Op.WAIT, Op.PRUNE])
def test_fossils_interact_after_a_rollback_as_in_the_snapshot(op):
    """And no longer with a seed that is lost, or gone since."""
    env = small_env(num_envs=2, max_epochs=40, validation_size=200)
    plan = [{**heads, "slot": slot} for slot in range(3) for heads in HOLDING]
    plan += [{"op": Op.FOSSILIZE, "slot": slot} for slot in (0, 1)]
    state = play(env, plan)[-1]
    env.state.slots.interaction = torch.tensor([[0.0, 3, 1], [3, 0, 1], [1, 1, 0]]).repeat(2, 1, 1)
    env.governor.save(env.state, torch.ones(2, dtype=torch.bool))
    state = act(env, state, op=op, slot=2)
    env.state.slots.interaction = torch.full((2, 3, 3), 8.0)
    state = broken(env, state)
    assert rolled_back(state) == [False, True]
    assert state["metrics", "stage"][1].tolist() == [Stage.FOSSILIZED] * 2 + [Stage.EMBARGOED]
    assert state["metrics", "interaction"][1].tolist() == [[0, 3, 0], [3, 0, 0], [0, 0, 0]]


# -- snapshots -------------------------------------------------------------------------------


def test_rows_are_saved_every_five_healthy_epochs():
    env = small_env(num_envs=1, max_epochs=12)
    state = env.reset()
    past = [env.population.params.clone()]
    for epoch in range(1, 12):
        state = act(env, state)
        past.append(env.population.params.clone())
        assert env.population.saved[0].equal(past[epoch - epoch % 5]), epoch


def test_an_epoch_over_the_limits_is_not_saved():
    env = small_env(num_envs=1, max_epochs=12)
    state = play(env, [{}] * 4)[-1]
    before = env.population.saved[0].clone()
    validate, high = env.population.validate, [20.0, 20.0]

    def too_high(*args, **options):
        return replace(validate(*args, **options), loss=torch.tensor([high.pop()]))

    env.population.validate = too_high
    state = act(env, act(env, state))
    assert env.population.saved[0].equal(before)
    env.population.validate = validate
    state = act(env, state)
    assert env.population.saved[0].equal(env.population.params)


def test_a_fossil_of_an_epoch_over_the_limits_waits_for_a_healthy_one():
    env = small_env(num_envs=1, max_epochs=20)
    state = play(env, HOLDING)[-1]
    before = env.population.saved[0].clone()
    validate = env.population.validate

    def too_high(*args, **options):
        return replace(validate(*args, **options), loss=torch.tensor([20.0]))

    env.population.validate = too_high
    state = act(env, state, op=Op.FOSSILIZE)
    assert state["metrics", "stage"][0, 0] == Stage.FOSSILIZED
    assert env.population.saved[0].equal(before)
    env.population.validate = validate
    act(env, state)
    assert env.population.saved[0].equal(env.population.params)


def test_a_row_that_is_not_stepped_keeps_its_snapshot():
    env = small_env(num_envs=2, max_epochs=12)
    state = play(env, [{}] * 4)[-1]
    saved = env.population.saved[0].clone()
    env.population.params[1] += 1  # were it saved, it would be seen
    data = act_partly(env, state, [True, False])
    assert not env.population.saved[0][0].equal(saved[0])
    assert env.population.saved[0][1].equal(saved[1])
    assert rolled_back(data) == [False, False]


def act_partly(env, state, stepped: list[bool]):
    chosen = state.clone().set("action", env.action_spec.zero()["action"])
    return env.step(chosen.set("_step", torch.tensor(stepped)[:, None]))["next"]
