"""Collecting rollouts, in this process or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector, MultiSyncCollector
from torchrl.envs import Compose, RewardSum, Timer, Transform
from torchrl.envs.utils import ExplorationType

from envs import ResumableEnv
from envs.registration import TaskFactory, adopt_tasks, registered_tasks
from esper_rl.policy import ActorCritic
from esper_rl.training.config import TrainConfig
from esper_rl.training.environment import make_env


def make_collector(config: TrainConfig, actor_critic: ActorCritic) -> BaseCollector:
    """A collector that yields batches ``[N, rollout_steps / N]``.

    With one worker this process does the work; with more, each of them is a process that grows
    its share of the rows with one thread. Small networks make small kernels, between which
    Python holds its lock: processes scale where threads don't.

    Args:
        config: of the run.
        actor_critic: whose actor plays; call the collector's ``update_policy_weights_`` after
            it has learned.
    """
    workers = config.workers
    seeds = np.random.SeedSequence(config.seed).generate_state(workers).tolist()
    make_worlds = [
        partial(_make_world, config, seed, actor_critic.transforms(), registered_tasks())
        for seed in seeds
    ]
    frames = config.iterations * config.rollout_steps
    if workers == 1:
        return Collector(
            make_worlds[0](),
            actor_critic.actor,
            frames_per_batch=config.rollout_steps,
            total_frames=frames,
            exploration_type=ExplorationType.RANDOM,
            use_buffers=False,
            track_traj_ids=False,
        )
    return MultiSyncCollector(
        make_worlds,
        actor_critic.actor,
        frames_per_batch=config.rollout_steps,
        total_frames=frames,
        exploration_type=ExplorationType.RANDOM,
        use_buffers=True,
        cat_results=0,  # rows of the workers below each other, not stacked
        num_threads=torch.get_num_threads(),
    )


def _make_world(
    config: TrainConfig,
    seed: int,
    transforms: Sequence[Transform],
    tasks: Mapping[str, TaskFactory],
) -> ResumableEnv:
    """A worker's share of the rows; its own seed makes the policy's draws its own too."""
    adopt_tasks(tasks)
    torch.manual_seed(seed)
    env = make_env(config, seed=seed, num_envs=config.env.num_envs // config.workers)
    return ResumableEnv(env, Compose(*transforms, RewardSum(), Timer()))


def collection_seconds(batch: TensorDictBase) -> tuple[float, float]:
    """Seconds of a batch ``[N, T]`` spent in the world and in the policy, a worker's mean."""
    world, policy = batch["next", "time_step"], batch["next", "time_policy"]
    # The first step's policy time also holds whatever happened between two batches.
    return world.sum(1).mean().item(), policy[:, 1:].sum(1).mean().item()
