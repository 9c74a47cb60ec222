"""What writing a file leaves alone: links, devices, other files; and names that are no UTF-8."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from esper_rl import cli, train
from esper_rl.config import compose_config
from esper_rl.evaluation import evaluate_run
from esper_rl.runs import RunFolder
from esper_rl.runs.atomic_write import write_atomically
from tests.support.runs import TINY

OUTPUTS = (
    (["evaluate", "{run}", "--output"], ("config.yaml", "evaluation.json", "checkpoint.pt")),
    (["evaluate", "{run}", "--save-network"], ("checkpoint.pt2", "evaluation.pt2", "report.pt2")),
    (["evaluate", "{run}", "--video"], ("learning_curve.png",)),
    (["report", "{run}", "--output"], ("checkpoint.pt", "metrics.csv", "../other/report.html")),
    (["compare", "{run}", "--output"], ("config.yaml", "report.html")),
    (["export", "{run}", "--output"], ("checkpoint.pt",)),
    (["grow", "wait", "--network"], ("checkpoint.pt2", "report.pt2")),
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("run", "other"):
        train(compose_config([*TINY, "total_steps=20", f"run_dir={folder / name}"]))
    (folder / "other" / "report.html").write_text("of the other one")
    return folder


@pytest.mark.parametrize(
    ("words", "name"), [(words, name) for words, names in OUTPUTS for name in names]
)
def test_outputs_never_replace_a_runs_own_files(
    words: list[str], name: str, two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def content() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in two_runs.rglob("*") if file.is_file()}

    run = two_runs / "run"
    for spelled in (run / name, two_runs / "link" / name):
        before = content()
        told = [word.format(run=run) for word in words]
        assert cli.main([*told, str(spelled)]) == 2
        error = capsys.readouterr().err
        assert "which would replace" in error or "must end in" in error
        assert content() == before
        if not (two_runs / "link").exists():
            (two_runs / "link").symlink_to(run)


@pytest.mark.parametrize("output", [".", "folder.html", "page.txt", "nowhere/page.html"])
def test_where_no_page_can_be_is_said_before_the_work(
    output: str, two_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(two_runs)
    Path("folder.html").mkdir(exist_ok=True)
    for command in ("report", "compare"):
        assert cli.main([command, "run", "--output", output]) == 2
        assert "--output must" in capsys.readouterr().err
    assert cli.main(["report", "run", "--episodes=1", "--output", os.devnull]) == 0
    assert cli.main(["report", "run", "--episodes=1", "--output", "run/report.html"]) == 0


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"before")
    target.chmod(0o640)
    link.symlink_to("target")
    write_atomically(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    (tmp_path / "dangling").symlink_to("new")
    write_atomically(tmp_path / "dangling", b"new")
    assert (tmp_path / "new").read_bytes() == b"new"


def test_what_is_no_regular_file_is_written_in_place(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_atomically(pipe, b"through")
    reader.join(10)
    assert got == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_atomically(Path(os.devnull), b"gone")
    assert not Path(os.devnull).is_file()


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Temporary names are its own, also where somebody's look alike."""
    names = ("file.tmp", ".file.json.tmp", "file.json.tmp", ".file.json-.unfinishe")
    for name in names:
        (tmp_path / name).write_text(name)
    write_atomically(tmp_path / "file.json", b"{}")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "file.json"])
    assert all((tmp_path / name).read_text() == name for name in names)


def test_what_a_killed_process_left_is_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path / "run"), "digits", "")
    left = run.path / ".checkpoint.pt-0123.unfinished"
    left.write_bytes(b"half")
    with run.locked():
        assert not left.exists()


@pytest.mark.parametrize("encoded", [b"run-\xff", "rün".encode()], ids=["latin", "utf"])
def test_folders_of_any_name(
    encoded: bytes, tiny_overrides: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture
) -> None:
    name = os.fsdecode(encoded)
    run = str(tmp_path / name)
    codes = [
        cli.main(words)
        for words in (
            ["train", *tiny_overrides, f"run_dir={run}", "total_steps=20"],
            ["train", "--resume", run, "--json"],
            ["evaluate", run, "--episodes", "3", "--json"],
            ["report", run, "--episodes", "2"],
        )
    ]
    told = capfdbinary.readouterr().err
    assert codes == [0] * 4
    assert b"can't be" not in told
    assert os.listdir(os.fsencode(tmp_path)) == [encoded]


def test_tensorboard_has_no_folder_whose_name_is_no_utf8(
    tiny_overrides: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture
) -> None:
    run = str(tmp_path / os.fsdecode(b"run-\xff"))
    words = ["train", *tiny_overrides, f"run_dir={run}", "loggers=[tensorboard]"]
    assert cli.main(words) == 2
    assert b"whose name isn't UTF-8" in capfdbinary.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_picture_that_cannot_be_written_decides_nothing(
    tiny_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on storage that can only be read."""
    run = tmp_path / "run"
    assert cli.main(["train", *tiny_overrides, "eval_episodes=0"]) == 0
    write = Path.write_bytes

    def refuse(file: Path, content: bytes) -> int:
        if run in file.parents:
            raise OSError(30, "Read-only file system", str(file))
        return write(file, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: refuse(run / "p", b""))
    assert len(evaluate_run(run, episodes=2)["greedy"].returns) == 2
    assert "the evaluation can't be written" in caplog.text
    assert "learning_curve.png can't be drawn" in caplog.text


@pytest.mark.parametrize("damage", ["bytes", "words", "zeros"])
def test_metrics_that_are_none(
    damage: str, tiny_overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert cli.main(["train", *tiny_overrides, "eval_episodes=0", "total_steps=60"]) == 0
    metrics = run / "metrics.csv"
    lines = metrics.read_bytes().splitlines(keepends=True)
    lines[2] = {
        "bytes": b"\xff\xfe" + lines[2],
        "words": lines[2].replace(b"40,", b"forty,", 1),
        "zeros": b"\0" + lines[2],
    }[damage]
    metrics.write_bytes(b"".join(lines))
    assert cli.main(["evaluate", str(run), "--episodes", "2"]) == 0
    assert cli.main(["report", str(run), "--episodes", "2"]) == 0
    assert "metrics.csv can't be read" in caplog.text
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert "has lost lines" in caplog.text
