"""Batches as samplers and workers give them: slices, stacks, shared memory, recurrent modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.envs import Compose, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.modules import set_recurrent_mode

from esper_rl import PolicyConfig
from esper_rl.objectives import compute_advantages
from esper_rl.policy import ActorCritic
from tests.support.fake_world import FakeWorld, collect
from tests.support.losses import make_loss
from tests.support.policies import build, fresh

MEMORIES = {
    "lstm": PolicyConfig(hidden_size=16),
    "two layers": PolicyConfig(hidden_size=16, lstm_layers=2),
    "gru": PolicyConfig(hidden_size=16, lstm_layers=0, gru_layers=2),
    "attention": PolicyConfig(hidden_size=16, attention_span=3),
    "attention alone": PolicyConfig(hidden_size=16, lstm_layers=0, attention_span=5),
}
SLICE = 3


def replayed(ac: ActorCritic, rows: int = 6, steps: int = 24) -> TensorDictBase:
    """A flat sample of slices from the middle of episodes, each marked as a beginning."""
    batch = compute_advantages(collect(LongWorld(rows), ac, steps), ac)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(rows * steps, ndim=2),
        sampler=SliceSampler(slice_len=SLICE, end_key=("next", "done")),
        batch_size=16 * SLICE,
    )
    buffer.extend(batch)
    torch.manual_seed(1)
    sample = buffer.sample()
    sample["is_init"][::SLICE] = True  # as some versions of the sampler do by themselves
    return sample


class LongWorld(FakeWorld):
    """Episodes of ten steps and more."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self._lengths = self._lengths + 7


def spread_of_ratios(output: TensorDictBase) -> float:
    return max(abs(output["max_ratio"].item() - 1), abs(output["mean_ratio"].item() - 1))


@pytest.mark.parametrize("name", MEMORIES)
def test_slices_of_a_policy_that_has_not_changed_have_ratio_one(name: str) -> None:
    """Flat in recurrent mode and shaped as windows: both go on from the stored memory."""
    ac = build(MEMORIES[name], FakeWorld())
    sample = replayed(ac)
    loss = make_loss(ac)
    assert sample["is_init"].sum() >= 16
    assert sample.get("attention_count", sample["is_init"] * 2).max() > 1
    windows = loss(sample.reshape(-1, SLICE))
    assert spread_of_ratios(windows) < 1e-5
    with set_recurrent_mode(True):
        flat = loss(sample)
    assert spread_of_ratios(flat) < 1e-5
    for key in ("loss_critic", "loss_objective", "loss_entropy"):
        torch.testing.assert_close(flat[key], windows[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MEMORIES)
def test_the_recurrent_mode_that_is_set_counts(name: str) -> None:
    """Off: every step goes on from its own stored memory, also in ``[N, T]``."""
    ac = build(MEMORIES[name], FakeWorld())
    batch = compute_advantages(collect(LongWorld(4), ac, steps=12), ac)
    loss = make_loss(ac)
    wanted = loss(batch)
    with set_recurrent_mode(False):
        stepwise = loss(batch)
        distribution = ac.actor.get_dist(batch)
        value = ac.critic(batch.copy())["state_value"]
    for key in ("loss_critic", "loss_objective", "loss_entropy"):
        torch.testing.assert_close(stepwise[key], wanted[key], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        distribution.log_prob(batch)["action", "op_log_prob"],
        batch["action", "op_log_prob"],
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(value, ac.critic(batch.copy())["state_value"], rtol=1e-4, atol=1e-5)
    # Memory that was never written tells the two apart.
    lost = batch.clone()
    stored = [key for memory in ac.memories for key in memory.out_keys if key[0] == "next"]
    for _, key in stored:
        lost[key][:, 1:] = 0
    assert spread_of_ratios(loss(lost)) < 1e-5
    with set_recurrent_mode(False):
        assert spread_of_ratios(loss(lost)) > 1e-3


@pytest.mark.parametrize("name", ["attention", "attention alone"])
def test_what_was_attended_to_before_a_marked_step_is_what_was_stored(name: str) -> None:
    """Sequences with marks in their middle, against one step after the other."""
    ac = build(MEMORIES[name], FakeWorld())
    batch = collect(LongWorld(5), ac, steps=20)
    cut = batch[:, 4:16].clone()
    cut["is_init"][:, 0] = True
    cut["is_init"][2:, 5] = True
    cut["is_init"][3, 6] = True
    out = fresh(ac, cut)
    torch.testing.assert_close(out["baseline"], cut["baseline"], rtol=1e-4, atol=1e-5)


def serial(make: Callable[[], FakeWorld]) -> SerialEnv:
    return SerialEnv(2, make)


def parallel(make: Callable[[], FakeWorld]) -> ParallelEnv:
    return ParallelEnv(2, make, mp_start_method="fork")


@pytest.mark.parametrize("stack", [serial, parallel])
@pytest.mark.parametrize("name", MEMORIES)
def test_worlds_of_several_rows_beside_each_other(name: str, stack: Callable) -> None:
    ac = build(MEMORIES[name], FakeWorld(3))
    env = TransformedEnv(stack(lambda: FakeWorld(3)), Compose(*ac.transforms()))
    try:
        with torch.no_grad():
            batch = env.rollout(9, ac.actor, break_when_any_done=False)
    finally:
        env.close(raise_if_closed=False)
    assert batch.shape == (2, 3, 9)
    assert spread_of_ratios(make_loss(ac)(compute_advantages(batch, ac))) < 1e-5


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_rows_of_workers_stacked_or_below_each_other_are_the_same(name: str) -> None:
    """``[workers, N, T]``, as MultiSyncCollector gives it by default."""
    ac = build(MEMORIES[name], FakeWorld(6))
    with torch.no_grad():  # nothing random is left where the batch is cut
        ac.network.heads["op"][-1].bias[0] = 1e4
    batch = collect(FakeWorld(6), ac, steps=8)
    flat = compute_advantages(batch.clone(), ac)
    stacked = compute_advantages(batch.clone().reshape(2, 3, 8), ac)
    loss = make_loss(ac)
    for key in ("advantage", "value_target", ("next", "baseline")):
        assert stacked[key].shape == (2, 3, 8, 1)
        torch.testing.assert_close(stacked[key].flatten(0, 1), flat[key], rtol=1e-5, atol=1e-6)
    mine, theirs = loss(stacked), loss(flat)
    for key in ("loss_critic", "loss_objective", "loss_entropy", "explained_variance"):
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["locked", "shared", "lazy"])
def test_batches_that_cannot_be_written_into(kind: str, ac: ActorCritic) -> None:
    batch = collect(FakeWorld(4), ac, steps=8)
    wanted = compute_advantages(batch.clone(), ac)
    if kind == "lazy":
        batch = TensorDictBase.lazy_stack(list(batch.unbind(0)))
    batch = batch.share_memory_() if kind == "shared" else batch.lock_()
    before = set(batch.keys(True))
    out = compute_advantages(batch, ac)
    assert set(batch.keys(True)) == before
    assert batch.is_locked
    assert out["advantage"].shape == wanted["advantage"].shape
    assert out["value_target"][:, :-1].isfinite().all()
    assert make_loss(ac)(out)["max_ratio"] < 1 + 1e-5
