"""What others can hook into a run: callbacks, and tasks that only this process knows."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase

from envs import make_task, register_task
from esper_rl import Callback, TrainConfig, load_policy, train
from esper_rl.evaluation import PLAYERS, evaluate_run
from esper_rl.runs import RunFolder
from esper_rl.runs.metrics import read_latest

Configure = Callable[..., TrainConfig]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_registered_task_is_known_to_all_processes(tiny_config: Configure, workers: int) -> None:
    task = replace(make_task("digits"), name="short", max_epochs=4)
    register_task("short", lambda: task)
    run = train(
        tiny_config("task=short", "env.max_epochs=null", f"workers={workers}", "total_steps=20")
    )
    assert set(evaluate_run(run, episodes=2)) == {player.name for player in PLAYERS}


class Recorder(Callback):
    def __init__(self, fails_at: int | None = None) -> None:
        self.seen: list[object] = []
        self.batches: list[torch.Size] = []
        self.fails_at = fails_at

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.seen.append((config.total_steps, run.config.is_file()))

    def on_rollout(self, batch: TensorDictBase) -> None:
        self.batches.append(batch.batch_size)

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        if metrics["steps"] == self.fails_at:
            raise RuntimeError("the disk is full")
        self.seen.append(dict(metrics))

    def on_end(self) -> None:
        self.seen.append("end")


def test_callbacks_see_the_run(tiny_config: Configure) -> None:
    recorder = Recorder()
    run = train(tiny_config(), callbacks=[recorder])
    start, *iterations, end = recorder.seen
    assert (start, end) == ((40, True), "end")
    assert recorder.batches == [torch.Size([4, 5])] * 2
    with (run / "metrics.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in iterations] == written


def test_a_callback_that_fails_ends_the_run_in_order(tiny_config: Configure) -> None:
    first, second = Recorder(), Recorder(fails_at=40)
    with pytest.raises(RuntimeError, match="the disk is full"):
        train(tiny_config(), callbacks=[first, second])
    assert [first.seen[-1], second.seen[-1]] == ["end", "end"]
    assert len(second.seen) == 3
    run = tiny_config().run_dir
    assert (Path(run) / "learning_curve.png").is_file()
    assert load_policy(run)


def test_a_line_that_is_being_written_is_not_the_latest_one(tmp_path: Path) -> None:
    """Others look at a run's metrics while it trains."""
    file = tmp_path / "metrics.csv"
    assert read_latest(file, "return")[0] == 0
    file.write_text("steps,return,loss\n20,0.5,1.0\n40,0.75,2.0\n60,0.")
    assert read_latest(file, "return") == (2, 0.75)
    with pytest.raises(ValueError, match="accuracy"):
        read_latest(file, "accuracy")
