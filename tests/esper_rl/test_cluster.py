"""Clusters of several machines, which are simulated on this one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from esper_rl.config import compose_config
from esper_rl.errors import ConfigError
from esper_rl.training import cluster as clusters
from esper_rl.training.cluster import ask_machines, inside, room_for
from esper_rl.training.ray_sweep import sweep_on_ray

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two machines with a core each."""
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    machines.add_node(num_cpus=1)
    yield machines.address
    machines.shutdown()


def test_every_other_machine_is_asked(address: str) -> None:
    with inside(address):
        assert list(ask_machines(os.getcwd).values()) == [os.getcwd()]
        assert [room_for(cpus, 0) for cpus in (0.5, 1, 2)] == [4, 2, 0]
        assert room_for(1, 1) == 0
    assert not ray.is_initialized()


def test_a_machine_with_other_versions_is_named(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.getpid()
    versions = lambda: {"torch": "2.13.0" if os.getpid() == here else "2.12.0"}  # noqa: E731
    monkeypatch.setattr(clusters, "package_versions", versions)
    said = r"^ray\.address: machine .* has other versions than this one: torch 2\.12\.0 \(2\.13\.0"
    with pytest.raises(ConfigError, match=said), inside(address):
        pass
    assert not ray.is_initialized()


def test_a_process_in_one_cluster_cannot_enter_another(address: str) -> None:
    said = f"^ray.address must be '{address}' or auto, the cluster that this process is in, got"
    with socket.create_server(("127.0.0.1", 0)) as other, inside(address):
        there = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=said), inside(there):
            pass
        assert ray.is_initialized()


def test_a_run_that_no_machine_has_room_for_is_named(address: str, tmp_path: Path) -> None:
    """There are two cores, but not on one machine."""
    config = compose_config(["workers=2", f"ray.address='{address}'", "total_steps=10"])
    with pytest.raises(ConfigError, match=r"^ray\.cpus: no machine has room for run wide, .* 2 c"):
        sweep_on_ray({"wide": config}, print, tmp_path / "sweep", quiet=True)


def test_a_folder_that_a_machine_does_not_see_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(["workers=1", f"ray.address='{address}'"])
    monkeypatch.setattr("esper_rl.training.ray_sweep.ask_machines", lambda _: {"other": False})
    with pytest.raises(ConfigError, match=r"a path that all machines share, got .*sweep', which"):
        sweep_on_ray({"one": config}, print, tmp_path / "sweep", quiet=True)
    assert not list((tmp_path / "sweep").iterdir())
