"""Collecting in one process and in several."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDictBase

from esper_rl import make_actor_critic
from esper_rl.config import TrainConfig, make_env
from esper_rl.errors import ConfigError
from esper_rl.policy import ActorCritic
from esper_rl.training.collection import collection_seconds, make_collector

Configure = Callable[..., TrainConfig]


def collect(config: TrainConfig, count: int = 2) -> tuple[ActorCritic, list[TensorDictBase]]:
    """Batches; after the first one the policy is turned into another one."""
    torch.manual_seed(3)
    actor_critic = make_actor_critic(config.policy, make_env(config, seed=0))
    collector = make_collector(config, actor_critic)
    try:
        batches = iter(collector)
        first = next(batches).clone()
        with torch.no_grad():
            for parameter in actor_critic.network.heads.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        collector.update_policy_weights_()
        others = []
        for _ in range(count - 1):
            others.append(next(batches).clone())
            collector.update_policy_weights_()
        return actor_critic, [first, *others]
    finally:
        collector.shutdown()


@torch.no_grad()
def op_log_probs(actor_critic: ActorCritic, batch: TensorDictBase) -> torch.Tensor:
    """Of the ops of whole episodes, under the policy as it is now."""
    network = actor_critic.network
    embedded = network.blueprint_embedding(batch["blueprint_indices"])
    features = network.feature_net(batch["observation"], embedded)
    logits = network.heads["op"](network.lstm_norm(network.lstm(features)[0]))
    logits = logits.masked_fill(~batch["action_mask", "op"], -torch.inf)
    return logits.log_softmax(-1).gather(-1, batch["action", "op"].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("workers", [1, 2])
def test_returns_are_discounted_and_begin_anew_with_an_episode(
    tiny_config: Configure, workers: int
) -> None:
    """Episodes of five steps, in batches of four."""
    words = ("steps_per_iteration=16", "total_steps=48", "ppo.gamma=0.9")
    _, batches = collect(tiny_config(*words, f"workers={workers}"))
    steps = torch.cat(batches, dim=1)
    rewards, wanted = steps["next", "reward"].squeeze(-1), torch.zeros(4, 8)
    for begin, end in ((0, 5), (5, 8)):
        discounts = 0.9 ** torch.arange(end - begin)
        wanted[:, begin:end] = (discounts * rewards[:, begin:end]).cumsum(1)
    assert rewards.abs().min() > 0
    torch.testing.assert_close(steps["next", "episode_return"].squeeze(-1), wanted)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_come_from_the_policy_as_it_is(tiny_config: Configure, workers: int) -> None:
    config = tiny_config(f"workers={workers}")
    actor_critic, (before, after) = collect(config)
    for batch in (before, after):
        assert batch.shape == (4, 5)
        assert batch["is_init"][:, 0].all()
        assert not batch["is_init"][:, 1:].any()
        assert len({tuple(row.flatten().tolist()) for row in batch["observation"]}) == 4
    torch.testing.assert_close(
        op_log_probs(actor_critic, after), after["action", "op_log_prob"], atol=1e-5, rtol=0
    )
    change = op_log_probs(actor_critic, before) - before["action", "op_log_prob"]
    assert change.abs().max() > 0.01


@pytest.mark.parametrize("workers", [1, 2])
def test_actions_are_drawn(tiny_config: Configure, workers: int) -> None:
    """Of three values of α, legal at any time, each is taken now and then."""
    _, batches = collect(tiny_config(f"workers={workers}"))
    drawn = torch.cat(batches)["action", "alpha_target"].flatten()
    shares = drawn.bincount(minlength=3) / len(drawn)
    assert shares.min() > 0.1
    assert shares.max() < 0.7


def test_ahead_batches_come_from_the_policy_before_the_last_update(tiny_config: Configure) -> None:
    actor_critic, batches = collect(tiny_config("collector=async", "total_steps=60"), count=3)
    changes = [
        (op_log_probs(actor_critic, batch) - batch["action", "op_log_prob"]).abs().max()
        for batch in batches
    ]
    assert changes[0] > 0.01
    assert changes[1] > 0.01
    assert changes[2] < 1e-5


def test_ahead_batches_are_those_of_processes_that_learn_an_update_later(
    tiny_config: Configure,
) -> None:
    """Before anything is learned there is no difference; memory and episodes go on."""
    words = ("steps_per_iteration=16", "total_steps=32", "workers=2")
    _, ahead = collect(tiny_config(*words, "collector=async"))
    _, waited = collect(tiny_config(*words))
    assert torch.equal(ahead[0]["observation"], waited[0]["observation"])
    assert torch.equal(ahead[1]["observation"][:, 0], waited[1]["observation"][:, 0])
    for batches in (ahead, waited):
        carried = batches[0]["next", "recurrent_state_h"][:, -1]
        assert torch.equal(batches[1]["recurrent_state_h"][:, 0], carried)
        assert carried.abs().max() > 0


def test_processes_give_the_same_batches_again(tiny_config: Configure) -> None:
    _, first = collect(tiny_config("workers=2"))
    _, second = collect(tiny_config("workers=2"))
    for one, other in zip(first, second, strict=True):
        for key in ("observation", ("next", "reward"), ("action", "blueprint")):
            assert torch.equal(one[key], other[key]), key


def test_seconds_are_those_of_a_worker(tiny_config: Configure) -> None:
    _, (_, batch) = collect(tiny_config())
    world, policy = collection_seconds(batch)
    assert world == pytest.approx(batch["next", "time_step"][0].sum().item())
    assert 0 < policy < 5


@pytest.mark.parametrize("workers", [0, 3, 8])
def test_workers_must_share_the_rows_evenly(tiny_config: Configure, workers: int) -> None:
    with pytest.raises(ConfigError, match=f"workers must be .*, got {workers}"):
        tiny_config(f"workers={workers}")
