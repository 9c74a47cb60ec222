"""What MorphogenesisEnv emits: keys, dtypes, shapes, ranges, and how TorchRL takes it."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import ExcludeTransform, RewardSum, TransformedEnv
from torchrl.envs.utils import check_env_specs

from envs import feature_names
from envs.actions import BLUEPRINTS, HEADS, Op, Stage, head_sizes
from envs.reward import REWARD_TERMS
from esper_rl.growing.baselines import WaitPolicy
from tests.support.environments import act, random_states, small_env


def expected_keys(num_slots: int) -> dict:
    """Dtype and shape, without the rows, of every key at reset and under ``next``."""
    flag, real, whole = torch.bool, torch.float32, torch.int64
    per_slot = (num_slots,)
    keys = {
        "observation": (real, (25 + 29 * num_slots,)),
        "blueprint_indices": (whole, per_slot),
        "last_action_success": (flag, (1,)),
        "last_action_op": (whole, ()),
        "done": (flag, (1,)),
        "terminated": (flag, (1,)),
        "truncated": (flag, (1,)),
        ("metrics", "epoch"): (whole, (1,)),
        ("metrics", "val_accuracy"): (real, (1,)),
        ("metrics", "val_loss"): (real, (1,)),
        ("metrics", "rollback"): (flag, (1,)),
        ("metrics", "seed_params"): (real, (1,)),
        ("metrics", "host_gradient_norm"): (real, (1,)),
        ("metrics", "executed_op"): (whole, ()),
        ("metrics", "stage"): (whole, per_slot),
        ("metrics", "alpha"): (real, per_slot),
        ("metrics", "contribution"): (real, per_slot),
        ("metrics", "gradient_norm"): (real, per_slot),
    }
    for head, size in head_sizes(num_slots).items():
        keys["action_mask", head] = (flag, (6, num_slots) if head == "slot" else (size,))
    for term in REWARD_TERMS:
        keys["reward_terms", term] = (real, (1,))
    return keys


def between(values: torch.Tensor, low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high)).all())


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_every_key_has_its_dtype_shape_and_range(num_slots):
    env = small_env(num_slots=num_slots)
    states = random_states(env, 8)
    for i, state in enumerate(states):
        for key, (dtype, shape) in expected_keys(num_slots).items():
            assert (state[key].dtype, state[key].shape) == (dtype, (3, *shape)), key
        assert between(state["observation"], -1, 1.5)
        assert between(state["blueprint_indices"], -1, len(BLUEPRINTS) - 1)
        assert between(state["last_action_op"], 0, len(Op) - 1)
        assert between(state["metrics", "executed_op"], 0, len(Op) - 1)
        assert between(state["metrics", "stage"], Stage.DORMANT, Stage.RESETTING)
        assert between(state["metrics", "alpha"], 0, 1)
        assert between(state["metrics", "val_accuracy"], 0, 100)
        assert (state["metrics", "epoch"] == i).all()
        assert ("reward" in state) == (i > 0)
        assert env.observation_spec.is_in(state.select(*env.observation_spec.keys()))
    assert states[-1]["reward"].shape == (3, 1)
    assert states[-1]["reward"].dtype == torch.float32


def test_state_at_reset():
    state = small_env().reset()
    assert state["last_action_success"].all()
    assert (state["last_action_op"] == Op.WAIT).all()
    assert (state["metrics", "stage"] == Stage.DORMANT).all()
    assert (state["blueprint_indices"] == -1).all()
    assert not any(term.any() for term in state["reward_terms"].values())
    assert not state["done"].any()
    features = dict(zip(feature_names(3), state["observation"].unbind(1), strict=True))
    assert (features["last_action_success"] == 1).all()
    assert (features["last_action_op_wait"] == 1).all()
    assert (features["epoch_progress"] == 0).all()
    accuracy = state["metrics", "val_accuracy"].squeeze(1)
    torch.testing.assert_close(features["accuracy_norm"], accuracy / 100)
    torch.testing.assert_close(features["best_accuracy_norm"], accuracy / 100)
    for name in ("loss_delta_norm", "accuracy_trend", "loss_volatility", "accuracy_volatility"):
        assert not features[name].any(), name


def test_feature_names_are_unique_and_count_the_observation():
    for num_slots in (1, 2, 3):
        names = feature_names(num_slots)
        assert len(set(names)) == len(names) == 25 + 29 * num_slots


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("gates", ["permissive", "strict", "hidden"])
def test_torchrl_accepts_the_specs(num_slots, gates):
    check_env_specs(small_env(num_slots=num_slots, gates=gates), seed=1)


@pytest.mark.parametrize("task", ["digits", "digits_full", "digits_mixed", "digits_varied"])
def test_random_rollout_crosses_episode_ends(task):
    torch.manual_seed(0)
    env = small_env(task=task, max_epochs=6)
    rollout = env.rollout(20, break_when_any_done=False)
    assert rollout.batch_size == (3, 20)
    ends = rollout["next", "done"].squeeze(2).nonzero()[:, 1].view(3, -1)
    assert (ends == torch.tensor([5, 11, 17])).all()
    assert rollout["observation"].isfinite().all()
    assert rollout["next", "reward"].isfinite().all()
    # What follows an end is a reset: a fresh row.
    assert (rollout["metrics", "epoch"][:, 6] == 0).all()
    assert (rollout["metrics", "stage"][:, 6] == Stage.DORMANT).all()


@pytest.mark.parametrize("num_slots", [1, 3])
def test_reward_terms_sum_to_the_reward(num_slots):
    torch.manual_seed(1)
    env = small_env(num_slots=num_slots, num_envs=6, max_epochs=7)
    after = env.rollout(20, break_when_any_done=False)["next"]
    total = sum(after["reward_terms", term] for term in REWARD_TERMS)
    torch.testing.assert_close(total, after["reward"])


def test_reward_sum_adds_up_an_episode():
    env = TransformedEnv(small_env(max_epochs=5), RewardSum())
    assert env.reward_keys == ["reward"]  # the terms are there to be read, not to be summed
    check_env_specs(env)
    rollout = env.rollout(10, break_when_any_done=False)["next"]
    rewards = rollout["reward"].view(3, 2, 5)
    torch.testing.assert_close(rollout["episode_reward"].view(3, 2, 5), rewards.cumsum(2))


def test_a_collector_runs():
    env = small_env(max_epochs=5)
    collector = Collector(env, env.rand_action, frames_per_batch=24, total_frames=48)
    try:
        batches = [batch.clone() for batch in collector]
    finally:
        collector.shutdown()
    assert [batch.numel() for batch in batches] == [24, 24]
    # Training goes on under the collector's no_grad: losses move within an episode.
    loss = batches[0]["metrics", "val_loss"].view(3, 8)[:, :5]
    assert (loss.diff(dim=1) != 0).any()


def test_random_play_is_legal_and_tries_every_op():
    torch.manual_seed(0)
    env = small_env(num_envs=16, max_epochs=40)
    rollout = env.rollout(40)
    assert rollout["next", "last_action_success"].all()
    assert rollout["action", "op"].unique().tolist() == list(range(len(Op)))
    executed = rollout["next", "metrics", "executed_op"]
    assert executed.equal(rollout["action", "op"])


def test_a_random_action_is_uniform_over_what_is_legal():
    torch.manual_seed(0)
    env = small_env(num_envs=2000)
    state = env.rand_action(act(env, env.reset(), op=Op.GERMINATE, slot=1, blueprint=1))
    masks, action = state["action_mask"], state["action"]
    for head in ("op", "blueprint", "tempo"):
        legal = masks[head][0].nonzero().squeeze(1)
        shares = torch.bincount(action[head], minlength=masks[head].shape[1]) / 2000
        assert (shares[legal] - 1 / len(legal)).abs().max() < 0.04
        assert shares[legal].sum() == shares.sum()
    for op in Op:
        slots = action["slot"][action["op"] == op].unique().tolist()
        assert slots == masks["slot"][0, op].nonzero().squeeze(1).tolist()


def test_random_frames_of_a_collector_are_legal():
    env = TransformedEnv(small_env(max_epochs=5), RewardSum())
    collector = Collector(
        env, WaitPolicy(), frames_per_batch=60, total_frames=60, init_random_frames=60
    )
    (batch,) = (batch.clone() for batch in collector)
    collector.shutdown()
    assert batch["next", "last_action_success"].all()
    assert (batch["action", "op"] != Op.WAIT).any()


def test_without_masks_a_random_action_is_of_the_spec():
    env = small_env()
    for drawn in (env.rand_action(), env.rand_action(TensorDict({}, env.batch_size))):
        assert env.full_action_spec.is_in(drawn.select("action"))


def test_metrics_can_be_left_out_entry_by_entry():
    env = small_env()
    unwanted = [key for key in env.observation_spec.keys(True, True) if key[0] == "metrics"]
    env = TransformedEnv(env, ExcludeTransform(*unwanted))
    check_env_specs(env)
    left = set(env.rollout(3).keys(True, True))
    assert len(unwanted) > 10
    assert not {*unwanted, *(("next", *key) for key in unwanted)} & left


def test_what_was_emitted_never_changes():
    env = small_env(num_envs=2, max_epochs=12)
    states = [env.reset()]
    copies = [states[0].clone()]
    plan = [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT, Op.PRUNE, Op.GERMINATE, Op.PRUNE]
    for op in plan:
        states.append(act(env, states[-1], op=op, blueprint=1, style=3, alpha_speed=1))
        copies.append(states[-1].clone())
    env.reset()
    for state, copy in zip(states, copies, strict=True):
        assert (state == copy).all()


def test_the_action_is_not_changed_nor_kept():
    env = small_env(num_envs=2)
    state = env.reset()
    given = state.clone().set("action", env.rand_action(state.clone())["action"])
    copy = given["action"].clone()
    after = env.step(given)["next"].clone()
    assert (given["action"] == copy).all()
    given["action"].zero_()
    given["action", "op"].fill_(3)
    assert (after["last_action_op"] == copy["op"]).all()
    assert (act(env, after, op=0)["last_action_op"] == 0).all()


@pytest.mark.parametrize("time_limit", ["terminate", "truncate"])
def test_time_limit_sets_the_flag(time_limit):
    env = small_env(max_epochs=3, time_limit=time_limit)
    last = env.rollout(3)["next"]
    flags = {name: last[name].squeeze(2) for name in ("done", "terminated", "truncated")}
    at_the_end = torch.tensor([False, False, True]).expand(3, 3)
    never = torch.zeros_like(at_the_end)
    ends = time_limit == "terminate"
    assert flags["done"].equal(at_the_end)
    assert flags["terminated"].equal(at_the_end if ends else never)
    assert flags["truncated"].equal(never if ends else at_the_end)


def test_long_episodes_work():
    env = small_env(num_envs=2, max_epochs=150)
    torch.manual_seed(2)
    rollout = env.rollout(200, break_when_any_done=True)
    assert rollout.shape == (2, 150)
    assert rollout["next", "done"][:, -1].all()
    assert rollout["next", "observation"].isfinite().all()
    progress = rollout["next", "observation"][..., 0]
    torch.testing.assert_close(progress[0], torch.arange(1, 151) / 150)


def test_all_heads_are_in_the_action_spec():
    spec = small_env(num_slots=2).action_spec["action"]
    assert {head: spec[head].n for head in HEADS} == head_sizes(2)
    assert all(spec[head].dtype == torch.int64 for head in HEADS)
