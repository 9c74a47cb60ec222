"""Collecting with the workers of a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors.distributed import RayCollector
from torchrl.envs.utils import ExplorationType

from envs import ResumableEnv
from esper_rl.config import RayConfig, TrainConfig
from esper_rl.errors import ConfigError
from esper_rl.runs.provenance import package_versions

try:
    import ray
except ImportError:  # an extra
    ray = None  # type: ignore[assignment]

_LOGGER = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 5.0
"""That the head of a cluster has; Ray itself would try for much longer."""


class RowsOnRay(RayCollector):
    """TorchRL's collector for Ray, of the rows of a batched world.

    Rows of the workers stand below each other, ``[N, T]``, as other collectors give them; workers
    begin with the learner's policy, and go on where a state that was loaded says.

    Args:
        *args, **kwargs: TorchRL's.
        ends: is Ray left when this ends?
    """

    def __init__(self, *args: Any, ends: bool, **kwargs: Any) -> None:
        super().__init__(*args, sync=True, postproc=_below_each_other, **kwargs)
        self._ends = ends
        self.update_policy_weights_()  # or it would warn, and keep policies as they were sent

    def reset(self) -> None:
        """Let every worker begin where the state that was loaded says."""
        self.map_fn("reset")

    def lost(self) -> int:
        """The number of workers that have ended."""
        stats = self.stats()
        return int(stats["workers"] - stats["workers_alive"])

    def shutdown(self, timeout: float | None = None, shutdown_ray: bool = False) -> None:
        """End the workers, and leave Ray if it was entered for them."""
        super().shutdown(timeout, shutdown_ray=shutdown_ray or self._ends)


def _below_each_other(batches: TensorDictBase) -> TensorDictBase:
    return batches.flatten(0, 1)  # [workers, rows, T] → [N, T]


def start_workers(
    config: TrainConfig, actor: nn.Module, make_worlds: Sequence[Callable[[], ResumableEnv]]
) -> RowsOnRay:
    """Workers of Ray, each with one of these worlds and one thread.

    Args:
        config: of the run.
        actor: plays; ``update_policy_weights_`` sends what it has learned.
        make_worlds: a function for each worker.

    Raises:
        ConfigError: when Ray isn't installed, no cluster answers at ``config.ray.address``, it is
            too small, or one of its machines has other versions.
    """
    if ray is None:
        raise ConfigError('collector=ray needs a package: pip install "esper-rl[ray]"')
    begun = _connect(config.ray, config.workers)
    try:
        _check_capacity(config.ray, config.workers)
        _check_versions()
        return RowsOnRay(
            [_OneThread(make_world) for make_world in make_worlds],
            actor,
            ends=begun,
            frames_per_batch=config.rollout_steps,
            total_frames=config.iterations * config.rollout_steps,
            exploration_type=ExplorationType.RANDOM,
            collector_kwargs={"use_buffers": True},
            remote_configs={"num_cpus": config.ray.cpus, "num_gpus": config.ray.gpus},
        )
    except BaseException:
        if begun:
            ray.shutdown()
        raise


class _OneThread:
    """Makes a world in a process that computes with one thread, as other collectors' do."""

    def __init__(self, make_world: Callable[[], ResumableEnv]) -> None:
        self.make_world = make_world

    def __call__(self) -> ResumableEnv:
        torch.set_num_threads(1)
        return self.make_world()


def _connect(config: RayConfig, workers: int) -> bool:
    """Enter a cluster, or start one on this machine; False where this process is in it already."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    begun = not ray.is_initialized()
    try:
        if config.address not in (None, "auto"):
            host, _, port = str(config.address).rpartition(":")
            socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
        if config.address is not None and begun:
            ray.init(config.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"ray.address: no cluster of Ray answers at {config.address!r}: "
            f"{str(error).splitlines()[0]}; `ray start --head` on one machine, and `ray start "
            "--address=HOST:PORT` on others, start one"
        ) from error
    if config.address is None and begun:
        cores = os.cpu_count() or 1
        if (needed := math.ceil(workers * config.cpus)) > cores:
            _LOGGER.warning("workers=%d ask for more than this machine's %d cores", workers, cores)
        ray.init("local", num_cpus=max(cores, needed), include_dashboard=False, **quiet)
    here = ray.get_runtime_context().gcs_address
    if config.address not in (None, "auto", here):
        raise ConfigError(
            f"ray.address must be {here!r} or auto, the cluster that this process is in, got "
            f"{config.address!r}"
        )
    return begun


def _check_capacity(config: RayConfig, workers: int) -> None:
    """Refuse more workers than the machines can hold: they would be waited for without an end."""
    wanted = {"CPU": config.cpus, "GPU": config.gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(machine.get(kind, 0) / each) for kind, each in wanted.items() if each)
        for machine in machines
    )
    if workers > room:
        raise ConfigError(
            f"workers must be at most {room}, which is what the {len(machines)} machines of the "
            f"cluster have room for with ray.cpus={config.cpus:g} and ray.gpus={config.gpus:g} "
            f"each, got {workers}"
        )


def _check_versions() -> None:
    """Refuse machines whose packages aren't this one's."""
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, mine = ray.get_runtime_context().get_node_id(), package_versions()
    asked = {
        node["NodeManagerHostname"]: ray.remote(package_versions)
        .options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False)
        )
        .remote()
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here
    }
    for machine, answer in asked.items():
        try:
            theirs = ray.get(answer)
        except (RayError, ImportError) as error:
            raise ConfigError(
                f"ray.address: machine {machine} can't run esper-rl: {str(error).splitlines()[-1]}"
            ) from error
        if different := describe_differences(mine, theirs):
            raise ConfigError(
                f"ray.address: machine {machine} has other versions than this one: {different}; "
                "install the same ones"
            )


def describe_differences(mine: dict[str, str], theirs: dict[str, str]) -> str:
    """The packages of which two machines have different versions, with both.

    Examples:
        >>> describe_differences({"torch": "2.13.0", "numpy": "2.0"}, {"torch": "2.12.1"})
        'numpy none (2.0 here), torch 2.12.1 (2.13.0 here)'
    """
    return ", ".join(
        f"{name} {theirs.get(name, 'none')} ({mine.get(name, 'none')} here)"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    )
