"""Advantages: against the recursion by hand, and which states they look at again."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.collectors.utils import split_trajectories
from torchrl.envs.utils import ExplorationType, set_exploration_type

from envs.actions import Op
from esper_rl.objectives import compute_advantages, final_value_loss
from esper_rl.policy import ActorCritic
from tests.support.fake_world import NUM_OPS, FakeWorld, collect

GAMMA, LMBDA = 0.9, 0.7


@pytest.fixture
def batch(world: FakeWorld, ac: ActorCritic) -> TensorDictBase:
    return collect(world, ac, steps=11)


@pytest.fixture
def waiting(ac: ActorCritic) -> ActorCritic:
    """Always waits, so that no bootstrap is random."""
    with torch.no_grad():
        ac.network.heads["op"][-1].bias[Op.WAIT] = 1e4
    return ac


def cuts(batch: TensorDictBase) -> Tensor:
    """Bool ``[N, T]``: truncated, or last of the batch without having terminated."""
    cut = batch["next", "truncated"].squeeze(-1).clone()
    cut[:, -1] |= ~batch["next", "terminated"][:, -1, 0]
    return cut


def hard_values(ac: ActorCritic, after: TensorDictBase) -> Tensor:
    """``[K, ops]``: the value of every op at K ``next`` states."""
    embedded = ac.network.blueprint_embedding(after["blueprint_indices"])
    features = ac.network.feature_net(after["observation"], embedded)
    state = tuple(after[f"recurrent_state_{s}"].transpose(0, 1).contiguous() for s in "hc")
    memory = ac.network.lstm_norm(ac.network.lstm(features[:, None], state)[0])
    one_hot = torch.eye(NUM_OPS).expand(len(features), -1, -1)
    return ac.network.value_head(memory.expand(-1, NUM_OPS, -1), one_hot).squeeze(-1).detach()


def test_by_hand(batch: TensorDictBase, ac: ActorCritic) -> None:
    out = compute_advantages(batch.clone(), ac, gamma=GAMMA, lmbda=LMBDA)
    value, next_value = batch["baseline"][..., 0], out["next", "baseline"][..., 0]
    terminated = batch["next", "terminated"][..., 0]
    cut = cuts(batch)
    assert cut[:, :-1].any()
    assert (cut[:, -1] & ~batch["next", "done"][:, -1, 0]).any()
    assert terminated.any()

    advantage = torch.zeros(12, 11)
    for row in range(12):
        following = 0.0
        for t in reversed(range(11)):
            if terminated[row, t]:
                bootstrap = torch.tensor(0.0)
            elif cut[row, t]:
                bootstrap = next_value[row, t]
            else:
                bootstrap = value[row, t + 1]
                assert next_value[row, t] == bootstrap
            if terminated[row, t] or cut[row, t]:
                following = 0.0
            delta = batch["next", "reward"][row, t, 0] + GAMMA * bootstrap - value[row, t]
            following = delta + GAMMA * LMBDA * following
            advantage[row, t] = following
    torch.testing.assert_close(out["value_target"][..., 0], advantage + value)
    wanted = (advantage - advantage.mean()) / advantage.std(correction=0)
    torch.testing.assert_close(out["advantage"][..., 0], wanted)


def test_bootstrap_is_the_value_of_a_legal_op_at_the_last_observation(
    batch: TensorDictBase, ac: ActorCritic
) -> None:
    cut = cuts(batch)
    after = batch["next"][cut]
    values, legal = hard_values(ac, after), after["action_mask", "op"]
    taken = set()
    for seed in range(20):
        torch.manual_seed(seed)
        with set_exploration_type(ExplorationType.DETERMINISTIC):  # whatever the caller explores
            got = compute_advantages(batch.clone(), ac)["next", "baseline"][cut]
        hit = torch.isclose(got, values, atol=1e-6) & legal
        assert hit.any(1).all()
        taken.add(tuple(hit.int().argmax(1).tolist()))
    assert len(taken) > 1, "the op is drawn, not fixed"


@pytest.mark.parametrize("op", list(Op))
def test_bootstrap_with_one_legal_op(batch: TensorDictBase, ac: ActorCritic, op: Op) -> None:
    batch["next", "action_mask", "op"][:] = torch.eye(NUM_OPS)[op].bool()
    batch["next", "action_mask", "slot"][:] = True
    cut, terminated = cuts(batch), batch["next", "terminated"].squeeze(-1)
    got = compute_advantages(batch.clone(), ac)["next", "baseline"].squeeze(-1)
    torch.testing.assert_close(got[cut], hard_values(ac, batch["next"][cut])[:, op])
    assert not got[terminated].any()
    between = ~cut & ~terminated
    following = batch["baseline"].roll(-1, 1).squeeze(-1)
    assert torch.equal(got[between], following[between])


def test_only_cut_steps_are_evaluated(batch: TensorDictBase, ac: ActorCritic) -> None:
    rows = []
    ac.network.lstm.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:2]))
    compute_advantages(batch, ac)
    assert set(rows) == {(int(cuts(batch).sum()), 1)}


def test_nothing_is_evaluated_when_all_has_terminated(ac: ActorCritic) -> None:
    world = FakeWorld(num_envs=12)
    world._lengths[:] = 4
    world._truncates[:] = False
    batch = collect(world, ac, steps=8)
    ac.network.lstm.register_forward_hook(lambda *_: pytest.fail("the trunk ran"))
    out = compute_advantages(batch, ac)
    assert not out["next", "baseline"][:, [3, 7]].any()
    assert out["next", "baseline"][:, 2].all()


def test_no_gradient_and_no_trace_of_the_policy(batch: TensorDictBase, ac: ActorCritic) -> None:
    before = set(batch.keys(True, True))
    out = compute_advantages(batch, ac)
    assert set(out.keys(True, True)) - before == {
        "advantage",
        "value_target",
        ("next", "baseline"),
    }
    assert not any(value.requires_grad for value in out.values(True, True))


def test_padding_neither_counts_nor_leaks(batch: TensorDictBase, waiting: ActorCritic) -> None:
    whole = compute_advantages(batch.clone(), waiting)
    padded = split_trajectories(batch.clone(), prefix="collector")
    valid = padded["collector", "mask"]
    assert not valid.all()
    out = compute_advantages(padded, waiting)
    # Trajectories come in the order of rows and, within them, of time.
    for key in ("advantage", "value_target", ("next", "baseline")):
        torch.testing.assert_close(out[key][valid], whole[key].reshape(-1, 1))


def test_equal_advantages_stay_finite(batch: TensorDictBase, waiting: ActorCritic) -> None:
    batch["next", "reward"].zero_()
    batch["baseline"].zero_()
    with torch.no_grad():
        waiting.network.value_head[-1].weight.zero_()
    assert not compute_advantages(batch, waiting)["advantage"].any()


@pytest.mark.parametrize("key", ["recurrent_state_h", "observation", ("action_mask", "tempo")])
def test_a_missing_entry_is_named(
    batch: TensorDictBase, ac: ActorCritic, key: str | tuple[str, str]
) -> None:
    del batch["next"][key]
    with pytest.raises(KeyError) as refusal:
        compute_advantages(batch, ac)
    assert f"{key!r} under 'next'" in str(refusal.value)


def test_steps_without_time_are_refused(batch: TensorDictBase, ac: ActorCritic) -> None:
    with pytest.raises(
        ValueError, match=r"batch must be of shape \[..., rows, steps\], got \[12\]"
    ):
        compute_advantages(batch[:, 0], ac)


def truncated_steps(batch: TensorDictBase) -> Tensor:
    """Bool ``[N, T]``."""
    return (batch["next", "truncated"] & ~batch["next", "terminated"]).squeeze(-1)


def test_final_values_by_hand(batch: TensorDictBase, waiting: ActorCritic) -> None:
    truncated = truncated_steps(batch)
    assert 1 < truncated.sum() < (batch["next", "done"]).sum()
    values = hard_values(waiting, batch["next"][truncated])[:, Op.WAIT]
    expected = values.square().sum() / batch.numel()
    torch.testing.assert_close(final_value_loss(batch, waiting), expected)


def test_final_values_teach_the_value_and_no_action_head(
    batch: TensorDictBase, ac: ActorCritic
) -> None:
    final_value_loss(batch, ac).backward()
    for name, parameter in ac.network.named_parameters():
        got = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert got is not name.startswith("heads."), name


def test_no_final_value_where_nothing_was_truncated(batch: TensorDictBase, ac: ActorCritic) -> None:
    truncated = truncated_steps(batch)
    batch["next", "terminated"][truncated] = True
    assert final_value_loss(batch, ac) == 0


def test_padding_has_no_final_value(batch: TensorDictBase, waiting: ActorCritic) -> None:
    truncated = truncated_steps(batch)
    row, step = truncated.nonzero()[0].tolist()
    valid = torch.ones(batch.shape, dtype=torch.bool)
    valid[row, step] = False
    whole = final_value_loss(batch, waiting) * batch.numel()
    batch.set(("collector", "mask"), valid)
    rest = final_value_loss(batch, waiting) * (batch.numel() - 1)
    missing = hard_values(waiting, batch["next"][row, step][None])[0, Op.WAIT].square()
    torch.testing.assert_close(whole - rest, missing)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gamma": 2.0}, "gamma must be a number of at least 0 and at most 1, got 2.0"),
        ({"gamma": float("nan")}, "gamma must be .* got nan"),
        ({"lmbda": -1.0}, "lmbda must be a number of at least 0 and at most 1, got -1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(
    batch: TensorDictBase, ac: ActorCritic, changes: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        compute_advantages(batch, ac, **changes)


def test_the_final_value_needs_no_entry_of_its_own(batch: TensorDictBase, ac: ActorCritic) -> None:
    """A step that is done and not terminated was truncated, whether or not it says so."""
    torch.manual_seed(0)
    expected = final_value_loss(batch, ac)
    torch.manual_seed(0)
    assert final_value_loss(batch.exclude(("next", "truncated")), ac).equal(expected)
    assert expected > 0


def test_a_batch_that_does_not_say_its_device(batch: TensorDictBase, ac: ActorCritic) -> None:
    """As collectors on a GPU give it; here what names no device lands where nothing is."""
    torch.manual_seed(0)
    expected = compute_advantages(batch, ac)
    torch.manual_seed(0)
    with torch.device("meta"):
        found = compute_advantages(batch.clear_device_(), ac)
        final_value_loss(found, ac)
    assert found["advantage"].equal(expected["advantage"])
