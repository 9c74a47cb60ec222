"""Collecting rollouts, in this process or in several."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from threading import Event
from traceback import clear_frames
from typing import Any, TypeVar

import numpy as np
import torch
from tensordict import TensorDictBase
from torchrl.collectors import BaseCollector, Collector, MultiSyncCollector
from torchrl.envs import Compose, RewardSum, Timer, Transform
from torchrl.envs.utils import ExplorationType

from envs import ResumableEnv
from envs.registration import TaskFactory, register_tasks, registered_tasks
from esper_rl.config import TrainConfig, make_env
from esper_rl.policy import ActorCritic
from esper_rl.terminal import ENDING

Made = TypeVar("Made")

_LOGGER = logging.getLogger(__name__)


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
    workers, stopped = config.workers, Event()
    seeds = np.random.SeedSequence(config.seed).generate_state(workers).tolist()
    make_worlds = [
        _Sent(
            partial(_make_world, config, seed, actor_critic.transforms(), registered_tasks()),
            stopped,
        )
        for seed in seeds
    ]
    frames = config.iterations * config.rollout_steps
    if workers > (cores := os.cpu_count() or workers):
        _LOGGER.warning("workers=%d are more than this machine's %d cores", workers, cores)
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
    return _start_ignoring_signals(
        stopped,
        MultiSyncCollector,
        make_worlds,
        actor_critic.actor,
        frames_per_batch=config.rollout_steps,
        total_frames=frames,
        exploration_type=ExplorationType.RANDOM,
        use_buffers=True,
        cat_results=0,  # rows of the workers below each other, not stacked
        num_threads=torch.get_num_threads(),
    )


def _start_ignoring_signals(
    stopped: Event, start: Callable[..., Made], *args: Any, **kwargs: Any
) -> Made:
    """Start processes that ignore signals to end; this process takes them, and ends the others.

    A process inherits the blocked signals of the thread that starts it. A thread of its own blocks
    them here, so the main thread can still be interrupted while it waits for the start. Then
    ``stopped`` is set, and what is sent with a process that is to be started refuses to be.
    """

    def started() -> Made:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            # Python's own helper process, started with the first other one, would end the mask.
            from multiprocessing.resource_tracker import ensure_running

            ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
        return start(*args, **kwargs)

    others = set(active_children())
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(started)
        try:
            return made.result()
        except BaseException as error:
            stopped.set()
            while not made.done():  # the thread waits for the one that it has just started
                _kill(set(active_children()) - others)
                wait([made], timeout=0.1)
            _kill(set(active_children()) - others)
            # What was half made ends now: when Python ends, it would wait for ever.
            clear_frames(error.__traceback__)
            del made
            gc.collect()
            raise


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


@dataclass
class _Sent:
    """A function that other processes get; it can't be sent any more when ``stopped`` is set."""

    function: Callable[[], ResumableEnv]
    stopped: Event

    def __call__(self) -> ResumableEnv:
        return self.function()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.stopped.is_set():
            raise KeyboardInterrupt
        return _as_it_is, (self.function,)


def _as_it_is(function: Callable[[], ResumableEnv]) -> Callable[[], ResumableEnv]:
    return function


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


def collection_seconds(batch: TensorDictBase) -> tuple[float, float]:
    """Seconds of a batch ``[N, T]`` spent in the world and in the policy, a worker's mean."""
    world, policy = batch["next", "time_step"], batch["next", "time_policy"]
    # The first step's policy time also holds whatever happened between two batches.
    return world.sum(1).mean().item(), policy[:, 1:].sum(1).mean().item()
