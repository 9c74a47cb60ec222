"""The command: its help, its output, its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import esper_rl.cli as cli
from esper_rl.config import compose_config, describe_options, load_config, make_env
from esper_rl.evaluation import evaluate
from esper_rl.growing.baselines import WaitPolicy
from tests.support.runs import TINY, command


def test_train_and_evaluate_print_the_table(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *tiny_overrides]) == 0
    trained = capsys.readouterr().out
    assert f"run folder: {tmp_path / 'run'}" in trained
    table = trained[trained.index("policy ") :]
    assert "over 3 episodes" in table
    assert (tmp_path / "run" / "evaluation.json").exists()

    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "3"]) == 0
    assert capsys.readouterr().out == table


def test_a_quiet_run_prints_json_alone(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *tiny_overrides, "--quiet", "--json"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert printed["run"] == str(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert printed["policies"] == written["policies"]
    assert "steps" not in captured.err
    assert "processes" not in captured.err


def test_a_log_gets_lines(tiny_overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No carriage returns, and a last line with all steps, whenever the one before was."""
    assert cli.main(["train", *tiny_overrides, "eval_episodes=0", "--json"]) == 0
    captured = capsys.readouterr()
    assert "\r" not in captured.err
    (last,) = [line for line in captured.err.splitlines() if " left, " in line]
    assert last.startswith("40 of 40 steps, 00:00 left, return ")
    assert json.loads(captured.out).keys() == {"run"}


def test_evaluation_can_be_left_out(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *tiny_overrides, "eval_episodes=0"]) == 0
    assert "policy " not in capsys.readouterr().out
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With data, host, slots and blueprints; one whose data aren't there says what it needs."""
    assert cli.main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [
        "cifar10",
        "digits",
        "digits_full",
        "digits_mixed",
        "digits_varied",
        "pydoc",
        "scaffold",
    ]
    starts = [i for i, line in enumerate(lines) if not line.startswith(" ")]
    assert [lines[i] for i in starts] == names
    assert max(map(len, lines)) <= 88
    texts = [
        " ".join(" ".join(lines[i + 1 : j]).split()) for i, j in pairwise([*starts, len(lines)])
    ]
    told = dict(zip(names, texts, strict=True))
    assert "missing: data_batch_1.bin" in told["cifar10"]
    assert "3 slots; 50 epochs an episode; 1,297 training and 500 validation" in told["digits"]
    assert "convolutional host of 1,090 parameters" in told["digits"]
    assert told["pydoc"].endswith("mlp_small, mlp, flex_attention")
    assert "closed-form" in told["scaffold"]


def test_settings_and_options_stand_in_any_order(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = tiny_overrides
    assert cli.main(["train", first, "--quiet", *others, "--json", "seed=7"]) == 0
    assert load_config((tmp_path / "run" / "config.yaml").read_text()).seed == 7
    capsys.readouterr()
    output = tmp_path / "other.json"
    words = ["evaluate", str(tmp_path / "run"), "--episodes=2", "task=digits_full", "--json"]
    assert cli.main([*words, "env.max_epochs=6", f"--output={output}"]) == 0
    written = json.loads(output.read_text())
    assert written["settings"] == ["task=digits_full", "env.max_epochs=6"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "seed=7", "--fast=1"],
        ["train", "seed=7", "--quiet", "seed"],
        ["report", "runs/first", "task=digits"],
        ["tasks", "--json", "seed=1"],
    ],
)
def test_what_no_command_takes_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    ended = subprocess.run(command("tasks"), stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_version_names_what_it_runs_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert f"esper-rl {version('esper-rl')}, torch {version('torch')}" in capsys.readouterr().out


def test_an_evaluation_of_another_world(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file is another one, and the run's own stays as it is; JSON is all that is printed."""
    run, output = tmp_path / "run", tmp_path / "other.json"
    assert cli.main(["train", *tiny_overrides]) == 0
    before = (run / "evaluation.json").read_bytes()
    capsys.readouterr()
    words = ["evaluate", str(run), "task=digits_full", "--episodes=2", "--seed=5", "--json"]
    assert cli.main([*words, f"--output={output}"]) == 0
    printed, written = json.loads(capsys.readouterr().out), json.loads(output.read_text())
    assert printed["policies"] == written["policies"]
    assert (written["seed"], written["settings"]) == (5, ["task=digits_full"])
    assert (run / "evaluation.json").read_bytes() == before
    played = written["by_episode"]["wait"]
    assert len(played["returns"]) == len(played["final_accuracy"]) == 2
    assert sum(played["returns"]) / 2 == pytest.approx(
        written["policies"]["wait"]["returns"]["mean"]
    )
    config = compose_config([*TINY, "task=digits_full"])
    env = make_env(config, num_envs=2, seed=5)
    torch.manual_seed(5)
    again = evaluate(WaitPolicy(), env, 2, gamma=config.ppo.gamma)
    assert played["returns"] == again.returns.tolist()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["task=pydoc"],
            "policy knows blueprints of convolutional hosts, pydoc has transformer",
        ),
        (["ppo.lr=1"], "a policy is played as it was trained"),
        (["env.num_slots=2"], "as many slots as it was trained with, 3"),
        (
            ["--output=nowhere/there.json"],
            "output must be in a folder that exists",
        ),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(
    words: list[str],
    says: str,
    tiny_overrides: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", *tiny_overrides, "eval_episodes=0"]) == 0
    capsys.readouterr()
    sizes = ["env.batches_per_epoch=null", "env.minibatch_size=null", "env.validation_size=null"]
    assert cli.main(["evaluate", str(tmp_path / "run"), *sizes, *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err


@pytest.mark.parametrize("words", [[], ["grow"], ["evaluate"], ["evaluate", "x", "--episodes=0"]])
def test_bad_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: esper-rl" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-3", "some", "1e2"])
def test_a_bad_number_of_episodes_is_named(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "x", f"--episodes={number}"])
    assert f"got {number}, allowed are whole numbers from 1" in capsys.readouterr().err


def test_a_run_that_fails_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, quiet: bool) -> Path:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr("esper_rl.cli.train.train", fail)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "esper-rl: the loss is nan\n"


def test_help_names_every_command_and_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    overview = capsys.readouterr().out
    assert all(command in overview for command in ("train", "evaluate", "tasks"))
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    for key, default, text, _ in describe_options():
        assert f"{key}={default}" in help_text
        assert " ".join(text.split()) in help_text
