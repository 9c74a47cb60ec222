"""The world of a configuration."""

from __future__ import annotations

from envs import MorphogenesisEnv, RewardConfig
from esper_rl.errors import ConfigError
from esper_rl.training.config import TrainConfig


def make_env(config: TrainConfig, *, seed: int, num_envs: int | None = None) -> MorphogenesisEnv:
    """Builds the world that ``config`` describes; its potentials are discounted as PPO discounts.

    Args:
        config: of the run.
        seed: seed of the world's random numbers.
        num_envs: number of rows, if not the configuration's.

    Raises:
        ConfigError: when the world refuses a value.
    """
    world = config.env
    try:
        return MorphogenesisEnv(
            task=world.task,
            num_envs=world.num_envs if num_envs is None else num_envs,
            num_slots=world.num_slots,
            max_epochs=world.max_epochs,
            seed=seed,
            device=config.device,
            batches_per_epoch=world.batches_per_epoch,
            minibatch_size=world.minibatch_size,
            validation_size=world.validation_size,
            gates=world.gates,
            reward=RewardConfig(gamma=config.ppo.gamma),
            counterfactual_every=world.counterfactual_every,
            time_limit=world.time_limit,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"env: {error}") from error
