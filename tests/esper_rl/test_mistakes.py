"""Mistakes on a command line: each is said in one line that names what to do."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from envs.registration import registered_only
from esper_rl import Callback, cli, train
from esper_rl.config import TrainConfig
from esper_rl.runs import RunFolder
from tests.support.pages import Page
from tests.support.runs import TINY, command, read_metrics

Configure = Callable[..., TrainConfig]

OWN = """
from dataclasses import dataclass, replace
from envs import make_task, register_task

@dataclass(frozen=True, kw_only=True, eq=False)
class Short:  # what it defines can't be imported elsewhere
    epochs: int = 6

def short():
    return replace(make_task("digits"), name="short", max_epochs=Short().epochs)

register_task("short", short)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", *TINY, f"run_dir={folder}", "--quiet"]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "tusk=digits"], "'task'"),
        (["train", "ppo.learning_rate=1"], "the nearest is 'ppo.lr'"),
        (["train", "ppo.entropy_coef=1"], "the nearest is 'ppo.entropy_coeff'"),
        (["train", "task=digit"], "digits_full"),
        (["train", "total_steps=lots"], "'lots'"),
        (["train", "run_dir=/"], "exists already"),
        (["train", f"run_dir={__file__}/run"], "File exists"),
        (["train", "device=abacus"], "such as cpu, got 'abacus'"),
        (["evaluate", "nowhere"], "nowhere"),
        (["train", "zzzzqqq=3"], "there is no field 'zzzzqqq'; `esper-rl train --help` lists all"),
        (["train", "device=meta"], "one of PyTorch's on this machine, such as cpu, got 'meta'"),
        (["train", "env.num_envs=1e20"], "env.num_envs must be an integer of at least 1 and below"),
        (
            ["train", "env.num_envs=1e12", "steps_per_iteration=1e12", "total_steps=1e12"],
            "num_envs=1000000000000 must be smaller: it takes about",
        ),
        (["train", "policy.hidden_size=1e8"], "hidden_size=100000000 must be smaller"),
        (["train", "total_steps=1e24"], "total_steps must be an integer from 1 to 1000000000000"),
        (["train", "policy.initial_logits.op=[1,2]"], "policy: initial_logits of 'op' must be 6"),
        (["train", "policy.embeddings.colour=2"], "policy: the environment has no 'colour'"),
        (["train", "reward.intervention={WAIT:-5}"], "intervention[WAIT] must be a number of at"),
        (["train", "policy.hidden_columns=[112]"], "policy: hidden_columns must be columns of the"),
        (
            ["train", "task=scaffold", "env.num_envs=4"],
            "ppo.minibatches must be an integer from 1 to 4, the rows, which are never split, got "
            "8; ppo.minibatches=8 is what task 'scaffold' needs",
        ),
        (["evaluate", "RUN", "env.num_slots=2"], "as many slots as it was trained with, 3"),
        (["grow", "wait", "reward.schedule=[{key: rent, start: 1}]"], "is for training"),
        (["train", "run_dir=RUN/sub"], "which is inside the folder of a run"),
        (["train", "task=short"], "in a file that `esper-rl … --import FILE.py` runs"),
        (["tasks", "--import", "nothing.py"], "--import must name a Python file or a module"),
        (["tasks", "--import", "no_such_module"], "No module named 'no_such_module'"),
        (["tasks", "--import", "BROKEN"], "line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("a = 0\n1 / a\n")
    before = sorted(tmp_path.rglob("*"))
    places = {"RUN": run, "BROKEN": broken}
    for name, path in places.items():
        words = [word.replace(name, str(path)) for word in words]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("esper-rl: ")
    assert says in line
    assert sorted(tmp_path.rglob("*")) == before


# -- one's own files --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_every_command_knows_a_task_of_ones_own_file(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the processes that collect and evaluate, which can't import the file."""
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text(OWN)
    words = [*TINY, "task=short", "env.max_epochs=null", f"workers={workers}", f"run_dir={run}"]
    commands = (
        ["train", *words, "steps_per_iteration=24", "total_steps=24"],
        ["evaluate", str(run), "--episodes=2"],
        ["report", str(run), "--episodes=2"],
        ["train", "--resume", str(run), "total_steps=48"],
        ["tasks"],
    )
    for each in commands:
        with registered_only():
            assert cli.main([*each, "--import", str(own)]) == 0, each
    assert "short\n" in capsys.readouterr().out
    assert len(read_metrics(run)) == 2
    assert RunFolder(run).provenance.read_text().count("\n") == 2


def test_a_run_says_what_it_was_begun_with(tmp_path: Path) -> None:
    own, run = tmp_path / "own.py", tmp_path / "run"
    own.write_text(OWN)
    words = ["train", *TINY, "task=short", f"run_dir={run}", "--quiet"]
    subprocess.run(command(*words, "--import", str(own)), check=True)
    for each in (["evaluate", str(run)], ["report", str(run)], ["train", "--resume", str(run)]):
        done = subprocess.run(command(*each), capture_output=True, text=True)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"the run was begun by __main__.py {' '.join(words)} --import {own}" in line
    assert cli.main(["compare", str(run)]) == 0  # its settings can be read


# -- runs -------------------------------------------------------------------------------------


def test_one_episode_has_a_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluation.json").unlink()
    assert cli.main(["evaluate", str(run), "--episodes=1"]) == 0
    told = capsys.readouterr().out
    assert "±" not in told
    assert told.endswith("one episode; more of them have an interval\n")
    assert cli.main(["report", str(run), "--episodes=1"]) == 0
    assert "Result" in Page((run / "report.html").read_text()).cells


def test_what_a_comparison_leaves_out_is_said(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    lost = Path(shutil.copytree(run, tmp_path / "lost"))
    (lost / "config.yaml").unlink()
    with caplog.at_level(logging.WARNING):
        assert cli.main(["compare", str(run), str(lost), str(tmp_path / "empty")]) == 0
    assert f"{lost} is left out: it has no config.yaml" in caplog.text
    assert f"{tmp_path / 'empty'} is left out: no run is there" in caplog.text


def test_a_run_that_is_renamed_while_it_trains(
    tiny_config: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(str(tiny_config().run_dir))

    class Renames(Callback):
        def on_iteration(self, metrics: Mapping[str, float]) -> None:
            if metrics["steps"] == 40:
                run.rename(run.with_name("elsewhere"))

    with pytest.raises(FileNotFoundError, match="has been renamed or removed"):
        train(tiny_config("total_steps=80"), [Renames()])
    assert cli.main(["train", "--resume", str(run.with_name("elsewhere"))]) == 0
    assert [line["steps"] for line in read_metrics(run.with_name("elsewhere"))] == [20, 40, 60, 80]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_many_processes_that_start_are_ended_at_once(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    words = command("train", *tiny_overrides, "env.num_envs=64", "workers=64")
    words += ["steps_per_iteration=640"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "are more than this machine's" in line:
            break
    time.sleep(2)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 130
    assert time.monotonic() - asked < 30  # not until all of them have started
    assert errors.strip().splitlines()[-1].startswith("esper-rl: interrupted")
