"""The loss against plain tensors: by hand, gradients, padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import Compose, EnvBase, TransformedEnv

from envs import MorphogenesisEnv
from envs.actions import CAUSAL_RELEVANCE, HEADS, Op
from esper_rl import PolicyConfig, make_actor_critic
from esper_rl.growing import ENTROPY_WEIGHTS
from esper_rl.policy import ActorCritic
from tests.support.by_hand import mask_of, memory_by_hand
from tests.support.fake_world import NUM_OPS, FakeWorld, collect, small_actor_critic
from tests.support.losses import LOSSES, make_loss, stir

# --- Against plain tensors --------------------------------------------------------------------


def test_by_hand(batch: TensorDictBase, ac: ActorCritic) -> None:
    stir(ac.network, 0.3)
    before = batch.clone()
    out = make_loss(ac, entropy_coeff=0.02, critic_coeff=0.7)(batch)
    assert (batch == before).all(), "the batch stays as it is"
    assert set(batch.keys(True, True)) == set(before.keys(True, True))

    op, advantage = batch["action", "op"], batch["advantage"].squeeze(-1)
    memory = memory_by_hand(ac, batch)
    changes, bonus, soft = [], 0.0, None
    for i, head in enumerate(HEADS):
        log_probs = (
            ac.network.heads(memory)[i]
            .masked_fill(~mask_of(batch, head), -torch.inf)
            .log_softmax(-1)
        )
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e9)).sum(-1)
        bonus = bonus + ENTROPY_WEIGHTS[head] * entropy.mean()
        here = CAUSAL_RELEVANCE[op, i]
        new = log_probs.gather(-1, batch["action", head][..., None]).squeeze(-1)
        change = torch.where(here, new - batch["action", f"{head}_log_prob"], 0.0)
        changes.append(change)
        outside = (change[here].exp() < 0.8) | (change[here].exp() > 1.2)
        assert outside.any()
        torch.testing.assert_close(out[f"head_entropy/{head}"], entropy.mean())
        torch.testing.assert_close(out[f"relevant_entropy/{head}"], entropy[here].mean())
        torch.testing.assert_close(out[f"head_kl/{head}"], -change[here].mean())
        torch.testing.assert_close(out[f"head_clip_fraction/{head}"], outside.float().mean())
        soft = ac.network.value_head(memory, log_probs.exp()) if head == "op" else soft
    torch.testing.assert_close(out["loss_entropy"], -0.02 * bonus)

    ratio = sum(changes).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    torch.testing.assert_close(out["loss_objective"], -gain.mean())
    outside = (ratio < 0.8) | (ratio > 1.2)
    torch.testing.assert_close(out["clip_fraction"], outside.float().mean())
    torch.testing.assert_close(out["kl_approx"], -ratio.log().mean())
    torch.testing.assert_close(out["ESS"], ratio.sum() ** 2 / ratio.square().sum() / ratio.numel())
    torch.testing.assert_close(out["max_ratio"], ratio.max())

    hard = ac.network.value_head(memory, torch.eye(NUM_OPS)[op])
    error = batch["value_target"] - hard
    torch.testing.assert_close(out["loss_critic"], 0.7 * error.square().mean())
    for index in range(NUM_OPS):
        wanted = error.squeeze(-1)[op == index].square().mean()
        torch.testing.assert_close(out[f"op_critic_loss/{index}"], wanted)
        spread = error.squeeze(-1)[op == index].var(correction=0)
        torch.testing.assert_close(out[f"op_residual_variance/{index}"], spread)
    for key, value in (("explained_variance", hard), ("explained_variance_soft", soft)):
        residual = (batch["value_target"] - value).var(correction=0)
        wanted = 1 - residual / batch["value_target"].var(correction=0)
        torch.testing.assert_close(out[key], wanted, atol=1e-5, rtol=1e-5)
    assert all(value.shape == () for value in out.values(True, True))


@pytest.mark.parametrize("by_op", [True, False], ids=["by_op", "one_row"])
def test_a_fresh_rollout_has_ratio_one_at_every_head_and_step(by_op: bool) -> None:
    world = FakeWorld(num_envs=8, by_op=by_op)
    ac = small_actor_critic(world)
    batch = collect(world, ac, steps=12)
    assert batch["is_init"][:, 1:].any()
    batch["advantage"] = batch["value_target"] = torch.ones(8, 12, 1)
    for i in range(len(HEADS)):
        alone = torch.zeros(NUM_OPS, len(HEADS), dtype=torch.bool)
        alone[:, i] = True
        # With an advantage of 1 a step's loss is minus its ratio, wherever that isn't clipped.
        ratio = -make_loss(ac, relevance=alone, reduction="none")(batch)["loss_objective"]
        assert ratio.shape == (8, 12)
        assert ratio.log().abs().max() < 1e-5


class AllSlots(FakeWorld):
    """Every slot is legal, whatever the op."""

    def _observe(self) -> TensorDict:
        state = super()._observe()
        state["action_mask", "slot"].fill_(True)
        return state


def growing_networks() -> MorphogenesisEnv:
    return MorphogenesisEnv(
        num_envs=4, max_epochs=5, validation_size=40, minibatch_size=8, batches_per_epoch=1
    )


@pytest.mark.parametrize("make_world", [growing_networks, AllSlots])
def test_a_collectors_fresh_rollout_has_ratio_one(make_world: Callable[[], EnvBase]) -> None:
    torch.manual_seed(0)
    world = make_world()
    ac = make_actor_critic(PolicyConfig(hidden_size=16), world)
    world = TransformedEnv(world, Compose(*ac.transforms()))
    frames = 12 * world.batch_size[0]
    collector = Collector(world, ac.actor, frames_per_batch=frames, total_frames=2 * frames)
    everything = torch.ones(NUM_OPS, len(HEADS), dtype=torch.bool)
    for batch in collector:
        assert batch["is_init"][:, 1:].any()
        batch["advantage"] = batch["value_target"] = torch.ones(*batch.shape, 1)
        for table in (CAUSAL_RELEVANCE, everything):
            out = make_loss(ac, relevance=table, reduction="none")(batch)
            assert (-out["loss_objective"]).log().abs().max() < 1e-5
            assert all(out[f"head_kl/{head}"].abs().nan_to_num() < 1e-5 for head in HEADS)
    collector.shutdown()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("joint", [True, False])
def test_gradients_by_hand(
    batch: TensorDictBase, ac: ActorCritic, joint: bool, normalize: bool
) -> None:
    stir(ac.network, 0.3)
    options = {"ratio": "joint" if joint else "per_head", "normalize_entropy": normalize}
    out = make_loss(ac, **options)(batch)
    got = sum(out[key] for key in LOSSES)

    op, advantage = batch["action", "op"], batch["advantage"].squeeze(-1)
    memory = memory_by_hand(ac, batch)
    changes, bonus = [], torch.zeros(12, 10)
    for i, (head, logits) in enumerate(zip(HEADS, ac.network.heads(memory), strict=True)):
        log_probs = logits.masked_fill(~mask_of(batch, head), -1e9).log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        most = mask_of(batch, head).sum(-1).log()
        normalized = torch.where(most > 0, entropy / most.clamp(min=0.1), 0.0)
        torch.testing.assert_close(out[f"normalized_entropy/{head}"], normalized[most > 0].mean())
        bonus = bonus + ENTROPY_WEIGHTS[head] * (normalized if normalize else entropy)
        new = log_probs.gather(-1, batch["action", head][..., None]).squeeze(-1)
        changes.append(CAUSAL_RELEVANCE[op, i] * (new - batch["action", f"{head}_log_prob"]))
    gain = torch.zeros(12, 10)
    for ratio in [sum(changes).exp()] if joint else [change.exp() for change in changes]:
        gain = gain + torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    error = batch["value_target"] - ac.network.value_head(memory, torch.eye(NUM_OPS)[op])
    wanted = -gain.mean() + 0.5 * error.square().mean() - 0.01 * bonus.mean()

    torch.testing.assert_close(got, wanted)
    weights = list(ac.network.parameters())
    pairs = zip(*(torch.autograd.grad(loss, weights) for loss in (got, wanted)), strict=True)
    for gradient, by_hand in pairs:
        torch.testing.assert_close(gradient, by_hand, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("choices", ["drawn", "one"])
def test_bf16(batch: TensorDictBase, ac: ActorCritic, choices: str) -> None:
    """Within 2 % of float32, and no nan where a head has one legal choice."""
    if choices == "one":
        for head in HEADS[2:]:
            batch["action_mask", head][:] = False
            batch["action_mask", head].scatter_(-1, batch["action", head][..., None], True)
    stir(ac.network, 0.3)
    loss = make_loss(ac)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(batch)
    sum(got[key] for key in LOSSES).backward()
    assert all(weight.grad.isfinite().all() for weight in ac.network.parameters())
    wanted = loss(batch)
    total = sum(wanted[key] for key in LOSSES)
    torch.testing.assert_close(sum(got[key] for key in LOSSES), total, rtol=0.02, atol=0)
    for key in ("loss_critic", "loss_entropy"):
        torch.testing.assert_close(got[key], wanted[key], rtol=0.02, atol=0)


def test_single_steps(batch: TensorDictBase, ac: ActorCritic) -> None:
    stir(ac.network)
    steps = batch.reshape(-1)
    out = make_loss(ac, reduction="none")(steps)
    assert out["loss_objective"].shape == (120,)
    # Memory of the stored states, so only the first steps of sequences agree exactly.
    whole = make_loss(ac, reduction="none")(batch)
    for key in LOSSES:
        torch.testing.assert_close(out[key].reshape(12, 10)[:, 0], whole[key][:, 0])


def test_shuffled_single_steps_go_on_from_their_stored_memory(
    batch: TensorDictBase, ac: ActorCritic
) -> None:
    """As one sequence they would go on from each other's, and no ratio would be 1."""
    steps = batch.reshape(-1)[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    assert not steps["is_init"].all()
    out = make_loss(ac)(steps)
    assert out["max_ratio"].item() == pytest.approx(1, abs=1e-5)
    assert out["kl_approx"].abs() < 1e-6
    expected = make_loss(ac)(batch)["explained_variance"]
    torch.testing.assert_close(out["explained_variance"], expected, atol=1e-4, rtol=1e-4)


def test_one_pass_of_the_trunk(batch: TensorDictBase, ac: ActorCritic) -> None:
    passes = []
    ac.network.lstm.register_forward_hook(lambda *_: passes.append(1))
    make_loss(ac)(batch)
    assert len(passes) == 1


# --- What reaches which weights ---------------------------------------------------------------


@pytest.mark.parametrize("op", list(Op))
def test_no_gradient_for_heads_that_did_not_matter(
    batch: TensorDictBase, ac: ActorCritic, op: Op
) -> None:
    batch["collector", "mask"] = batch["action", "op"] == op
    assert batch["collector", "mask"].any()
    make_loss(ac)(batch)["loss_objective"].backward()
    for head, relevant in zip(HEADS, CAUSAL_RELEVANCE[op], strict=True):
        gradients = [parameter.grad for parameter in ac.network.heads[head].parameters()]
        reached = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        assert reached == bool(relevant), head
    assert all(parameter.grad is None for parameter in ac.network.value_head.parameters())


def test_critic_loss_trains_trunk_and_value_only(batch: TensorDictBase, ac: ActorCritic) -> None:
    make_loss(ac)(batch)["loss_critic"].backward()
    network = ac.network
    assert all(parameter.grad is None for parameter in network.heads.parameters())
    for part in ("blueprint_embedding", "feature_net", "lstm", "lstm_norm", "value_head"):
        for parameter in getattr(network, part).parameters():
            assert parameter.grad.any(), part


def test_entropy_trains_every_head(batch: TensorDictBase, ac: ActorCritic) -> None:
    make_loss(ac)(batch)["loss_entropy"].backward()
    assert all(head[-1].weight.grad.any() for head in ac.network.heads.values())
    assert all(parameter.grad is None for parameter in ac.network.value_head.parameters())


def test_entropy_coefficient_can_be_scheduled(batch: TensorDictBase, ac: ActorCritic) -> None:
    loss = make_loss(ac, entropy_coeff=0.01)
    first = loss(batch)["loss_entropy"]
    loss.entropy_coeff = 0.03
    assert isinstance(loss.entropy_coeff, Tensor)
    torch.testing.assert_close(loss(batch)["loss_entropy"], 3 * first)


def test_one_legal_choice_gives_no_nan(batch: TensorDictBase, ac: ActorCritic) -> None:
    for head in HEADS:
        if head == "slot":
            continue
        mask, choice = batch["action_mask", head], batch["action", head][..., None]
        batch["action_mask", head] = torch.zeros_like(mask).scatter(-1, choice, True)
        batch["action", f"{head}_log_prob"].zero_()
    out = make_loss(ac)(batch)
    sum(out[key] for key in LOSSES).backward()
    normalized = {key: out.pop(key) for key in list(out.keys()) if "normalized_entropy/" in key}
    assert normalized["normalized_entropy/blueprint"].isnan(), "there was no step with a choice"
    assert all(value.isfinite() for value in out.values())
    gradients = [parameter.grad for parameter in ac.network.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert out["head_entropy/blueprint"] == 0


# --- Padding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"normalize_advantage": True}, {"reduction": "sum"}])
def test_padding_never_counts(
    batch: TensorDictBase, ac: ActorCritic, options: dict[str, Any]
) -> None:
    padded = split_trajectories(batch.clone(), prefix="collector")
    assert not padded["collector", "mask"].all()
    batch["collector", "mask"] = torch.ones(12, 10, dtype=torch.bool)
    stir(ac.network)
    loss, weights = make_loss(ac, **options), list(ac.network.parameters())
    whole, split = loss(batch), loss(padded)
    for key, value in whole.items(True, True):
        torch.testing.assert_close(split[key], value, atol=1e-5, rtol=1e-4)
    gradients = [
        torch.autograd.grad(sum(out[k] for k in LOSSES), weights) for out in (whole, split)
    ]
    for gradient, splits_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(splits_gradient, gradient, atol=1e-5, rtol=1e-4)


def test_a_mask_of_another_name(batch: TensorDictBase, ac: ActorCritic) -> None:
    padded = split_trajectories(batch.clone(), prefix="collector")
    loss = make_loss(ac)
    wanted = loss(padded)["loss_objective"]
    padded["counts"] = padded["collector", "mask"]
    loss.loss_mask_key = "counts"
    assert torch.equal(loss(padded.exclude("collector"))["loss_objective"], wanted)


def test_baseline_and_value_have_keys_of_their_own(batch: TensorDictBase, ac: ActorCritic) -> None:
    """What the rollout stored is never taken for the update's value, nor the other way round."""
    assert "baseline" in ac.actor.out_keys
    assert "state_value" not in ac.actor.out_keys
    assert "state_value" in ac.critic.out_keys
    spoiled = batch.clone()
    spoiled["baseline"].fill_(torch.nan)
    spoiled["state_value"] = torch.full_like(batch["baseline"], torch.nan)
    expected, got = (make_loss(ac)(each) for each in (batch, spoiled))
    for key in ("loss_critic", "explained_variance", "explained_variance_soft"):
        assert got[key].equal(expected[key])
        assert got[key].isfinite()
