"""Runs that were ended and go on."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase

from benchmarks.killing import kill_until_over, numbers, starts_at_once
from envs.actions import Op
from esper_rl import Callback, load_policy, resume, train
from esper_rl.cli import main
from esper_rl.config import TrainConfig, compose_config, load_config
from esper_rl.errors import ConfigError
from esper_rl.runs import CheckpointError, RunFolder
from tests.support.runs import TINY, assert_same_run, command, read_metrics

Configure = Callable[..., TrainConfig]
LONG = ("env.max_epochs=7", "total_steps=80", "eval_episodes=0", "threads=1")
"""Four iterations; episodes end in the middle of them."""


class Copies(Callback):
    """Copies of the run's folder in every iteration before that is saved, as if it ended there."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.run, self.iterations = run.path, 0

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        self.iterations += 1
        shutil.copytree(self.run, ended_in(self.run, self.iterations))


class Paid(Callback):
    """What planting has cost in every iteration, by row: the dearest and the cheapest."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.prices: list[list[float]] = []

    def on_rollout(self, batch: TensorDictBase) -> None:
        planted = batch["next", "metrics", "executed_op"] == Op.GERMINATE
        assert planted.any(1).all()  # in every row, and so in every worker
        costs = -batch["next", "reward_terms", "intervention"].squeeze(-1)[planted]
        self.prices.append([costs.min().item(), costs.max().item()])


def ended_in(run: Path, iteration: int) -> Path:
    return run.with_name(f"ended in {iteration}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has ended, with copies beside it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(compose_config([*TINY, *LONG, f"run_dir={folder}"]), [Copies()])


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """One that was ended in its third iteration, to go on with or to damage."""
    return Path(shutil.copytree(ended_in(whole, 3), tmp_path / "copy"))


@pytest.mark.parametrize("iteration", [1, 2, 3, 4])
def test_a_run_goes_on_bitwise(iteration: int, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ended_in(whole, iteration), tmp_path / "copy"))
    assert resume(run) == run
    assert_same_run(run, whole)


@pytest.mark.parametrize("collector", ["sync", "async"])
def test_with_several_processes_it_does_too(tiny_config: Configure, collector: str) -> None:
    threads = torch.get_num_threads()
    words = ("env.max_epochs=7", "total_steps=80", "workers=2", f"collector={collector}")
    whole = train(tiny_config(*words), [Copies()])
    assert torch.get_num_threads() == threads
    assert_same_run(resume(ended_in(whole, 2)), whole)


DEARER = "reward.schedule=[{key: intervention.GERMINATE, start: 0.0, begin: 0.2, end: 0.6}]"


@pytest.mark.parametrize("workers", [1, 2])
def test_prices_go_on_where_they_were(tiny_config: Configure, workers: int) -> None:
    """Every worker is paid at the prices that the metrics name."""
    eager = "policy.initial_logits.op=[-9,9,0,-9,-9,9]"
    final = "reward.intervention.GERMINATE=2.0"
    paid = Paid()
    config = tiny_config(DEARER, eager, final, "total_steps=100", f"workers={workers}")
    whole = train(config, [Copies(), paid])
    prices = [row["price/intervention.GERMINATE"] for row in read_metrics(whole)]
    assert prices == pytest.approx([0.0, 0.0, 1.0, 2.0, 2.0], abs=1e-6)
    assert paid.prices == [pytest.approx([price] * 2) for price in prices]
    assert_same_run(resume(ended_in(whole, 2)), whole)


def test_with_the_threads_that_it_was_begun_with(whole: Path, run: Path) -> None:
    """They decide how sums are rounded."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    resume(run)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)
    assert_same_run(run, whole)


def test_a_run_that_is_over_stays_as_it_is(tiny_config: Configure) -> None:
    run = train(tiny_config())
    before = (run / "metrics.csv").read_bytes()
    resume(run)
    assert (run / "metrics.csv").read_bytes() == before


def test_a_run_that_began_with_another_ones_policy_goes_on_without_that_run(
    tiny_config: Configure, tmp_path: Path
) -> None:
    start = train(tiny_config(f"run_dir={tmp_path / 'start'}"))
    whole = train(tiny_config(f"start_from={start}", "total_steps=60"), [Copies()])
    unsaved, saved = ended_in(whole, 1), ended_in(whole, 2)
    assert_same_run(resume(unsaved), whole)
    shutil.rmtree(start)
    assert_same_run(resume(saved), whole)


# -- what is on disk -------------------------------------------------------------------------


def points(run: Path) -> list[Path]:
    return sorted((run / "resume").glob("iteration-*"))


def test_the_latest_points_and_the_best_one_are_kept(tiny_config: Configure) -> None:
    run = train(tiny_config("total_steps=160"))
    returns = [line["return"] for line in read_metrics(run)]
    best = 1 + max(range(8), key=lambda i: returns[i])
    kept = [int(file.stem.split("-")[1]) for file in points(run)]
    assert kept == sorted({best, 6, 7, 8})


@pytest.mark.parametrize(
    "damage", ["cut off", "emptied", "a bit flipped", "another file", "renamed", "of another run"]
)
def test_a_damaged_point_is_named_and_the_one_before_used(
    damage: str, run: Path, whole: Path, caplog: pytest.LogCaptureFixture, tiny_config: Configure
) -> None:
    latest = points(run)[-1]
    if damage == "renamed":
        latest = latest.rename(latest.with_name("iteration-000000000099.torchrl"))
    other = train(tiny_config("total_steps=20", "seed=8")) if damage == "of another run" else None
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 4
    half = content[: len(content) // 2]
    new = {"cut off": half, "emptied": b"", "a bit flipped": content, "another file": b"hello"}
    if damage in new:
        latest.write_bytes(new[damage])
    elif other is not None:
        latest.write_bytes(points(other)[-1].read_bytes())
    resume(run)
    assert str(latest) in caplog.text
    assert_same_run(run, whole)


def test_nothing_but_damaged_points_is_an_error(run: Path) -> None:
    for file in points(run):
        file.write_bytes(b"")
    metrics = (run / "metrics.csv").read_bytes()
    with pytest.raises(CheckpointError, match="no point that can be read"):
        resume(run)
    assert (run / "metrics.csv").read_bytes() == metrics


def test_a_run_whose_points_are_gone_never_begins_anew(whole: Path, run: Path) -> None:
    over = Path(shutil.copytree(whole, run.with_name("over")))
    for folder in (over, run):
        shutil.rmtree(folder / "resume")
    before = {file.name: file.read_bytes() for file in over.iterdir()}
    assert resume(over) == over
    assert {name: (over / name).read_bytes() for name in before} == before
    assert {file.name for file in over.iterdir()} - set(before) == {"resume"}
    for goes_on in (lambda: resume(run), lambda: resume(over, total_steps=100)):
        with pytest.raises(CheckpointError, match=r"no point from which .* start_from="):
            goes_on()
    assert len(read_metrics(run)) == 3


def test_a_run_is_made_longer(whole: Path, tmp_path: Path, tiny_config: Configure) -> None:
    """Whether it was over or not; and nothing of what it has done is done otherwise."""
    run = Path(shutil.copytree(whole, tmp_path / "longer"))
    resume(run, total_steps=120)
    assert [line["steps"] for line in read_metrics(run)] == [20, 40, 60, 80, 100, 120]
    assert numbers(run)[:4] == numbers(whole)
    assert main(["train", "--resume", str(run), "total_steps=140"]) == 0
    assert load_config((run / "config.yaml").read_text()).total_steps == 140
    with pytest.raises(ConfigError, match="of at least 141, got 140"):
        resume(run, total_steps=140)


@pytest.mark.parametrize("change", ["seed: 4", "total_steps: 800", "a line end"])
def test_a_changed_configuration_is_never_taken(change: str, run: Path, capsys) -> None:
    file = run / "config.yaml"
    text = file.read_text()
    key = change.partition(" ")[0]
    edited = re.sub(rf"(?m)^{key} .*$", change, text)
    if change == "a line end":
        edited = "".join(text.splitlines(keepends=True)[:20])
    file.write_text(edited)
    for words in (["train", "--resume"], ["evaluate"], ["report"]):
        assert main([*words, str(run)]) == 2
        assert "config.yaml isn't as the run has written it" in capsys.readouterr().err
    file.write_text(text.replace("\n", "\r\n"))
    resume(run)


def test_a_policy_of_another_run_is_refused(run: Path, tiny_config: Configure) -> None:
    other = train(tiny_config("total_steps=20", "seed=8"))
    shutil.copy(other / "checkpoint.pt", run / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="is of another run"):
        load_policy(run)


def test_what_a_killed_process_has_begun_is_removed(run: Path, whole: Path) -> None:
    begun = run / "resume" / ".iteration-000000000002.torchrl.stage-0a"
    shutil.copytree(run / "resume", begun)
    resume(run)
    assert not begun.exists()
    assert_same_run(run, whole)


class Evil:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def with_payload(file: Path, evil: Evil) -> None:
    """Put a pickle in the place of every file of tensors in a point."""
    with zipfile.ZipFile(file) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(file, "w") as new:
        for name, content in members.items():
            new.writestr(name, pickle.dumps(evil) if name.endswith(".pt") else content)


def test_a_crafted_point_is_refused_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    evil = Evil(tmp_path / "it ran")
    for file in points(run):
        with_payload(file, evil)
    with pytest.raises(CheckpointError, match="no point that can be read"):
        resume(run)
    assert not evil.folder.exists()
    pickle.loads(pickle.dumps(evil))
    assert evil.folder.exists()  # it would have


def test_lines_of_metrics_that_were_cut_off_are_written_again(run: Path, whole: Path) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("80,4,1.2")
    resume(run)
    assert_same_run(run, whole)


def test_metrics_that_are_lost_are_said_and_the_run_goes_on(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:2]) + lines[2][:9])
    resume(run)
    assert "has lost lines" in caplog.text
    assert [line["steps"] for line in read_metrics(run)] == [20, 60, 80]


# -- from a terminal -------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start in no time")
def test_a_run_that_is_killed_again_and_again_goes_on_bitwise(whole: Path, tmp_path: Path) -> None:
    server, chance, kills, runs = starts_at_once(), random.Random(0), 0, 0
    while kills < 20:
        run = tmp_path / f"run {runs}"
        kills += sum(1 for _ in kill_until_over(server, run, (*TINY, *LONG), 1.5, chance))
        assert_same_run(run, whole)
        runs += 1


def test_two_processes_never_train_in_one_folder(tiny_config: Configure, capsys) -> None:
    codes = []

    class Meanwhile(Callback):
        def on_iteration(self, metrics) -> None:
            run = tiny_config().run_dir
            done = subprocess.run(
                command("train", "--resume", run), capture_output=True, text=True, check=False
            )
            assert "which another process is training in" in done.stderr
            codes.append(done.returncode)

    train(tiny_config("total_steps=20"), [Meanwhile()])
    assert codes == [2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "{}/nothing"], "has no config.yaml"),
        (["--resume", "{}", "ppo.lr=1"], "only total_steps=N may be given, leave out ppo.lr=1"),
    ],
)
def test_bad_input(words, message, tmp_path: Path, capsys) -> None:
    assert main(["train", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_what_was_drawn_before_a_run_goes_on_changes_nothing(run: Path, whole: Path) -> None:
    torch.manual_seed(123)
    resume(run)
    assert_same_run(run, whole)
