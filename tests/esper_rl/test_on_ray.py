"""Collecting with workers of Ray: they do what processes do."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase

from benchmarks.killing import numbers, same_weights
from esper_rl import Callback, make_actor_critic, resume, train
from esper_rl.cli import main
from esper_rl.config import TrainConfig, make_env
from esper_rl.errors import ConfigError
from esper_rl.training import on_ray, trainer
from esper_rl.training.collection import make_collector
from esper_rl.training.worker_processes import WorkerLostError

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(300)

Configure = Callable[..., TrainConfig]
PART = ("env.max_epochs=7", "total_steps=60", "workers=2", "threads=1", "eval_episodes=0")
"""Three iterations; episodes end in the middle of them."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A small cluster that this process is in."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Kills(Callback):
    """Ends a worker in the second iteration."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, how: Callable[[object], None]) -> None:
        self.how, self.iterations = how, 0

        def kept(config: TrainConfig, actor_critic: object) -> object:
            self.collector = make_collector(config, actor_critic)
            return self.collector

        monkeypatch.setattr(trainer, "make_collector", kept)

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        self.iterations += 1
        if self.iterations == 1:
            self.how(self.collector.remote_collectors[1])


def kill_actor(worker: object) -> None:
    ray.kill(worker, no_restart=True)


def kill_process(worker: object) -> None:
    os.kill(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def assert_same_run(a: Path, b: Path) -> None:
    assert numbers(a) == numbers(b)
    assert same_weights(a, b)


@pytest.mark.usefixtures("cluster")
def test_workers_on_ray_give_bitwise_what_processes_give(
    tiny_config: Configure, tmp_path: Path
) -> None:
    on_cluster = train(tiny_config(*PART, "collector=ray"), quiet=True)
    in_processes = train(tiny_config(*PART, f"run_dir={tmp_path / 'processes'}"), quiet=True)
    assert_same_run(on_cluster, in_processes)


@pytest.mark.usefixtures("cluster")
def test_workers_act_by_what_the_learner_has_learned_and_remember(tiny_config: Configure) -> None:
    """In the step after an update; the recurrent state is that of the step before."""
    config = tiny_config(*PART, "steps_per_iteration=16", "collector=ray")
    actor_critic = make_actor_critic(config.policy, make_env(config, seed=0))
    collector = make_collector(config, actor_critic)
    try:
        batches: Iterator[TensorDictBase] = iter(collector)
        first = next(batches)
        for _ in range(2):
            with torch.no_grad():
                for parameter in actor_critic.network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            collector.update_policy_weights_()
            for policy in collector.get_distant_attr("policy"):
                mine, theirs = actor_critic.actor.state_dict(), policy.state_dict()
                assert mine.keys() == theirs.keys()
                assert all(torch.equal(mine[name], theirs[name]) for name in mine)
            second = next(batches)
            assert second.shape == (4, 4)
            carried = first["next", "recurrent_state_h"][:, -1]
            goes_on = ~first["next", "done"][:, -1, 0]
            assert goes_on.any()
            assert torch.equal(second["recurrent_state_h"][goes_on, 0], carried[goes_on])
            first = second
    finally:
        collector.shutdown()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("how", [kill_actor, kill_process])
def test_a_run_that_loses_a_worker_says_so_and_goes_on_bitwise(
    how: Callable[[object], None],
    tiny_config: Configure,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(tiny_config(*PART, f"run_dir={tmp_path / 'whole'}"), quiet=True)
    with pytest.raises(WorkerLostError, match=r"^1 of .* `esper-rl train --resume .*run` goes on$"):
        train(tiny_config(*PART, "collector=ray"), [Kills(monkeypatch, how)], quiet=True)
    monkeypatch.undo()
    assert_same_run(resume(tmp_path / "run", quiet=True), whole)


def test_without_ray_the_extra_is_named(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "ray", None)
    with pytest.raises(ConfigError, match=r"^collector=ray needs a package: .*\[ray"):
        train(tiny_config("collector=ray"), quiet=True)


def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path, capsys: object) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = ["train", "collector=ray", f"ray.address={address}", f"run_dir={tmp_path / 'run'}"]
        assert main(words) == 2
    said = capsys.readouterr().err
    assert f"ray.address: no cluster of Ray answers at '{address}'" in said


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_there_is_room_for_are_refused(tiny_config: Configure) -> None:
    with pytest.raises(ConfigError, match=r"^workers must be at most 2, .* ray\.cpus=1 .*, got 4$"):
        train(tiny_config("collector=ray", "workers=4"), quiet=True)


@pytest.mark.parametrize("address", ["", "here", "ray://host:1", "host:port", "host"])
def test_addresses_that_are_none(tiny_config: Configure, address: str) -> None:
    with pytest.raises(ConfigError, match=r"^ray\.address must be null, auto or HOST:PORT, got "):
        tiny_config(f"ray.address='{address}'")


def test_machines_need_the_versions_of_the_learner() -> None:
    mine = {"python": "3.11", "torch": "2.13.0"}
    assert not on_ray.describe_differences(mine, dict(mine))
    assert on_ray.describe_differences(mine, {"torch": "2.12.0"}) == (
        "python none (3.11 here), torch 2.12.0 (2.13.0 here)"
    )
