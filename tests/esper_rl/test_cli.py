"""The command: its help, its output, its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

import esper_rl.cli as cli
from esper_rl.training.config import describe_options


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


def test_evaluation_can_be_left_out(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *tiny_overrides, "eval_episodes=0"]) == 0
    assert "policy " not in capsys.readouterr().out
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks"]) == 0
    names = ["cifar10", "digits", "digits_full", "digits_varied", "pydoc", "scaffold"]
    assert capsys.readouterr().out.split() == names


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "env.tusk=digits"], "'env.task'"),
        (["train", "env.task=digit"], "digits_full"),
        (["train", "total_steps=lots"], "'lots'"),
        (["train", "run_dir=/"], "exists already"),
        (["train", f"run_dir={__file__}/run"], "File exists"),
        (["train", "device=abacus"], "such as cpu, got 'abacus'"),
        (["evaluate", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.err.startswith("esper-rl: ")
    assert says in captured.err


@pytest.mark.parametrize("words", [[], ["grow"], ["evaluate"], ["evaluate", "x", "--episodes=0"]])
def test_bad_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "usage: esper-rl" in capsys.readouterr().err


def test_a_run_that_fails_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object) -> Path:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(cli, "train", fail)
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
    for key, default, text in describe_options():
        assert f"{key}={default}" in help_text
        assert " ".join(text.split()) in help_text
