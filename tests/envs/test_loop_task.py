"""Worlds from functions that make, train and validate a network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchrl.envs import ParallelEnv
from torchrl.envs.utils import check_env_specs

from envs import GrowingNetwork, LoopTask, MorphogenesisEnv, register_task
from envs.actions import Op, Stage
from esper_rl import RandomPolicy, load_policy, train
from esper_rl.config import compose_config

X = torch.randn(96, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


def make_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
    )


def train_epoch(network: GrowingNetwork, optimizer: torch.optim.Optimizer) -> None:
    for batch in torch.randperm(64)[:48].view(3, 16):
        optimizer.zero_grad()
        F.cross_entropy(network(X[batch]), Y[batch]).backward()
        optimizer.step()


def validate(network: GrowingNetwork) -> tuple[float, float]:
    logits = network(X[64:])
    right = (logits.argmax(1) == Y[64:]).double().mean()
    return F.cross_entropy(logits, Y[64:]).item(), float(right) * 100


def own_task(**options: object) -> LoopTask:
    adam = partial(torch.optim.Adam, lr=0.01)
    return LoopTask(
        make_network,
        train_epoch,
        validate,
        slots=["2", "3"],
        example=X[:1],
        make_optimizer=adam,
        **options,
    )


def make_env(num_envs: int = 2, max_epochs: int = 8, **options: object) -> MorphogenesisEnv:
    return MorphogenesisEnv(own_task(), num_envs, max_epochs=max_epochs, seed=3, **options)


def test_it_is_an_environment() -> None:
    env = make_env()
    check_env_specs(env)
    assert env.task.topology == "dense"
    assert (env.num_slots, env.task.num_slots) == (3, 2)


def test_rows_are_the_same_whatever_their_number() -> None:
    """And whatever the state of torch's generator is."""
    few, many = make_env(1), make_env(3)
    torch.manual_seed(1)
    one = few.reset()
    torch.manual_seed(2)
    all_rows = many.reset()
    for _ in range(8):
        drawn = many.rand_action(all_rows)
        all_rows = many.step(drawn)["next"]
        one = few.step(one.set("action", drawn["action"][:1]))["next"]
        assert one["observation"].equal(all_rows["observation"][:1])
        assert one["metrics", "interaction"].equal(all_rows["metrics", "interaction"][:1])
        torch.testing.assert_close(one["reward"], all_rows["reward"][:1])  # sums of many terms


def test_it_goes_on_bitwise_in_mid_episode() -> None:
    one, other = make_env(), make_env()
    torch.manual_seed(0)
    one.rollout(5, RandomPolicy())
    other.load_state_dict(one.state_dict())
    for _ in range(3):
        state = one.observe()
        action = one.rand_action(state.clone())["action"]
        after = [env.step(env.observe().set("action", action))["next"] for env in (one, other)]
        assert after[0]["observation"].equal(after[1]["observation"])
        assert after[0]["reward"].equal(after[1]["reward"])


def test_a_state_with_one_bad_row_changes_no_row() -> None:
    one, other = make_env(3), make_env(3)
    one.rollout(5, RandomPolicy())
    saved = one.state_dict()
    saved["_extra_state"]["networks"]["2"]["pieces"].popitem()
    before = [other.network(row).state_dict() for row in range(3)]
    with pytest.raises(ValueError, match="network like this one"):
        other.load_state_dict(saved)
    for row in range(3):
        now = other.network(row).state_dict()
        assert all(now[name].equal(values) for name, values in before[row].items())


def test_a_row_that_is_reset_leaves_the_others_as_they_are() -> None:
    env = make_env(3)
    env.rollout(4, RandomPolicy())
    before = [env.network(row).state_dict() for row in range(3)]
    marked = torch.tensor([[False], [True], [False]])
    state = env.reset(env.observe().set("_reset", marked))
    assert state["metrics", "epoch"].flatten().tolist() == [4, 0, 4]
    assert (state["metrics", "stage"][1] == Stage.DORMANT).all()
    for row in (0, 2):
        now = env.network(row).state_dict()
        assert all(now[name].equal(values) for name, values in before[row].items())


def test_networks_come_out_and_go_in() -> None:
    env = make_env()
    torch.manual_seed(0)
    env.rollout(6, RandomPolicy())
    network = env.network(0)
    loss, score = validate(network)
    assert score == pytest.approx(float(env.observe()["metrics", "val_accuracy"][0]), abs=1e-4)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    env.load_network(0, network)
    assert all(not weight.any() for weight in env.network(0).parameters())
    assert validate(env.network(0))[0] != loss
    with pytest.raises(ValueError, match="network must be like that of row 0"):
        env.load_network(0, GrowingNetwork([nn.Linear(2, 2), nn.Linear(2, 2)]))


def test_a_row_that_fails_goes_back() -> None:
    epochs: list[int] = []

    def breaks(network: GrowingNetwork, optimizer: torch.optim.Optimizer) -> None:
        train_epoch(network, optimizer)
        epochs.append(0)
        if len(epochs) == 6:  # the second row's third epoch
            with torch.no_grad():
                network.pieces[0].get_submodule("0").weight.fill_(torch.nan)

    env = MorphogenesisEnv(replace(own_task(), train_epoch=breaks), 2, max_epochs=6, seed=0)
    rollback = env.rollout(6)["next", "metrics", "rollback"].squeeze(-1)
    assert rollback.int().tolist() == [[0] * 6, [0, 0, 1, 0, 0, 0]]
    assert all(weight.isfinite().all() for weight in env.network(1).parameters())


def test_what_functions_do_wrong_is_said() -> None:
    lazy = replace(own_task(), train_epoch=lambda network, optimizer: None)
    with pytest.raises(RuntimeError, match="train_epoch must train the network with the optimizer"):
        MorphogenesisEnv(lazy, 1).rollout(2)
    wrong = replace(own_task(), validate=lambda network: (1.0, 250.0))
    with pytest.raises(ValueError, match=r"must be from 0 to 100, .* got 250"):
        MorphogenesisEnv(wrong, 1).reset()
    with pytest.raises(ValueError, match="device must be the CPU for a LoopTask"):
        own_task().make_population(1, 2, torch.device("meta"))
    with pytest.raises(TypeError, match=r"host must be a torch\.nn\.Module, .* got 3"):
        LoopTask(lambda: 3, train_epoch, validate, slots=["2"], example=X[:1])


def test_rows_in_several_processes() -> None:
    env = ParallelEnv(2, [partial(make_env, 1), partial(make_env, 1)], mp_start_method="fork")
    try:
        assert env.rollout(3)["observation"].shape[:3] == (2, 1, 3)
    finally:
        env.close()


def test_policies_are_trained_on_it(tmp_path) -> None:
    register_task("own_loop_for_a_test", own_task)
    options = ["task=own_loop_for_a_test", "env.num_envs=2", "env.max_epochs=4", "total_steps=16"]
    options += ["steps_per_iteration=8", "ppo.minibatches=1", "workers=1", "eval_episodes=2"]
    run = train(compose_config([*options, f"run_dir={tmp_path / 'run'}", "loggers=[]"]))
    assert load_policy(run).network is not None


def test_fewer_slots_may_be_used() -> None:
    env = make_env(1, num_slots=1)
    env.rollout(3, RandomPolicy())
    assert len(env.network(0).slots) == 1
    assert env.observe()["action_mask", "slot"].shape == (1, len(Op), 1)
