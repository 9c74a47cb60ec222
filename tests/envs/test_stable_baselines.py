"""The world as Stable-Baselines3 sees it; needs the extra ``sb3``."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.vec_env import VecMonitor

from envs.adapters.gymnasium import GymnasiumVectorEnv
from envs.adapters.stable_baselines import StableVecEnv

SMALL = {"task": "scaffold", "num_envs": 3, "max_epochs": 4}


def test_numbers_are_the_vector_environments():
    stable, envs = StableVecEnv(**SMALL), GymnasiumVectorEnv(**SMALL, autoreset_mode="SameStep")
    stable.seed(5)
    observation, (theirs, _) = stable.reset(), envs.reset(seed=5)
    generator = np.random.default_rng(0)
    for step in range(6):
        for name, values in theirs.items():
            assert np.array_equal(observation[name], values)
        assert np.array_equal(get_action_masks(stable), envs.action_masks())
        actions = generator.integers(0, envs.single_action_space.nvec, (3, 8))
        observation, rewards, dones, infos = stable.step(actions)
        theirs, expected, terminated, _, info = envs.step(actions)
        assert np.array_equal(rewards, expected.astype(np.float32))
        assert np.array_equal(dones, terminated)
        assert dones.all() == (step == 3)
        for row in dones.nonzero()[0]:
            last = info["final_obs"][row]["observation"]
            assert np.array_equal(infos[row]["terminal_observation"]["observation"], last)
            assert infos[row]["metrics"]["epoch"] == 4
            assert infos[row]["TimeLimit.truncated"] is False


def test_an_episode_goes_on_after_a_reset_without_a_seed():
    """The seed is used once, or all episodes were the same."""
    stable = StableVecEnv(**SMALL | {"task": "digits", "batches_per_epoch": 1})
    stable.seed(1)
    first, second = stable.reset(), stable.reset()
    assert not np.array_equal(first["observation"], second["observation"])


def test_maskable_ppo_trains_with_masks():
    world = VecMonitor(StableVecEnv(**SMALL))
    assert is_masking_supported(world)
    model = MaskablePPO("MultiInputPolicy", world, n_steps=8, batch_size=24, n_epochs=1)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(48)
    assert len(model.ep_info_buffer) == 12
    assert {episode["l"] for episode in model.ep_info_buffer} == {4}
    after = list(model.policy.parameters())
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))


def test_a_truncated_episode_says_so():
    stable = StableVecEnv(**SMALL, time_limit="truncate")
    stable.reset()
    for _ in range(4):
        *_, infos = stable.step(np.zeros((3, 8), int))
    assert all(info["TimeLimit.truncated"] for info in infos)


def test_rows_have_pictures_and_share_what_they_are():
    stable = StableVecEnv(**SMALL, render_mode="rgb_array")
    stable.reset()
    assert [picture.shape for picture in stable.get_images()] == [(100, 160, 3)] * 3
    assert StableVecEnv(**SMALL).get_images() == [None] * 3
    assert stable.get_attr("num_envs", indices=[0, 2]) == [3, 3]
    with pytest.raises(AttributeError, match="'max_epochs' can't be set"):
        stable.set_attr("max_epochs", 5)


def test_recorders_find_how_fast_pictures_follow_each_other():
    stable = StableVecEnv(**SMALL, render_mode="rgb_array")
    assert stable.metadata["render_fps"] == 5
    assert "rgb_array" in stable.metadata["render_modes"]


@pytest.mark.parametrize("options", [{"max_epochs": 5}, [{}, {"max_epochs": 5}, {}]])
def test_unknown_options_are_refused(options):
    stable = StableVecEnv(**SMALL)
    with pytest.raises(ValueError, match=r"options must be among \[\], got \['max_epochs'\]"):
        stable.set_options(options)
    stable.set_options()
    stable.set_options([{}, {}, {}])
