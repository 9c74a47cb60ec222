"""The policy and its loss in torchrl's own tools: estimators, the parent loss, the Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, TransformedEnv
from torchrl.objectives import ClipPPOLoss, ValueEstimators
from torchrl.record.loggers.csv import CSVLogger
from torchrl.trainers import LogScalar, Trainer

from envs.actions import CAUSAL_RELEVANCE, HEADS
from esper_rl import FactoredClipPPOLoss, PolicyConfig, make_actor_critic
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from tests.support.fake_world import FakeWorld, collect, small_actor_critic
from tests.support.losses import make_loss


def test_the_parent_loss_takes_the_policy(batch: TensorDictBase, ac: ActorCritic) -> None:
    """A fresh rollout has ratio 1: stored actions are evaluated, none is drawn again."""
    loss = ClipPPOLoss(ac.actor, ac.critic, functional=False)
    loss.set_keys(
        action=[("action", head) for head in HEADS],
        sample_log_prob=[("action", f"{head}_log_prob") for head in HEADS],
    )
    with torch.no_grad():
        out = loss(batch.exclude("baseline", ("next", "baseline")))
    assert out["max_ratio"].item() == pytest.approx(1, abs=1e-5)
    assert out["kl_approx"].abs().max() < 1e-6
    assert out["clip_fraction"] == 0


def test_the_output_is_flat_and_named(batch: TensorDictBase, ac: ActorCritic) -> None:
    loss = make_loss(ac)
    out = loss(batch)
    assert set(out.keys(True, True)) == set(out.keys()) == set(loss.out_keys)
    assert all(value.shape == () for value in out.values())
    assert {f"head_entropy/{head}" for head in HEADS} <= set(loss.out_keys)


def test_entries_by_name_are_the_batch(batch: TensorDictBase, ac: ActorCritic) -> None:
    """As torchrl's losses take them: nested names joined, the outputs in order."""
    loss = make_loss(ac)
    entries = {
        "_".join([key] if isinstance(key, str) else key): batch[key]
        for key in loss.in_keys
        if key in batch.keys(True)
    }
    assert {"advantage", "value_target", "action_op", "action_mask_slot"} <= set(entries)
    wanted = loss(batch)
    for key, value in zip(loss.out_keys, loss(**entries), strict=True):
        torch.testing.assert_close(value, wanted[key], equal_nan=True)


@pytest.mark.parametrize(
    "options",
    [{"entropy_bonus": False}, {"log_explained_variance": False}, {"critic_coeff": None}],
    ids=str,
)
def test_what_is_left_out_is_no_output_either(
    batch: TensorDictBase, ac: ActorCritic, options: dict
) -> None:
    critic = None if "critic_coeff" in options else ac.critic
    loss = FactoredClipPPOLoss(
        ac.actor, critic, heads=ac.heads, relevance=CAUSAL_RELEVANCE, **options
    )
    assert set(loss(batch).keys()) == set(loss.out_keys)


def test_torchrls_trainer_trains_and_logs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    world = FakeWorld(num_envs=4)
    ac = small_actor_critic(world)
    collector = Collector(
        TransformedEnv(world, Compose(*ac.transforms())),
        ac.actor,
        frames_per_batch=24,
        total_frames=72,
        use_buffers=False,
    )
    loss = make_loss(ac)
    trainer = Trainer(
        collector=collector,
        total_frames=72,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-3),
        logger=CSVLogger("run", log_dir=str(tmp_path)),
        progress_bar=False,
        log_interval=1,
        clip_norm=1.0,
    )
    trainer.register_op("batch_process", lambda batch: compute_advantages(batch, ac))
    trainer.register_op("post_steps_log", LogScalar(("next", "reward"), logname="reward"))
    before = [parameter.clone() for parameter in ac.network.parameters()]
    trainer.train()
    changed = [not a.equal(b) for a, b in zip(before, ac.network.parameters(), strict=True)]
    assert all(changed)
    logged = {path.stem for path in tmp_path.rglob("*.csv")}
    assert any(name.startswith("head_entropy") for name in logged) or any(
        path.parent.name == "head_entropy" for path in tmp_path.rglob("*.csv")
    )


SIMPLE = [v for v in ValueEstimators if v is not ValueEstimators.VTrace]


@pytest.mark.parametrize("estimator", SIMPLE)
def test_torchrls_estimators_fill_in_advantages(estimator: ValueEstimators) -> None:
    """Where the value is one of the observation alone."""
    world = FakeWorld(num_envs=4)
    torch.manual_seed(0)
    config = PolicyConfig(hidden_size=16, lstm_layers=0, value_mode="state")
    ac = make_actor_critic(config, world)
    batch = collect(world, ac, steps=8)
    loss = make_loss(ac)
    loss.make_value_estimator(estimator, gamma=0.9)
    out = loss(batch)
    assert out["loss_objective"].isfinite()
    if estimator is ValueEstimators.TD0:
        value, after = (ac.network.value_head(memory(ac, each)) for each in (batch, batch["next"]))
        target = batch["next", "reward"] + 0.9 * ~batch["next", "terminated"] * after
        expected = 0.5 * (target - value).square().mean()
        torch.testing.assert_close(out["loss_critic"], expected)


def test_v_trace_is_refused() -> None:
    """It calls the actor without the stored op, on which the masks of the others depend."""
    world = FakeWorld(num_envs=2)
    config = PolicyConfig(hidden_size=16, lstm_layers=0, value_mode="state")
    loss = make_loss(make_actor_critic(config, world))
    with pytest.raises(NotImplementedError, match=r"8 heads.*VTrace.*ValueEstimators\.GAE"):
        loss.make_value_estimator(ValueEstimators.VTrace)


def memory(ac: ActorCritic, batch: TensorDictBase) -> torch.Tensor:
    """What a trunk without a state makes of observations."""
    network = ac.network
    embedded = network.blueprint_embedding(batch["blueprint_indices"])
    return network.lstm_norm(network.feature_net(batch["observation"], embedded))


@pytest.mark.parametrize("estimator", SIMPLE)
@pytest.mark.parametrize(
    ("options", "read"),
    [({}, "op"), ({"value_mode": "state"}, "is_init"), ({"lstm_layers": 0}, "op")],
    ids=str,
)
def test_estimators_that_would_be_wrong_are_refused(
    options: dict, read: str, estimator: ValueEstimators
) -> None:
    world = FakeWorld(num_envs=2)
    ac = make_actor_critic(PolicyConfig(hidden_size=16, **options), world)
    with pytest.raises(NotImplementedError, match=rf"reads .*{read}.*compute_advantages"):
        make_loss(ac).make_value_estimator(estimator)


def test_an_observation_that_is_not_finite_is_named() -> None:
    world = FakeWorld(num_envs=4)
    ac = small_actor_critic(world)
    state = TransformedEnv(world, Compose(*ac.transforms())).reset()
    state["observation"][2, 5] = torch.nan
    with pytest.raises(ValueError, match=r"'observation' must be finite, got .* at \[2\]"):
        ac.actor(state)
