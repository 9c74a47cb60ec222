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
