"""The loss beside its parent: terms, gradients, keys, and what it uses of it."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    TensorDictModule,
)
from torch import Tensor, nn
from torchrl.objectives import ClipPPOLoss, ValueEstimators

from envs.actions import HEADS
from esper_rl import FactoredClipPPOLoss
from esper_rl.policy import ActorCritic
from tests.support.losses import LOSSES, independent_heads, make_loss, one_head, steps_of, stir


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
    masks = {("collector", "mask"), "shifted_valid"}
    assert set(ours.in_keys) == {*parent.in_keys, "advantage", "value_target", *masks}
    assert ours.out_keys[: len(parent.out_keys)] == parent.out_keys


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
        "_in_keys",
        "_loss_mask_keys",
        "_maybe_normalize_advantage",
        "_out_keys",
        "_reduce_loss",
        "_set_in_keys",
        "_standardize_advantage",
    }


class Scale(nn.Module):
    """Stands in for torchrl's running norm of advantages: counts, and divides by two."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def update(self, value_target: Tensor) -> None:
        self.updates += 1

    def scale(self) -> Tensor:
        return torch.tensor(2.0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_running_norm_is_updated_as_the_parent_does(stored: bool) -> None:
    """By advantages that the loss has estimated itself, not by those that it is given."""
    actor, names, table = one_head()
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    steps = steps_of(actor, 5, 8)
    if stored:
        steps["advantage"], steps["value_target"] = torch.randn(2, 5, 8, 1)
    norms = Scale(), Scale()
    ours = FactoredClipPPOLoss(actor, critic, heads=names, relevance=table, advantage_norm=norms[0])
    parent = ClipPPOLoss(actor, critic, functional=False, advantage_norm=norms[1])
    results = []
    for loss in (ours, parent):
        loss.make_value_estimator(ValueEstimators.GAE, gamma=0.9, lmbda=0.8)
        results.append(loss(steps.clone())["loss_objective"])
    torch.testing.assert_close(*results)
    assert [norm.updates for norm in norms] == [int(not stored)] * 2


def test_a_stored_baseline_is_none_of_the_actors() -> None:
    """Of an actor that writes none there is no explained variance to tell."""
    actor, names, table = one_head()
    critic = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    steps = steps_of(actor, 5, 8)
    steps["advantage"], steps["value_target"], steps["baseline"] = torch.randn(3, 5, 8, 1)
    loss = FactoredClipPPOLoss(actor, critic, heads=names, relevance=table)
    assert "explained_variance_soft" not in loss(steps)
    assert "explained_variance" in loss(steps)
