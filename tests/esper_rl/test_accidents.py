"""What happens to a run when disk, terminal, parent or numbers fail it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from esper_rl import Callback, load_policy, resume, train
from esper_rl.cli import main
from esper_rl.config import TrainConfig, dump_config
from esper_rl.evaluation import OPEN_LOOP, evaluate_run
from esper_rl.runs import RunFolder
from esper_rl.training.worker_processes import WorkerLostError
from tests.support.runs import assert_same_run, command, read_metrics, weights

Configure = Callable[..., TrainConfig]


# -- numbers ---------------------------------------------------------------------------------


def largest_weight(run: Path) -> float:
    return max(w.abs().max().item() for w in weights(run).values())


def test_updates_that_explode_are_said_and_the_policy_before_is_kept(
    tiny_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_config("ppo.lr=10", "total_steps=60"))
    assert "the updates have exploded" in capsys.readouterr().err
    assert largest_weight(run) > 5
    (run / "checkpoint.pt").unlink()
    (run / "checkpoint.good.pt").rename(run / "checkpoint.pt")
    assert largest_weight(run) < 5


def test_a_run_without_accidents_keeps_one_policy(tiny_config: Configure) -> None:
    assert not (train(tiny_config()) / "checkpoint.good.pt").exists()


def test_a_run_that_fails_keeps_the_policy_of_the_iteration_before(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny_overrides, "ppo.lr=1e30"]) == 1
    assert "the last good policy is in" in capsys.readouterr().err
    run = tmp_path / "run"
    if (run / "checkpoint.good.pt").exists():  # the first update was finite, but too large
        (run / "checkpoint.good.pt").replace(run / "checkpoint.pt")
    assert largest_weight(run) < 5


# -- the disk --------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_lost(
    tiny_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, write = tmp_path / "run", Path.write_bytes
    writes = []

    def fails_at_last(file: Path, content: bytes) -> int:
        writes.append(file)
        if len(writes) > 8:  # of the second iteration
            write(file, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return write(file, content)

    monkeypatch.setattr(Path, "write_bytes", fails_at_last)
    assert main(["train", *tiny_overrides, "total_steps=60"]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in message
    assert not list(run.rglob("*.tmp"))
    assert load_policy(run)
    monkeypatch.setattr(Path, "write_bytes", write)
    resume(run)
    assert [line["steps"] for line in read_metrics(run)] == [20, 40, 60]


def test_an_evaluation_that_cannot_be_written_is_shown(
    tiny_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(tiny_config())
    (run / "evaluation.json").mkdir()
    assert len(evaluate_run(run, episodes=2)["greedy"].returns) == 2
    assert "can't be written" in caplog.text


def test_evaluations_are_kept_side_by_side_and_the_fullest_is_the_runs(
    tiny_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(tiny_config())

    def kept() -> list[tuple[int, int, list[str]]]:
        content = json.loads((run / "evaluation.json").read_text())
        everything = [content, *content["others"]]
        return [(each["episodes"], each["seed"], each["settings"]) for each in everything]

    evaluate_run(run, episodes=3, seed=1, controls=[OPEN_LOOP])
    evaluate_run(run, episodes=1, seed=1)
    assert "the fuller evaluation of 3 episodes" in caplog.text
    assert kept() == [(3, 1, []), (1, 1, [])]
    evaluate_run(run, episodes=3, seed=1)
    evaluate_run(run, episodes=4, seed=1, settings=["env.max_epochs=4"])
    evaluate_run(run, episodes=2, seed=2, gamma=0.5)
    assert kept() == [
        (3, 1, []),
        (1, 1, []),
        (4, 1, ["env.max_epochs=4"]),
        (2, 2, ["ppo.gamma=0.5"]),
    ]
    content = json.loads((run / "evaluation.json").read_text())
    assert OPEN_LOOP.name in content["policies"]  # though the later one was without
    assert OPEN_LOOP.name in content["by_episode"]
    resume(run, total_steps=2 * tiny_config().total_steps)
    evaluate_run(run, episodes=2)
    assert kept()[0][0] == 2  # of what the policy is now


def test_what_no_evaluation_is_read_from_is_said_and_replaced(
    tiny_config: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(tiny_config())
    file = run / "evaluation.json"
    for damaged in ("{", "[]", '{"policies": 1}', '{"policies": {}, "others": 1}'):
        file.write_text(damaged)
        evaluate_run(run, episodes=1)
        assert "can't be read and is replaced" in caplog.text
        assert json.loads(file.read_text())["episodes"] == 1
        caplog.clear()


def test_one_episode_has_no_interval(
    tiny_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_config())
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0
    table = capsys.readouterr().out
    assert "nan" not in table

    def refuse(name: str) -> None:
        raise ValueError(name)

    written = json.loads((run / "evaluation.json").read_text(), parse_constant=refuse)
    assert written["policies"]["greedy"]["returns"]["ci95"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_run_made_on_a_gpu_plays_and_goes_on_without_one(
    tiny_config: Configure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dump(config: TrainConfig) -> str:
        return dump_config(config).replace("device: cpu", "device: cuda:0")

    with monkeypatch.context() as there:
        there.setattr("esper_rl.training.trainer.dump_config", dump)
        run = train(tiny_config())
    assert load_policy(run)
    assert "cuda:0 is not on this machine" in caplog.text
    assert len(evaluate_run(run, episodes=2)["greedy"].returns) == 2
    assert resume(run) == run


# -- the terminal ----------------------------------------------------------------------------


def test_a_terminal_without_greek_letters() -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command("train", "--help"), env=ascii_only, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("ending", ["2>/dev/full", "2>&-"])
def test_a_terminal_that_is_gone(ending: str, tiny_overrides: list[str], tmp_path: Path) -> None:
    words = " ".join([*command("train", *tiny_overrides), "eval_episodes=0", ending])
    assert subprocess.run(words, shell=True).returncode == 0
    assert len(read_metrics(tmp_path / "run")) == 2


# -- other processes -------------------------------------------------------------------------


def children(process: int) -> list[int]:
    """Processes whose parent it is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == process:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("loading", "seconds", "kind"),
    [
        (True, 0.1, signal.SIGINT),  # while libraries load
        (False, 1, signal.SIGINT),  # while processes start
        (False, 0.05, signal.SIGTERM),  # while the first is given what it needs
    ],
)
def test_an_end_at_the_start_prints_no_trace(
    loading: bool,
    seconds: float,
    kind: signal.Signals,
    tiny_overrides: list[str],
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        command("train", *tiny_overrides, "workers=2"),
        stderr=subprocess.PIPE,
        text=True,
        # A process that is started in the background inherits an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    assert process.stderr is not None
    if loading:
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)
    else:
        assert any(line.endswith("the processes start\n") for line in process.stderr)
    time.sleep(seconds)
    os.killpg(process.pid, kind)  # a terminal sends it to all processes of the command
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert len(errors.splitlines()) == 1
    assert errors.startswith("esper-rl: interrupted")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_run_leaves_no_processes(tiny_overrides: list[str], tmp_path: Path) -> None:
    words = command("train", *tiny_overrides, "workers=2", "total_steps=1000000")
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    patience = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.05)
    left = children(process.pid)
    assert len(left) >= 2
    process.kill()
    process.wait()
    patience = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in left):
        assert time.monotonic() < patience, "a worker lives on"
        time.sleep(0.05)


# -- memory ----------------------------------------------------------------------------------


def test_too_little_memory_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where others have taken what the machine has."""
    assert main(["train", "env.num_envs=1000000000", "workers=1"]) == 2
    assert "num_envs=1000000000 must be smaller: it takes about" in capsys.readouterr().err
    for module in ("morphogenesis", "populations.trained"):
        monkeypatch.setattr(f"envs.{module}.check_memory", lambda *_: None)
    assert main(["train", "env.num_envs=1000000000", "workers=1"]) == 1
    errors = capsys.readouterr().err
    assert "esper-rl: out of memory" in errors
    assert "env.num_envs" in errors


# -- processes -------------------------------------------------------------------------------


class KillsWorker(Callback):
    """Kills one of the processes that collect, after the first iteration."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.killed = False

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        if not self.killed:
            self.killed = True
            worker = active_children()[0]
            worker.kill()
            worker.join()


@pytest.mark.parametrize("collector", ["sync", "async"])
def test_a_run_that_loses_a_process_says_so_and_goes_on_bitwise(
    collector: str, tiny_config: Configure, tmp_path: Path
) -> None:
    words = ("workers=2", "total_steps=80", f"collector={collector}")
    whole = train(tiny_config(*words, f"run_dir={tmp_path / 'whole'}"))
    said = r"^a worker that collects has ended, .* `esper-rl train --resume .*run` goes on$"
    with pytest.raises(WorkerLostError, match=said):
        train(tiny_config(*words), [KillsWorker()])
    assert_same_run(resume(tmp_path / "run"), whole)
