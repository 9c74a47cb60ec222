"""The loss in other worlds, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import nn
from torchrl.modules import MaskedCategorical

from envs.actions import CAUSAL_RELEVANCE, HEADS
from esper_rl import FactoredClipPPOLoss
from esper_rl.growing import ENTROPY_WEIGHTS
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from tests.support.losses import make_loss, steps_of

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
            r"unknown \['colour'\], missing \[\]",
        ),
        ({"entropy_weights": {"op": 1.0}}, ValueError, r"missing \['alpha_curve', .*'tempo'\]"),
        ({"relevance": CAUSAL_RELEVANCE.float()}, TypeError, "bool tensor, got torch.float32"),
        ({"relevance": CAUSAL_RELEVANCE[:, 1:]}, ValueError, r"shape \[ops, 8\], .* got \[6, 7\]"),
        ({"relevance": CAUSAL_RELEVANCE[0]}, ValueError, r"shape \[ops, 8\], .* got \[8\]"),
        ({"entropy_coeff": {"op": 1.0}}, TypeError, "entropy_weights"),
        (
            {"entropy_weight": {"op": 1.0}},
            TypeError,
            r"options must be .*, got \['entropy_weight'\]",
        ),
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
    with pytest.raises(ValueError, match=r"heads must be .*'alpha_curve'\), got \('op', 'slot'\)"):
        FactoredClipPPOLoss(
            ac.actor, ac.critic, heads=("op", "slot"), relevance=CAUSAL_RELEVANCE[:, :2]
        )


def test_heads_in_another_order_are_refused(ac: ActorCritic) -> None:
    with pytest.raises(ValueError, match=r"the actor draws, \('op', .*, got \('alpha_curve', "):
        FactoredClipPPOLoss(ac.actor, ac.critic, heads=HEADS[::-1], relevance=CAUSAL_RELEVANCE)


def test_other_action_keys_are_refused(batch: TensorDictBase, ac: ActorCritic) -> None:
    loss = make_loss(ac)
    loss.set_keys(action=[("action", "op")], sample_log_prob=[("action", "op_log_prob")])
    with pytest.raises(ValueError, match="action keys must be those that the actor draws"):
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
    with pytest.raises(ValueError, match=f"relevance must have 6 rows, .* got {ops}"):
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
    with pytest.raises(ValueError, match=r"'advantage' must be of shape \[12, 10, 1\], got"):
        make_loss(ac)(batch)


# --- Batches that can't be learned from -------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["advantage", "value_target"])
def test_numbers_that_are_not_finite_are_named(
    batch: TensorDictBase, ac: ActorCritic, key: str, value: float
) -> None:
    batch[key][3, 4] = value
    with pytest.raises(ValueError, match=rf"'{key}' must be finite, got .* at \[3, 4\]"):
        make_loss(ac)(batch)
    batch["collector", "mask"] = torch.ones(batch.shape, dtype=torch.bool)
    batch["collector", "mask"][3, 4] = False  # padding may hold anything
    assert make_loss(ac)(batch)["loss_objective"].isfinite()


def test_a_target_of_another_shape_is_named(batch: TensorDictBase, ac: ActorCritic) -> None:
    batch["value_target"] = batch["value_target"].squeeze(-1)
    with pytest.raises(ValueError, match=r"'value_target' must be of shape \[12, 10, 1\], got"):
        make_loss(ac)(batch)


@pytest.mark.parametrize("head", ["op", "slot", "tempo"])
def test_a_stored_action_that_its_mask_forbids_is_named(
    batch: TensorDictBase, ac: ActorCritic, head: str
) -> None:
    choice = batch["action", head][5, 2]
    batch["action_mask", head][5, 2] = True
    batch["action_mask", head][5, 2, ..., choice] = False
    with pytest.raises(ValueError, match=rf"'{head}'\) must be legal under its mask, .* \[5, 2\]"):
        make_loss(ac)(batch)


def test_a_batch_of_padding_is_refused(batch: TensorDictBase, ac: ActorCritic) -> None:
    batch["collector", "mask"] = torch.zeros(batch.shape, dtype=torch.bool)
    for take in (make_loss(ac), lambda each: compute_advantages(each, ac)):
        with pytest.raises(ValueError, match="at least one step that isn't padding, got none"):
            take(batch)
    with pytest.raises(ValueError, match="at least one step"):
        make_loss(ac)(batch[:0])


def test_the_actors_entropy_weights_are_the_default(ac: ActorCritic) -> None:
    def weights() -> list[float]:
        loss = FactoredClipPPOLoss(ac.actor, ac.critic, heads=HEADS, relevance=CAUSAL_RELEVANCE)
        return loss.entropy_weights.tolist()

    assert weights() == pytest.approx(list(ENTROPY_WEIGHTS.values()))
    ac.actor.entropy_weights = dict.fromkeys(HEADS, 0.5)
    assert set(weights()) == {0.5}
