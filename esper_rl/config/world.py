"""The world of a configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envs import MorphogenesisEnv, RewardSchedule, Task, make_task
from esper_rl.config.schema import RewardOptions, TrainConfig
from esper_rl.errors import config_errors

_OF_TASK = ("max_epochs", "batches_per_epoch", "minibatch_size", "validation_size")
"""Fields of ``env`` that are the task's where nothing is said."""


def make_env(
    config: TrainConfig, *, seed: int, num_envs: int | None = None, scheduled: bool = False
) -> MorphogenesisEnv:
    """Build the world that ``config`` describes; its potentials are discounted as PPO discounts.

    Args:
        config: of the run.
        seed: seed of the world's random numbers.
        num_envs: number of rows, if not the configuration's.
        scheduled: the reward's weights change with the world's steps, as they do where the policy
            learns; otherwise they are the final ones.

    Raises:
        ConfigError: when the world refuses a value.
    """
    with config_errors("env: "):
        task = make_task(config.env.task)
        options: dict[str, Any] = vars(config.env) | {"task": task}
        if num_envs is not None:
            options["num_envs"] = num_envs
        if scheduled and config.reward.schedule:
            options["reward"] = make_schedule(config, task)
        else:
            options["reward"] = config.reward.weights(task.reward, config.ppo.gamma)
        return MorphogenesisEnv(**options, seed=seed, device=config.device)


def make_schedule(config: TrainConfig, task: Task | None = None) -> RewardSchedule:
    """The reward of a run, by the steps that a row has taken; it changes between episodes.

    Args:
        config: of the run.
        task: of the configuration, where it is made already.

    Raises:
        ConfigError: for a weight, or a schedule of one, that is out of range.
    """
    with config_errors():
        task = make_task(config.env.task) if task is None else task
        return RewardSchedule(
            config.reward.weights(task.reward, config.ppo.gamma),
            config.reward.schedule,
            steps=config.iterations * config.rollout_steps // config.env.num_envs,
            every=config.episode_steps,
        )


def pin_world(config: TrainConfig) -> TrainConfig:
    """The same configuration, with the numbers that its task brings written out.

    A run keeps it, so its world stays what it was when a later version of the task has other
    numbers.

    Raises:
        ConfigError: for a task that there isn't, or a weight out of range.
    """
    with config_errors("env: "):
        task = make_task(config.env.task)
        sizes: dict[str, Any] = {
            name: getattr(task, name, None)
            for name in _OF_TASK
            if getattr(config.env, name) is None
        }
        weights = config.reward.weights(task.reward, config.ppo.gamma)
    named = {name: weight for name, weight in vars(weights).items() if name != "gamma"}
    reward = RewardOptions(**named, schedule=config.reward.schedule)
    return replace(config, env=replace(config.env, **sizes), reward=reward)


def unpin_world(config: TrainConfig) -> TrainConfig:
    """The same configuration without the numbers that its task brings: another one has its own."""
    none: dict[str, Any] = dict.fromkeys(_OF_TASK)
    nothing = replace(config, env=replace(config.env, **none), reward=RewardOptions())
    own, env, reward = pin_world(nothing), vars(config.env), vars(config.reward)
    sizes: dict[str, Any] = {name: None for name in _OF_TASK if env[name] == getattr(own.env, name)}
    weights = {name: value for name, value in reward.items() if value != vars(own.reward)[name]}
    return replace(config, env=replace(config.env, **sizes), reward=RewardOptions(**weights))
