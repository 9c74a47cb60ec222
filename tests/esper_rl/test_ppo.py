"""One update of a policy, against the same written out, and what it takes and keeps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase

from envs.actions import CAUSAL_RELEVANCE
from esper_rl import PPO, FactoredClipPPOLoss, PPOConfig
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from tests.support.fake_world import FakeWorld, collect, small_actor_critic

ROWS, STEPS = 12, 10


def rollout(ac: ActorCritic) -> TensorDictBase:
    torch.manual_seed(1)
    return collect(FakeWorld(num_envs=ROWS), ac, STEPS)


def fresh() -> ActorCritic:
    return small_actor_critic(FakeWorld(num_envs=ROWS), decided=False)


def weights(ac: ActorCritic) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in ac.network.parameters()]


def updated(batch: TensorDictBase, **numbers: Any) -> tuple[list[torch.Tensor], dict[str, float]]:
    """Weights after an update of a fresh policy, and its metrics."""
    ac = fresh()
    ppo = PPO(ac, CAUSAL_RELEVANCE, PPOConfig(**numbers))
    torch.manual_seed(2)
    metrics = ppo.update(batch)
    return weights(ac), metrics


def assert_same(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert all(a.equal(b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("progress", "anneal_lr", "lr"), [(0.0, True, 1e-2), (0.75, False, 1e-2), (0.75, True, 2.5e-3)]
)
def test_an_update_is_this(progress: float, anneal_lr: bool, lr: float) -> None:
    config = PPOConfig(epochs=3, minibatches=4, lr=1e-2, anneal_lr=anneal_lr)
    ac, other = fresh(), fresh()
    batch = rollout(ac)
    torch.manual_seed(2)
    metrics = PPO(ac, CAUSAL_RELEVANCE, config).update(batch, progress)

    torch.manual_seed(2)
    coefficient = 0.006 * (1 - progress) ** 2
    loss = FactoredClipPPOLoss(
        other.actor,
        other.critic,
        heads=other.heads,
        relevance=CAUSAL_RELEVANCE,
        clip_epsilon=0.2,
        critic_coeff=0.5,
        entropy_coeff=coefficient,
        normalize_entropy=True,
    )
    optimizer = torch.optim.Adam(other.network.parameters(), lr=lr)
    steps = compute_advantages(batch.clone(), other, gamma=0.995, lmbda=0.9)
    norms, values = [], []
    for _ in range(3):
        for rows in torch.randperm(ROWS).chunk(4):
            terms = loss(steps[rows])
            optimizer.zero_grad()
            (terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(other.network.parameters(), 1.0).item())
            values.append(terms["loss_critic"].item())
            optimizer.step()
    assert_same(weights(ac), weights(other))
    assert metrics["grad_norm"] == pytest.approx(sum(norms) / 12)
    assert metrics["loss_critic"] == pytest.approx(sum(values) / 12)
    assert metrics["entropy_coeff"] == pytest.approx(coefficient)
    assert metrics["lr"] == pytest.approx(lr)


def test_passes_end_at_the_first_step_that_shows_the_policy_too_far() -> None:
    """The first minibatch shows no distance, for nothing is learned yet; the second one does."""
    batch = rollout(fresh())
    numbers = {"epochs": 3, "minibatches": 4, "lr": 1e-2}
    usual, metrics = updated(batch, **numbers)
    far, far_metrics = updated(batch, **numbers, target_kl=1e6)
    near, near_metrics = updated(batch, **numbers, target_kl=1e-6)
    assert (metrics["passes"], far_metrics["passes"], near_metrics["passes"]) == (3, 3, 2 / 4)
    assert_same(usual, far)
    once, _ = updated(batch, **numbers | {"epochs": 1}, target_kl=1e-6)
    assert_same(near, once)


def test_rows_of_workers_that_are_stacked_are_rows() -> None:
    batch = rollout(fresh())
    flat, flat_metrics = updated(batch)
    stacked, metrics = updated(batch.reshape(3, 4, STEPS))
    assert_same(flat, stacked)
    assert metrics == pytest.approx(flat_metrics, nan_ok=True)


def test_a_batch_in_shared_memory_stays_as_it_is() -> None:
    batch = rollout(fresh())
    shared = batch.clone().share_memory_()
    keys = set(shared.keys(True))
    from_shared, _ = updated(shared)
    assert set(shared.keys(True)) == keys == set(batch.keys(True))
    assert_same(from_shared, updated(batch)[0])


def test_more_minibatches_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"minibatches must be .* 1 to {ROWS}.*, got 13"):
        updated(rollout(fresh()), minibatches=13)


def test_a_step_that_is_not_finite_is_not_taken() -> None:
    ac = fresh()
    batch = rollout(ac)
    before = weights(ac)
    ppo = PPO(ac, CAUSAL_RELEVANCE)
    *_, value_bias = ac.network.value_head.parameters()
    value_bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="gradient norm became nan: this step isn't taken"):
        ppo.update(batch)
    assert_same(weights(ac), before)


def test_steps_that_break_the_policy_are_said_to_have() -> None:
    """Not its masks, whose choices have no probability any more."""
    with pytest.raises(FloatingPointError, match="the updates have broken the policy"):
        updated(rollout(fresh()), lr=1e20)


def test_it_goes_on_where_another_one_was_saved() -> None:
    ac, other = fresh(), fresh()
    batch = rollout(ac)
    ppo, copy = PPO(ac, CAUSAL_RELEVANCE), PPO(other, CAUSAL_RELEVANCE)
    ppo.update(batch)
    copy.load_state_dict(deepcopy(ppo.state_dict()))
    for each in (ppo, copy):
        torch.manual_seed(3)
        each.update(batch)
    assert_same(weights(ac), weights(other))


def test_what_was_saved_of_another_optimizer_changes_nothing() -> None:
    ac, other = fresh(), fresh()
    ppo, copy = PPO(ac, CAUSAL_RELEVANCE), PPO(other, CAUSAL_RELEVANCE)
    ppo.update(rollout(ac))
    state, before = deepcopy(ppo.state_dict()), weights(other)
    state["optimizer"]["param_groups"][0]["params"].pop()
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        copy.load_state_dict(state)
    assert_same(weights(other), before)


def test_what_was_saved_of_another_network_changes_nothing() -> None:
    ac = fresh()
    ppo, before = PPO(ac, CAUSAL_RELEVANCE), weights(ac)
    state = {name: deepcopy(part) for name, part in ppo.state_dict().items()}
    for number, (name, weight) in enumerate(state["network"].items()):
        state["network"][name] = weight[:-1] if number == 3 else weight + 1
    with pytest.raises(RuntimeError, match="size mismatch"):
        ppo.load_state_dict(state)
    assert_same(weights(ac), before)


def test_progress_is_a_share() -> None:
    ac = fresh()
    with pytest.raises(ValueError, match="progress must be a number of at least 0 and at most 1"):
        PPO(ac, CAUSAL_RELEVANCE).update(rollout(ac), progress=20)
