"""Episodes whose hosts have trained before them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from envs import MorphogenesisEnv, make_task
from envs.batched.randomness import Stream, fold
from envs.networks.segments import unflatten
from envs.observation import feature_columns
from envs.tasks.base import Task

EPOCHS = 4


def warm(name: str = "digits", epochs: int = EPOCHS, **sizes: int) -> Task:
    return replace(make_task(name), warm_up=epochs, **sizes)


def make_env(epochs: int = EPOCHS, rows: int = 3) -> MorphogenesisEnv:
    task = warm(epochs=epochs, batches_per_epoch=2, minibatch_size=16, validation_size=50)
    return MorphogenesisEnv(task, num_envs=rows, max_epochs=3, seed=4)


def test_hosts_begin_as_after_so_many_epochs() -> None:
    """Those of a fresh environment, trained here on the minibatches before the first."""
    env, cold = make_env(), make_env(epochs=0)
    env.reset()
    cold.reset()
    inputs, rows = cold.slot_inputs(cold.state.slots), torch.arange(3)
    untrained = cold.population.host_params.clone()
    accuracies = [cold.state.history.accuracy]
    for epoch in range(-EPOCHS, 0):
        keys = fold(cold.state.key, Stream.SHUFFLE, epoch)
        norms, _ = cold.population.train_epoch(inputs, keys, rows)
        accuracies.append(cold.population.validate(inputs, rows, ablate=False).accuracy)
    assert env.population.params.equal(cold.population.params)
    assert env.population.buffers.equal(cold.population.buffers)
    assert not env.population.host_params.equal(untrained)
    assert env.state.host_gradient_norm.equal(norms)
    assert env.state.history.accuracies.equal(torch.stack(accuracies, 1))
    assert env.state.history.best_accuracy.equal(torch.stack(accuracies, 1).amax(1))


def test_an_episode_begins_at_its_first_epoch() -> None:
    """The clock starts after it, and no seed is there."""
    env = make_env()
    state = env.reset()
    assert (state["metrics", "epoch"] == 0).all()
    assert (state["observation"][:, feature_columns("epoch_progress")] == 0).all()
    assert (state["blueprint_indices"] == -1).all()
    assert env.rollout(10)["next", "done"].sum(1).eq(1).all()
    assert env.rollout(10).shape == (3, 3)


def test_rows_that_go_on_are_untouched() -> None:
    env = make_env()
    state = env.reset()
    env.step(env.rand_action(state))
    before = env.state_dict()
    params = env.population.params.clone()
    marked = torch.tensor([[False], [True], [False]])
    env.reset(state.clone().set("_reset", marked))
    assert env.population.params[[0, 2]].equal(params[[0, 2]])
    assert not env.population.params[1].equal(params[1])
    after = env.state_dict()
    assert set(before) == set(after)
    assert env.state.epoch.tolist() == [1, 0, 1]
    assert env.state.host_gradient_norm[1] > 0


def test_a_row_is_the_same_among_fewer() -> None:
    many, few = make_env(rows=3), make_env(rows=2)
    assert many.reset()["observation"][:2].equal(few.reset()["observation"])


def test_the_varied_digits_are_told_apart_by_then() -> None:
    """Hosts without spatial kernels in their first block have learned less after ten epochs."""
    env = MorphogenesisEnv(warm("digits_varied", 10), num_envs=64, seed=1)
    accuracy = env.reset()["metrics", "val_accuracy"].squeeze(-1)
    segment = env.population.host.segments[0]
    first = unflatten(env.population.host_params[:, : segment.size], segment.shapes)
    coin = next(values for name, values in first.items() if name.endswith("coin"))[:, 0]
    assert accuracy[coin > 0].mean() > accuracy[coin <= 0].mean() + 10


@pytest.mark.parametrize("epochs", [-1, 2.5])
def test_a_bad_number_is_named(epochs: float) -> None:
    with pytest.raises((TypeError, ValueError), match=f"warm_up must be .*, got {epochs}"):
        replace(make_task("scaffold"), warm_up=epochs)
