"""A cluster of Ray: entering it, and what its machines must have."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from esper_rl.errors import ConfigError
from esper_rl.runs.provenance import package_versions

try:
    import ray
except ImportError:  # an extra
    ray = None  # type: ignore[assignment]

_LOGGER = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 5.0
"""That the head of a cluster has; Ray itself would try for much longer."""


@contextmanager
def inside(address: str | None, cores: int = 0) -> Iterator[None]:
    """Be in a cluster, or start one on this machine, whose machines have this one's versions.

    Nothing happens where this process is in it already.

    Args:
        address: ``HOST:PORT`` of a cluster's head, ``"auto"`` for this machine's, None to start
            one.
        cores: that one which is started must have, though the machine may have fewer.

    Raises:
        ConfigError: when Ray isn't installed, no cluster answers, this process is in another one,
            or a machine has other versions.
    """
    if ray is None:
        raise ConfigError('Ray is a package of its own: pip install "esper-rl[ray]"')
    _check_answers(address)
    begun = not ray.is_initialized()
    if begun:
        _enter(address, cores)
    try:
        here = ray.get_runtime_context().gcs_address
        if not begun and address not in (None, "auto", here):
            raise ConfigError(
                f"ray.address must be {here!r} or auto, the cluster that this process is in, got "
                f"{address!r}"
            )
        for machine, theirs in ask_machines(package_versions).items():
            if different := describe_differences(package_versions(), theirs):
                raise ConfigError(
                    f"ray.address: machine {machine} has other versions than this one: "
                    f"{different}; install the same ones"
                )
        yield
    finally:
        if begun:
            ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Refuse an address at which nothing listens, at once."""
    if address in (None, "auto"):
        return
    host, _, port = str(address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_nobody_at(address, error)) from error


def _enter(address: str | None, cores: int) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        own = os.cpu_count() or 1
        if cores > own:
            _LOGGER.warning("workers ask for %d cores, this machine has %d", cores, own)
        ray.init("local", num_cpus=max(own, cores), include_dashboard=False, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(_nobody_at(address, error)) from error


def _nobody_at(address: str | None, error: Exception) -> str:
    return (
        f"ray.address: no cluster of Ray answers at {address!r}: {str(error).splitlines()[0]}; "
        "`ray start --head` on one machine, and `ray start --address=HOST:PORT` on others, start "
        "one; RAY_AUTH_MODE=token lets Ray show it the token in ~/.ray/auth_token"
    )


def ask_machines(function: Callable[[], Any]) -> dict[str, Any]:
    """Answers of a function on every other machine of the cluster, by the machine's name.

    Raises:
        ConfigError: when one can't run it.
    """
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def asked() -> Any:  # Ray takes functions, and nothing else that can be called
        return function()

    here, answers = ray.get_runtime_context().get_node_id(), {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(asked).options(num_cpus=0, scheduling_strategy=there)
            answers[f"{node['NodeManagerHostname']}, {node['NodeID'][:8]}"] = task.remote()
    given = {}
    for machine, answer in answers.items():
        try:
            given[machine] = ray.get(answer)
        except (RayError, ImportError) as error:
            raise ConfigError(
                f"ray.address: machine {machine} can't run esper-rl: {str(error).splitlines()[-1]}"
            ) from error
    return given


def room_for(cpus: float, gpus: float) -> int:
    """Workers that the machines of the cluster can hold, each with so many cores and GPUs."""
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(
        min(int(node["Resources"].get(kind, 0) / each) for kind, each in wanted.items() if each)
        for node in ray.nodes()
        if node["Alive"]
    )


def describe_differences(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
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
