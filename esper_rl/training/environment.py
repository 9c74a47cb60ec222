"""The world of a configuration."""

from __future__ import annotations

from typing import Any

from envs import MorphogenesisEnv, make_task
from esper_rl.errors import config_errors
from esper_rl.training.config import TrainConfig


def make_env(config: TrainConfig, *, seed: int, num_envs: int | None = None) -> MorphogenesisEnv:
    """Build the world that ``config`` describes; its potentials are discounted as PPO discounts.

    Args:
        config: of the run.
        seed: seed of the world's random numbers.
        num_envs: number of rows, if not the configuration's.

    Raises:
        ConfigError: when the world refuses a value.
    """
    with config_errors("env: "):
        options: dict[str, Any] = vars(config.env) | {"task": make_task(config.env.task)}
        if num_envs is not None:
            options["num_envs"] = num_envs
        reward = config.reward.weights(options["task"].reward, config.ppo.gamma)
        return MorphogenesisEnv(**options, seed=seed, device=config.device, reward=reward)
