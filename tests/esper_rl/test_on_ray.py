"""Collecting with workers of Ray: they do what processes do."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter

import pytest
import torch
from tensordict import TensorDictBase

from esper_rl import Callback, make_actor_critic, resume, train
from esper_rl.cli import main
from esper_rl.config import TrainConfig, compose_config, make_env
from esper_rl.errors import ConfigError
from esper_rl.policy import ActorCritic
from esper_rl.training import cluster as clusters
from esper_rl.training import trainer
from esper_rl.training.collection import make_collector
from esper_rl.training.sweep import sweep
from esper_rl.training.worker_processes import WorkerLostError
from tests.support.runs import assert_same_run

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


class KillsWorker(Callback):
    """Kills one of the workers' processes after an iteration."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.after, self.iterations = after, 0

        def kept(config: TrainConfig, actor_critic: ActorCritic) -> object:
            self.collector = make_collector(config, actor_critic)
            return self.collector

        monkeypatch.setattr(trainer, "make_collector", kept)

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        self.iterations += 1
        if self.iterations == self.after:
            worker = self.collector.remote_collectors[1]
            os.kill(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


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
            began = perf_counter()
            collector.update_policy_weights_()
            assert perf_counter() - began < 1.0  # nobody waits for a second
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
@pytest.mark.parametrize("seen", ["in saving", "in collecting"])
def test_a_run_that_loses_a_worker_says_so_and_goes_on_bitwise(
    seen: str, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point is saved after the first iteration, and none after the second."""
    kills = KillsWorker(monkeypatch, 1 if seen == "in saving" else 2)
    whole = train(tiny_config(*PART, f"run_dir={tmp_path / 'whole'}"), quiet=True)
    said = r"^a worker that collects has ended, .* `esper-rl train --resume .*run` goes on$"
    with pytest.raises(WorkerLostError, match=said):
        train(tiny_config(*PART, "collector=ray", "save_seconds=1e9"), [kills], quiet=True)
    monkeypatch.undo()
    assert_same_run(resume(tmp_path / "run", quiet=True), whole)


def test_without_ray_the_extra_is_named(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "ray", None)
    with pytest.raises(ConfigError, match=r"^Ray is a package of its own: .*\[ray"):
        train(tiny_config("collector=ray"), quiet=True)


def test_a_cluster_that_is_not_there_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        words = ["train", "collector=ray", f"ray.address={address}", f"run_dir={tmp_path / 'run'}"]
        assert main(words) == 2
    said = capsys.readouterr().err
    assert f"ray.address: no cluster of Ray answers at '{address}'" in said
    assert not (tmp_path / "run").exists()


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
    assert not clusters.describe_differences(mine, dict(mine))
    assert clusters.describe_differences(mine, {"torch": "2.12.0"}) == (
        "python none (3.11 here), torch 2.12.0 (2.13.0 here)"
    )


# -- sweeps -------------------------------------------------------------------------------------

SWEEP = ("sweep=ray", "seed=1,2", "eval_episodes=0")


@pytest.mark.usefixtures("cluster")
def test_a_sweep_goes_on_where_a_machine_died(tiny_overrides: list[str], tmp_path: Path) -> None:
    """One run dies with its process in the middle, and ends bitwise as if it hadn't."""
    words = [each for each in tiny_overrides if not each.startswith("run_dir")] + [*SWEEP]
    died, called = tmp_path / "died", tmp_path / "called"
    called.mkdir()

    def run(config: TrainConfig) -> None:
        from esper_rl import Callback, resume, train

        class Dies(Callback):
            def on_iteration(self, metrics: Mapping[str, float]) -> None:
                if config.seed == 2 and not died.exists():
                    died.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        (called / f"{config.seed}-{os.getpid()}").touch()
        if Path(config.run_dir or "").exists():
            resume(config.run_dir or "", quiet=True)
        else:
            train(config, [Dies()], quiet=True)

    folder = sweep([*words, f"hydra.sweep.dir={tmp_path / 'sweep'}"], run, quiet=True)
    assert died.exists()
    assert len(list(called.iterdir())) == 3
    for seed in (1, 2):
        alone = [each for each in words if not each.startswith(("seed", "sweep"))]
        whole = compose_config([*alone, f"seed={seed}", f"run_dir={tmp_path / str(seed)}"])
        assert_same_run(folder / f"seed={seed}", train(whole, quiet=True))


@pytest.mark.usefixtures("cluster")
def test_the_command_sweeps_on_ray_and_goes_on(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [each for each in tiny_overrides if not each.startswith("run_dir")]
    words += [*SWEEP, "sweep.at_once=1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    assert main(["train", "-m", *words]) == 0
    said = capsys.readouterr().err
    assert "2 of 2 runs are over" in said
    assert re.search(r"seed=1 +done +40 of 40 steps, return -?\d+\.\d+", said)
    assert main(["train", "-m", *words]) == 0
    assert main(["train", "-m", *words, "ppo.lr=0.1"]) == 2
    assert "is a run with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sweep=slurm"], "sweep must be one of 'hydra', 'ray', got 'slurm'"),
        (["sweep=ray", "sweep.at_once=0"], "sweep.at_once must be an integer of at least 1, got 0"),
        (
            ["sweep=ray", "sweep.at_once=x"],
            "sweep.at_once must be an integer .*, got 'x'",
        ),
        (["sweep.at_once=2"], "sweep.at_once is for sweep=ray"),
        (["sweep.often=2"], "sweep.often=2: there are sweep=ray and sweep.at_once=N"),
        (["sweep=ray", "hydra/launcher=joblib"], "is for Hydra's launchers"),
        (["sweep=ray", "collector=ray"], "collector must be sync or async in a sweep on Ray"),
    ],
)
def test_sweeps_that_cannot_be(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sweep([*words, "seed=1,2"], print)
