"""The loss: against its parent, against plain tensors, and what reaches which weights."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import Compose, EnvBase, TransformedEnv
from torchrl.modules import MaskedCategorical
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from envs import MorphogenesisEnv
from envs.actions import CAUSAL_RELEVANCE, HEADS, Op
from esper_rl import FactoredClipPPOLoss, PolicyConfig, make_actor_critic
from esper_rl.growing import ENTROPY_WEIGHTS
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from tests.support.by_hand import mask_of, memory_by_hand
from tests.support.fake_world import NUM_OPS, FakeWorld, collect, small_actor_critic

LOSSES = ("loss_objective", "loss_critic", "loss_entropy")


def make_loss(ac: ActorCritic, **options: Any) -> FactoredClipPPOLoss:
    chosen = {"relevance": CAUSAL_RELEVANCE, "entropy_weights": ENTROPY_WEIGHTS} | options
    return FactoredClipPPOLoss(ac.actor, ac.critic, heads=ac.heads, **chosen)


def stir(module: nn.Module, strength: float = 0.1) -> None:
    """Move the weights, as updates between rollout and loss do."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(strength * torch.randn_like(parameter) * parameter.std(correction=0))


@pytest.fixture
def world() -> FakeWorld:
    return FakeWorld(num_envs=12)


@pytest.fixture
def ac(world: FakeWorld) -> ActorCritic:
    return small_actor_critic(world)


@pytest.fixture
def batch(world: FakeWorld, ac: ActorCritic) -> TensorDictBase:
    """Fresh steps ``[12, 10]`` with resets in between."""
    return compute_advantages(collect(world, ac, steps=10), ac)


# --- Against the parent -----------------------------------------------------------------------


def one_head() -> tuple[ProbabilisticTensorDictSequential, list[str], Tensor]:
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(4, 3), ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"],
            ["action"],
            distribution_class=Categorical,
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
        ),
    )
    return actor, ["action"], torch.ones(3, 1, dtype=torch.bool)


def independent_heads(
    composite: bool,
) -> tuple[ProbabilisticTensorDictSequential, list[str], Tensor]:
    """Heads of 3 and 5 choices: one distribution for both, as the parent wants it, or two."""
    sizes = {"move": 3, "speed": 5}
    logits = TensorDictModule(
        lambda x: x.split(list(sizes.values()), -1),
        ["both"],
        [("params", head, "logits") for head in sizes],
    )
    keys = [("action", head) for head in sizes]
    random: dict[str, Any] = {
        "default_interaction_type": InteractionType.RANDOM,
        "return_log_prob": True,
    }
    draws = [
        ProbabilisticTensorDictModule(
            {"logits": ("params", key[-1], "logits")},
            [key],
            distribution_class=Categorical,
            **random,
        )
        for key in keys
    ]
    if composite:
        draws = [
            ProbabilisticTensorDictModule(
                ["params"],
                keys,
                distribution_class=CompositeDistribution,
                distribution_kwargs={
                    "distribution_map": dict.fromkeys(sizes, Categorical),
                    "name_map": dict(zip(sizes, keys, strict=True)),
                },
                **random,
            )
        ]
    features = TensorDictModule(nn.Linear(4, 8), ["observation"], ["both"])
    actor = ProbabilisticTensorDictSequential(features, logits, *draws)
    return actor, list(sizes), torch.ones(3, 2, dtype=torch.bool)


def steps_of(actor: ProbabilisticTensorDictSequential, *shape: int) -> TensorDict:
    done = torch.rand(*shape, 1) < 0.2
    after = {
        "observation": torch.randn(*shape, 4),
        "reward": torch.randn(*shape, 1),
        "done": done,
        "terminated": done,
    }
    steps = TensorDict(observation=torch.randn(*shape, 4), next=after, batch_size=shape)
    with torch.no_grad():
        return actor(steps).exclude("logits", "params", "both")


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shape", [(40,), (5, 8)], ids=["steps", "sequences"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"clip_epsilon": (0.1, 0.3), "loss_critic_type": "smooth_l1"},
        {"normalize_advantage": True, "entropy_coeff": 0.3, "critic_coeff": 2.0},
        {"entropy_bonus": False},
        {"critic_coeff": 0.0},
        {"estimate": True},
    ],
    ids=str,
)
def test_equals_its_parent(heads: int, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    make = one_head if heads == 1 else lambda: independent_heads(composite=False)
    actor, names, table = make()
    parents_actor = actor if heads == 1 else independent_heads(composite=True)[0]
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    steps = steps_of(actor, *shape)
    stir(actor, 1.0)
    parents_actor.load_state_dict(actor.state_dict())

    estimate = "estimate" in options
    if not estimate:
        steps["advantage"], steps["value_target"] = torch.randn(2, *shape, 1)
    common = {"critic_coeff": 0.5, "loss_critic_type": "l2"} | options
    common.pop("estimate", None)
    ours = FactoredClipPPOLoss(actor, critic, heads=names, relevance=table, **common)
    parent = ClipPPOLoss(parents_actor, critic, functional=False, **common)
    results, gradients = [], []
    for loss, policy in ((ours, actor), (parent, parents_actor)):
        if estimate:
            loss.make_value_estimator(ValueEstimators.GAE, gamma=0.9, lmbda=0.8)
        out = loss(steps.clone())
        weights = [*policy.parameters(), *critic.parameters()]
        total = sum(out[key].sum() for key in LOSSES if key in out)
        results.append(out)
        gradients.append(torch.autograd.grad(total, weights, allow_unused=True))

    mine, parents = results
    assert 0 < mine["clip_fraction"] < 1
    assert {key for key in LOSSES if key in mine} == {key for key in LOSSES if key in parents}
    for key in (*LOSSES, "clip_fraction", "kl_approx", "entropy"):
        if key in parents:
            torch.testing.assert_close(mine[key], parents[key], atol=1e-6, rtol=1e-6)
    for gradient, parents_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, parents_gradient, atol=1e-6, rtol=1e-6)
    for key in ("ESS", "max_ratio", "mean_ratio", "explained_variance"):
        if key in parents and len(shape) == 1:
            torch.testing.assert_close(mine[key], parents[key].squeeze(-1), atol=1e-5, rtol=1e-5)
        assert key not in mine or mine[key].shape == ()


def test_keys_are_the_parents() -> None:
    actor, names, table = one_head()
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    ours = FactoredClipPPOLoss(actor, critic, heads=names, relevance=table)
    parent = ClipPPOLoss(actor, critic, functional=False)
    assert set(ours.in_keys) == set(parent.in_keys)
    assert ours.out_keys == parent.out_keys


def test_set_keys_is_honoured(batch: TensorDictBase, ac: ActorCritic) -> None:
    stir(ac.network)
    loss = make_loss(ac)
    wanted = loss(batch)
    renamed = batch.clone()
    pairs = {}
    for head in HEADS:
        pairs["action", head] = ("old", head)
        renamed["old", head] = renamed["action", f"{head}_log_prob"].clone()
        renamed["action", f"{head}_log_prob"] += 1.0
    renamed.rename_key_("advantage", "gain").rename_key_("value_target", "goal")
    loss.set_keys(
        action=list(pairs),
        sample_log_prob=list(pairs.values()),
        advantage="gain",
        value_target="goal",
    )
    got = loss(renamed)
    assert all(torch.equal(got[key], wanted[key]) for key in LOSSES)


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
        torch.testing.assert_close(out["head_entropy", head], entropy.mean())
        torch.testing.assert_close(out["relevant_entropy", head], entropy[here].mean())
        torch.testing.assert_close(out["head_kl", head], -change[here].mean())
        torch.testing.assert_close(out["head_clip_fraction", head], outside.float().mean())
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
        torch.testing.assert_close(out["op_critic_loss", str(index)], wanted)
        spread = error.squeeze(-1)[op == index].var(correction=0)
        torch.testing.assert_close(out["op_residual_variance", str(index)], spread)
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
            assert all(out["head_kl", head].abs().nan_to_num() < 1e-5 for head in HEADS)
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
        torch.testing.assert_close(out["normalized_entropy", head], normalized[most > 0].mean())
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
    normalized = out.pop("normalized_entropy")
    assert normalized["blueprint"].isnan(), "there was no step with a choice"
    assert all(value.isfinite() for value in out.values(True, True))
    gradients = [parameter.grad for parameter in ac.network.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert out["head_entropy", "blueprint"] == 0


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


# --- Any other environment --------------------------------------------------------------------


def test_heads_of_another_world_without_memory() -> None:
    """A gear that only matters when driving, with a mask that depends on what is done."""
    torch.manual_seed(0)

    def draw(head: str) -> ProbabilisticTensorDictModule:
        return ProbabilisticTensorDictModule(
            {"logits": f"{head}_logits", "mask": f"{head}_mask"},
            [head],
            distribution_class=MaskedCategorical,
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
        )

    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(4, 2), ["observation"], ["drive_logits"]),
        TensorDictModule(nn.Linear(4, 3), ["observation"], ["gear_logits"]),
        TensorDictModule(
            lambda x: torch.ones(*x.shape[:-1], 2).bool(), ["observation"], ["drive_mask"]
        ),
        draw("drive"),
        TensorDictModule(
            lambda drive: torch.tensor([[True, False, False], [False, True, True]])[drive],
            ["drive"],
            ["gear_mask"],
        ),
        draw("gear"),
    )
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    steps = steps_of(actor, 50)
    steps["advantage"], steps["value_target"] = torch.randn(2, 50, 1)
    loss = FactoredClipPPOLoss(
        actor,
        critic,
        heads=["drive", "gear"],
        relevance=torch.tensor([[True, False], [True, True]]),
    )
    out = loss(steps)
    assert out["max_ratio"].item() == pytest.approx(1, abs=1e-5)
    assert "explained_variance_soft" not in out
    assert out["loss_critic"].requires_grad


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (
            {"entropy_weights": ENTROPY_WEIGHTS | {"colour": 1.0}},
            ValueError,
            r"unknown: \['colour'\], missing: \[\]",
        ),
        ({"entropy_weights": {"op": 1.0}}, ValueError, r"missing: \['alpha_curve', .*'tempo'\]"),
        ({"relevance": CAUSAL_RELEVANCE.float()}, TypeError, "bool tensor, got torch.float32"),
        ({"relevance": CAUSAL_RELEVANCE[:, 1:]}, ValueError, r"\(6, 7\).*\(ops, 8\)"),
        ({"relevance": CAUSAL_RELEVANCE[0]}, ValueError, r"\(8,\).*\(ops, 8\)"),
        ({"entropy_coeff": {"op": 1.0}}, TypeError, "entropy_weights"),
        ({"entropy_weight": {"op": 1.0}}, TypeError, r"no options \['entropy_weight'\]"),
        ({"ratio": "each"}, ValueError, "ratio must be one of 'joint', 'per_head', got 'each'"),
        ({"clip_value": True}, NotImplementedError, "'clip_value'"),
        ({"delay_actor": True}, NotImplementedError, "'delay_actor'"),
        ({"functional": True}, NotImplementedError, "'functional'"),
        ({"separate_losses": True}, NotImplementedError, "'separate_losses'"),
        ({"samples_mc_entropy": 4}, NotImplementedError, "'samples_mc_entropy'"),
        ({"max_importance_ratio": 2.0}, NotImplementedError, "'max_importance_ratio'"),
    ],
)
def test_refusals(
    ac: ActorCritic, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make_loss(ac, **options)


def test_options_that_are_off_are_taken(ac: ActorCritic) -> None:
    make_loss(
        ac,
        clip_value=None,
        delay_actor=False,
        functional=False,
        separate_losses=False,
        max_importance_ratio=None,
    )


def test_missing_heads_are_refused(ac: ActorCritic) -> None:
    with pytest.raises(ValueError, match=r"heads is \('op', 'slot'\), but the actor draws \('op',"):
        FactoredClipPPOLoss(
            ac.actor, ac.critic, heads=("op", "slot"), relevance=CAUSAL_RELEVANCE[:, :2]
        )


def test_heads_in_another_order_are_refused(ac: ActorCritic) -> None:
    with pytest.raises(ValueError, match=r"heads is \('alpha_curve', .* but the actor draws"):
        FactoredClipPPOLoss(ac.actor, ac.critic, heads=HEADS[::-1], relevance=CAUSAL_RELEVANCE)


def test_other_action_keys_are_refused(batch: TensorDictBase, ac: ActorCritic) -> None:
    loss = make_loss(ac)
    loss.set_keys(action=[("action", "op")], sample_log_prob=[("action", "op_log_prob")])
    with pytest.raises(ValueError, match="but the actor draws"):
        loss(batch)


def test_without_a_critic(batch: TensorDictBase, ac: ActorCritic) -> None:
    loss = FactoredClipPPOLoss(
        ac.actor, None, heads=ac.heads, relevance=CAUSAL_RELEVANCE, critic_coeff=None
    )
    out = loss(batch.exclude("value_target"))
    assert "loss_critic" not in out
    torch.testing.assert_close(out["loss_objective"], make_loss(ac)(batch)["loss_objective"])


@pytest.mark.parametrize("ops", [5, 7])
def test_a_table_with_another_number_of_ops(
    batch: TensorDictBase, ac: ActorCritic, ops: int
) -> None:
    loss = make_loss(ac, relevance=torch.ones(ops, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=rf"relevance has {ops} rows, but head 'op' has 6"):
        loss(batch)


@pytest.mark.parametrize(
    "key",
    [
        "observation",
        "recurrent_state_h",
        "is_init",
        ("action_mask", "tempo"),
        ("action", "style"),
        ("action", "style_log_prob"),
        "advantage",
        "value_target",
    ],
)
def test_a_missing_entry_is_named(
    batch: TensorDictBase, ac: ActorCritic, key: str | tuple[str, str]
) -> None:
    with pytest.raises(KeyError) as refusal:
        make_loss(ac)(batch.exclude(key))
    assert f"the batch lacks the entry {key!r}" in str(refusal.value)


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 2)])
def test_an_advantage_of_another_shape(
    batch: TensorDictBase, ac: ActorCritic, shape: tuple[int, ...]
) -> None:
    batch["advantage"] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"'advantage' has shape .* needs \(12, 10, 1\)"):
        make_loss(ac)(batch)


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


def test_private_members_of_the_parent() -> None:
    """All that the loss relies on beside torchrl's public interface: look here when it changes."""
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    parent = ClipPPOLoss(one_head()[0], critic)
    source = inspect.getsource(FactoredClipPPOLoss)
    used = {name for name in re.findall(r"\b_[A-Za-z]\w+", source) if hasattr(parent, name)}
    assert used == {
        "_AcceptedKeys",
        "_clip_bounds",
        "_expand_loss_mask",
        "_has_critic",
        "_loss_mask_keys",
        "_maybe_normalize_advantage",
        "_reduce_loss",
        "_standardize_advantage",
    }
