"""Collecting with the workers of a Ray cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors.distributed import RayCollector
from torchrl.envs.utils import ExplorationType

from envs import ResumableEnv
from esper_rl.config import TrainConfig
from esper_rl.errors import ConfigError
from esper_rl.training.cluster import inside, room_for
from esper_rl.training.worker_processes import WorkerLostError


class RowsOnRay(RayCollector):
    """TorchRL's collector for Ray, of the rows of a batched world.

    Rows of the workers stand below each other, ``[N, T]``, as other collectors give them; workers
    begin with the learner's policy, and go on where a state that was loaded says.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, sync=True, postproc=_below_each_other, **kwargs)
        self.update_policy_weights_()  # or it would warn, and keep policies as they were sent

    def iterator(self) -> Iterator[TensorDictBase]:
        try:
            yield from super().iterator()
        except Exception as error:
            if self.has_lost_workers():  # TorchRL ends the others before the error is seen
                raise WorkerLostError from error
            raise

    def reset(self) -> None:
        """Let every worker begin where the state that was loaded says."""
        self.map_fn("reset")

    def has_lost_workers(self) -> bool:
        """Has one of them ended, or doesn't it answer?"""
        stats = self.stats()
        return stats["workers_alive"] < stats["workers"]


def _below_each_other(batches: TensorDictBase) -> TensorDictBase:
    return batches.flatten(0, 1)  # [workers, rows, T] → [N, T]


@contextmanager
def cluster_of(config: TrainConfig) -> Iterator[None]:
    """Enter the cluster of a run, which must have room for its workers.

    Raises:
        ConfigError: when it can't be entered, see :func:`esper_rl.training.cluster.inside`, or is
            too small.
    """
    wanted = config.ray
    with inside(wanted.address, math.ceil(config.workers * wanted.cpus)):
        # More would be waited for without an end.
        if config.workers > (room := room_for(wanted.cpus, wanted.gpus)):
            raise ConfigError(
                f"workers must be at most {room}, for which the cluster has room with ray.cpus="
                f"{wanted.cpus:g} and ray.gpus={wanted.gpus:g} each, got {config.workers}"
            )
        yield


def start_workers(
    config: TrainConfig, actor: nn.Module, make_worlds: Sequence[Callable[[], ResumableEnv]]
) -> RowsOnRay:
    """Workers on the cluster that this process is in, each with one of these worlds and one thread.

    Args:
        config: of the run.
        actor: plays; ``update_policy_weights_`` sends what it has learned.
        make_worlds: a function for each worker.

    Raises:
        WorkerLostError: when a worker ends while it starts.
    """
    with _losses_at_the_start():
        return RowsOnRay(
            [_OneThread(make_world) for make_world in make_worlds],
            actor,
            frames_per_batch=config.rollout_steps,
            total_frames=config.iterations * config.rollout_steps,
            exploration_type=ExplorationType.RANDOM,
            collector_kwargs={"use_buffers": True},  # as processes do, which draws a first action
            remote_configs={"num_cpus": config.ray.cpus, "num_gpus": config.ray.gpus},
        )


@contextmanager
def _losses_at_the_start() -> Iterator[None]:
    """Workers that end while they start leave others, and the learner, waiting for a connection."""
    from ray.exceptions import RayActorError

    try:
        yield
    except (RayActorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1]
        raise WorkerLostError(
            f"a worker that collects has ended as it started: {reason}"
        ) from error


class _OneThread:
    """Makes a world in a process that computes with one thread, as other collectors' do."""

    def __init__(self, make_world: Callable[[], ResumableEnv]) -> None:
        self.make_world = make_world

    def __call__(self) -> ResumableEnv:
        torch.set_num_threads(1)
        return self.make_world()
