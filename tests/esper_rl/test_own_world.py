"""Actor-critic and loss on a world without seeds: masks by the first head, and memory."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.utils import check_env_specs

from esper_rl import make_actor_critic
from esper_rl.policy import ActorCriticConfig
from examples.own_world import NUMBERS, Move, Recall, learn


def test_specs() -> None:
    check_env_specs(Recall(num_envs=3))


def test_what_is_drawn_is_legal() -> None:
    torch.manual_seed(0)
    env = Recall(num_envs=64, delay=2)
    ac = make_actor_critic(ActorCriticConfig(hidden_size=8), env)
    steps = TransformedEnv(env, Compose(*ac.transforms())).rollout(3, ac.actor)
    moves, numbers = steps["action", "move"], steps["action", "number"]
    assert (moves[:, :2] == Move.NOTHING).all()
    assert (moves[:, 2] != Move.NOTHING).all()
    assert len(numbers[:, 2].unique()) == 4
    assert NUMBERS[moves, numbers].all()


def test_a_policy_with_memory_solves_it() -> None:
    """Some runs stay at half of the cues for long, which ones depends on the machine's rounding."""
    config = ActorCriticConfig(hidden_size=64)
    assert any(learn(config, iterations=250, delay=20, seed=seed) > 0.7 for seed in (3, 0, 1))


def test_a_policy_without_memory_can_only_guess() -> None:
    rate = learn(ActorCriticConfig(hidden_size=32, lstm_layers=0), iterations=8, delay=20)
    assert rate == pytest.approx(0.25, abs=0.1)
