"""Collecting rollouts: in this process, in several, or on a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from threading import Event
from typing import TypeAlias

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors import BaseCollector, Collector, MultiSyncCollector
from torchrl.envs import Compose, RewardSum, Timer, Transform
from torchrl.envs.utils import ExplorationType

from envs import ResumableEnv
from envs.registration import TaskFactory, register_tasks, registered_tasks
from esper_rl.config import TrainConfig, make_env
from esper_rl.policy import ActorCritic
from esper_rl.training.ahead import CollectorAhead
from esper_rl.training.worker_processes import Sent, start_ignoring_signals

_LOGGER = logging.getLogger(__name__)

MakeWorld = Callable[[], ResumableEnv]
RolloutCollector: TypeAlias = BaseCollector | CollectorAhead


class DiscountedRewardSum(RewardSum):
    """The sum of an episode's rewards so far, discounted, ``("episode_return")``, float32 [N, 1].

    Args:
        gamma: discount per epoch; an episode begins at epoch 0.
    """

    def __init__(self, gamma: float) -> None:
        super().__init__(in_keys=["reward"], out_keys=["episode_return"])
        self.gamma = gamma

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        discounted = self.gamma ** tensordict["metrics", "epoch"] * next_tensordict["reward"]
        return next_tensordict.set("episode_return", tensordict["episode_return"] + discounted)


def make_collector(config: TrainConfig, actor_critic: ActorCritic) -> RolloutCollector:
    """A collector that yields batches ``[N, rollout_steps / N]``, of the kind ``config.collector``.

    One whose workers are in a cluster is made, and works, inside :func:`cluster_of`.

    Each worker has its share of the rows, of whichever kind the workers are: with as many of them,
    batches are bitwise the same.

    Args:
        config: of the run.
        actor_critic: whose actor plays; call the collector's ``update_policy_weights_`` after
            it has learned.

    Raises:
        WorkerLostError: when a worker ends while it starts.
    """
    seeds = np.random.SeedSequence(config.seed).generate_state(config.workers).tolist()
    make_worlds = [
        partial(_make_world, config, seed, actor_critic.transforms(), registered_tasks())
        for seed in seeds
    ]
    return _MAKERS[config.collector](config, actor_critic, make_worlds)


def _collect_and_wait(
    config: TrainConfig, actor_critic: ActorCritic, make_worlds: Sequence[MakeWorld]
) -> BaseCollector:
    """With one worker this process does the work."""
    if config.workers > 1:
        return _start_processes(config, actor_critic.actor, make_worlds)
    return Collector(
        make_worlds[0](),
        actor_critic.actor,
        frames_per_batch=config.rollout_steps,
        total_frames=config.iterations * config.rollout_steps,
        exploration_type=ExplorationType.RANDOM,
        use_buffers=False,
        track_traj_ids=False,
    )


def _collect_ahead(
    config: TrainConfig, actor_critic: ActorCritic, make_worlds: Sequence[MakeWorld]
) -> CollectorAhead:
    processes = _start_processes(config, deepcopy(actor_critic.actor), make_worlds)
    return CollectorAhead(processes, actor_critic.actor, config.iterations)


def _collect_on_ray(
    config: TrainConfig, actor_critic: ActorCritic, make_worlds: Sequence[MakeWorld]
) -> BaseCollector:
    from esper_rl.training.on_ray import start_workers  # loads Ray

    return start_workers(config, actor_critic.actor, make_worlds)


_MAKERS: Mapping[
    str, Callable[[TrainConfig, ActorCritic, Sequence[MakeWorld]], RolloutCollector]
] = {"sync": _collect_and_wait, "async": _collect_ahead, "ray": _collect_on_ray}
"""By name: makes one, of a run's configuration, its policy, and functions that make the worlds."""


@contextmanager
def cluster_of(config: TrainConfig) -> Iterator[None]:
    """Be in the cluster in which a run's workers are, if they are in one.

    Raises:
        ConfigError: when Ray isn't installed, not there, or has no room for them.
    """
    if config.collector != "ray":
        yield
        return
    from esper_rl.training import on_ray  # loads Ray

    with on_ray.cluster_of(config):
        yield


def _start_processes(
    config: TrainConfig, actor: nn.Module, make_worlds: Sequence[MakeWorld]
) -> MultiSyncCollector:
    """Each worker is a process that grows its rows with one thread.

    Small networks make small kernels, between which Python holds its lock: processes scale where
    threads don't.
    """
    workers, stopped = config.workers, Event()
    if workers > (cores := os.cpu_count() or workers):
        _LOGGER.warning("workers=%d are more than this machine's %d cores", workers, cores)
    return start_ignoring_signals(
        stopped,
        MultiSyncCollector,
        [Sent(make_world, stopped) for make_world in make_worlds],
        actor,
        frames_per_batch=config.rollout_steps,
        total_frames=config.iterations * config.rollout_steps,
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
    register_tasks(tasks)
    torch.manual_seed(seed)
    rows = config.env.num_envs // config.workers
    env = make_env(config, seed=seed, num_envs=rows, scheduled=True)
    return ResumableEnv(env, Compose(*transforms, DiscountedRewardSum(config.ppo.gamma), Timer()))


def has_lost_workers(collector: RolloutCollector) -> bool:
    """Has one of its workers ended?"""
    if isinstance(collector, CollectorAhead):
        return has_lost_workers(collector.collector)
    if isinstance(collector, MultiSyncCollector):
        try:
            return not all(process.is_alive() for process in collector.procs)
        except ValueError:  # TorchRL has seen it, and ended and closed them all
            return True
    return hasattr(collector, "has_lost_workers") and collector.has_lost_workers()


def updates_behind(collector: RolloutCollector) -> int:
    """Updates that the learner was ahead of the policy that has collected the latest batch."""
    return collector.updates_behind if isinstance(collector, CollectorAhead) else 0


def collection_seconds(batch: TensorDictBase) -> tuple[float, float]:
    """Seconds of a batch ``[N, T]`` spent in the world and in the policy, a worker's mean."""
    world, policy = batch["next", "time_step"], batch["next", "time_policy"]
    # The first step's policy time also holds whatever happened between two batches.
    return world.sum(1).mean().item(), policy[:, 1:].sum(1).mean().item()
