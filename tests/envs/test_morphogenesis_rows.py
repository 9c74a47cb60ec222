"""Rows are reproducible and independent of each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.invariants import differences
from envs.actions import Op
from envs.registration import make_task
from tests.support.environments import (
    CONV_HEAVY,
    act,
    fully_live,
    play,
    random_states,
    reset_rows,
    small_env,
    watch_training,
)
from tests.support.populations import matrices

# -- determinism -----------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_episodes():
    first, second = (random_states(small_env(seed=5), 6) for _ in range(2))
    assert all(differences(a, b) == [] for a, b in zip(first, second, strict=True))


def test_set_seed_starts_over_and_the_next_episode_differs():
    env = small_env(seed=5)
    first, second = random_states(env, 4), random_states(env, 4)
    env.set_seed(5)
    again = random_states(env, 4)
    assert all(differences(a, b) == [] for a, b in zip(first, again, strict=True))
    assert (first[1]["metrics", "val_loss"] != second[1]["metrics", "val_loss"]).all()


def test_global_random_state_does_not_matter():
    torch.manual_seed(1)
    first = fully_live(small_env())
    torch.manual_seed(2)
    second = fully_live(small_env())
    assert all(differences(a, b) == [] for a, b in zip(first, second, strict=True))


def test_stepping_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fully_live(small_env())
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("num_envs", [1, 2, 7])
def test_a_row_draws_the_same_whatever_the_number_of_rows(num_envs):
    large, small = small_env(num_envs=9), small_env(num_envs=num_envs)
    first, second = (random_states(env, 1) for env in (large, small))
    for a, b in zip(first, second, strict=True):
        for name in ("val_accuracy", "val_loss", "host_gradient_norm"):
            a_rows = a["metrics", name][:num_envs]
            torch.testing.assert_close(a_rows, b["metrics", name], rtol=1e-5, atol=1e-6)
    assert first[0]["metrics", "val_accuracy"][:num_envs].equal(
        second[0]["metrics", "val_accuracy"]
    )


def test_a_row_starts_with_the_same_parameters_whatever_the_number_of_rows():
    # Nothing learns: parameters stay as they were drawn.
    task = replace(make_task("digits"), host_lr=0.0, seed_lr=0.0)
    large, small = small_env(task=task, num_envs=9), small_env(task=task, num_envs=2)
    for env in (large, small):
        state = env.reset()
        assert env.population.host_params.any(1).all()
        act(env, state, op=Op.GERMINATE, blueprint=CONV_HEAVY)
        assert (state["blueprint_indices"] == -1).all()
    assert large.population.host_params[:2].equal(small.population.host_params)
    mine, theirs = large.population.seed_params[0], small.population.seed_params[0]
    assert mine[:2].equal(theirs)
    assert (mine[0] != mine[1]).any()


def test_rows_and_seeds_differ():
    losses = [small_env(num_envs=6, seed=s).reset()["metrics", "val_loss"] for s in (0, 1)]
    assert torch.cat(losses).unique().numel() == 12


def test_every_row_epoch_and_episode_shuffles_its_own_way():
    env, small = small_env(batches_per_epoch=3), small_env(num_envs=2, batches_per_epoch=3)
    given, fewer = watch_training(env), watch_training(small)
    for _ in range(2):
        play(env, [{}] * 2)
        play(small, [{}] * 2)
    epochs = torch.stack([indices for _, indices in given])
    assert epochs.shape == (4, 3, 3, 8)
    assert epochs[:, :2].equal(torch.stack([indices for _, indices in fewer]))
    drawn = epochs.flatten(0, 1).flatten(1).tolist()
    assert len({tuple(examples) for examples in drawn}) == 12
    assert all(len(set(examples)) == 24 for examples in drawn)  # none twice in an epoch
    assert epochs.min() >= 0
    assert epochs.max() < 1297


# -- rows do not influence each other ----------------------------------------------------------


def test_a_partial_reset_leaves_the_other_rows_bitwise_untouched():
    env, twin = small_env(num_envs=5), small_env(num_envs=5)
    state, untouched = fully_live(env)[-1], fully_live(twin)[-1]
    state = reset_rows(env, state, [1, 3])
    others, fresh = [0, 2, 4], [1, 3]
    assert differences(state, untouched, others) == []
    assert (state["metrics", "epoch"][fresh] == 0).all()
    assert (state["blueprint_indices"][fresh] == -1).all()
    assert state["last_action_success"][fresh].all()
    assert not state["done"].any()
    assert not any(term[fresh].any() for term in state["reward_terms"].values())
    population, twin_population = env.population, twin.population
    for mine, theirs in zip(matrices(population), matrices(twin_population), strict=True):
        assert mine[others].equal(theirs[others])
    for _ in range(2):
        state, untouched = act(env, state), act(twin, untouched)
    for name in ("val_loss", "alpha", "contribution", "gradient_norm"):
        a, b = state["metrics", name][others], untouched["metrics", name][others]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        state["observation"][others], untouched["observation"][others], rtol=1e-4, atol=1e-5
    )


def test_a_partial_reset_leaves_like_rows_bitwise_untouched_in_their_future():
    # Without seeds the rows run in the same batches whatever was reset.
    env, twin = small_env(num_envs=4), small_env(num_envs=4)
    state, untouched = play(env, [{}] * 2)[-1], play(twin, [{}] * 2)[-1]
    state = reset_rows(env, state, [2])
    for _ in range(3):
        state, untouched = act(env, state), act(twin, untouched)
        assert differences(state, untouched, [0, 1, 3]) == []


def test_resetting_no_row_changes_nothing():
    env = small_env()
    state = fully_live(env)[-1]
    assert differences(reset_rows(env, state, []), state) == []


def test_a_partial_reset_leaves_the_next_episode_of_other_rows_alone():
    env, twin = small_env(), small_env()
    reset_rows(env, env.reset(), [1])
    twin.reset()
    state, untouched = env.reset(), twin.reset()
    same = state["metrics", "val_loss"] == untouched["metrics", "val_loss"]
    assert same.squeeze(1).tolist() == [True, False, True]


def test_a_row_reset_alone_starts_the_episode_it_would_have_started_anyway():
    env, twin = small_env(), small_env()
    state = reset_rows(env, fully_live(env)[-1], [1])
    fully_live(twin)
    again = twin.reset()
    for name in ("val_accuracy", "val_loss"):
        torch.testing.assert_close(state["metrics", name][1], again["metrics", name][1])


def test_a_new_seed_takes_effect_at_each_rows_next_reset():
    env, twin = small_env(), small_env()
    state, untouched = play(env, [{}])[-1], play(twin, [{}])[-1]
    env.set_seed(9)
    state, untouched = reset_rows(env, state, [1]), reset_rows(twin, untouched, [1])
    state, untouched = act(env, state), act(twin, untouched)
    same = state["metrics", "val_loss"] == untouched["metrics", "val_loss"]
    assert same.squeeze(1).tolist() == [True, False, True]
