"""Loggers: TensorBoard by default, others where they are installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensordict import TensorDict

from envs.actions import Stage
from esper_rl import Callback, TrainConfig, train
from esper_rl.errors import ConfigError
from esper_rl.growing.monitors import distributions
from tests.support.runs import read_metrics

Configure = Callable[..., TrainConfig]


def test_tensorboard_has_what_the_metrics_file_has(tiny_config: Configure) -> None:
    run = train(tiny_config("loggers=[tensorboard]"))
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    rows = read_metrics(run)
    tags = events.Tags()
    for name in rows[0]:
        written = {int(row["steps"]): row[name] for row in rows if math.isfinite(row[name])}
        shown = events.Scalars(name) if name in tags["scalars"] else []
        assert {each.step: each.value for each in shown} == pytest.approx(written, rel=1e-6), name
    assert [each.step for each in events.Histograms("distribution/return")] == [20, 40]
    assert events.Histograms("distribution/return")[0].histogram_value.num == 4  # episodes
    assert tags["images"] == ["learning curve"]


def test_mlflow_has_every_run(
    tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the second one of a process."""
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("first", "second"):
        run = train(tiny_config("loggers=[mlflow]", f"run_dir={tmp_path / name}"))
        client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
        (experiment,) = client.search_experiments(filter_string=f"name = '{name}'")
        (logged,) = client.search_runs([experiment.experiment_id])
        assert logged.info.status == "FINISHED"
        shown = {
            each.step: each.value
            for each in client.get_metric_history(logged.info.run_id, "return")
        }
        written = {int(row["steps"]): row["return"] for row in read_metrics(run)}
        assert shown == pytest.approx(written)


def test_weights_and_biases_has_the_last_metrics(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    seen = []

    class Look(Callback):
        def on_iteration(self, metrics: Mapping[str, float]) -> None:
            seen.append((wandb.run.name, wandb.run.summary["return"]))

    run = train(tiny_config("loggers=[wandb]"), callbacks=[Look()])
    assert seen == [("run", row["return"]) for row in read_metrics(run)]
    assert wandb.run is None, "the next run of this process is another one"


def test_without_loggers_there_is_only_the_file(tiny_config: Configure) -> None:
    assert not (train(tiny_config()) / "tensorboard").exists()


def test_a_logger_that_is_not_installed_is_refused_before_the_run(
    tiny_config: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("esper_rl.training.loggers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="loggers: wandb isn't installed; `pip install wandb`"):
        train(tiny_config("loggers=[wandb]"))
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_is_refused(tiny_config: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loggers must be one of 'tensorboard', .*'paper'"):
        train(tiny_config("loggers=[paper]"))
    assert not (tmp_path / "run").exists()


def test_distributions_are_of_what_ended_was_earned_or_stays() -> None:
    stage = torch.full((2, 3, 2), Stage.DORMANT)
    stage[1, 2, 0] = Stage.FOSSILIZED  # at the end of an episode
    stage[0, 1, 1] = Stage.FOSSILIZED  # in its middle
    credit, delay = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2, dtype=torch.long)
    credit[0, 1, 0], delay[0, 1, 0] = 0.5, 7
    done = torch.zeros(2, 3, 1, dtype=torch.bool)
    done[1, 2] = True
    numbers = torch.arange(6.0).view(2, 3, 1)
    outcome = {
        "done": done,
        "episode_return": numbers,
        "recurrent_state_c": torch.full((2, 3, 1, 4), 0.5),
        "metrics": {
            "stage": stage,
            "val_accuracy": numbers + 10,
            "contribution": torch.stack([numbers, numbers], -1).squeeze(2) + 20,
            "pending_hindsight_credit": credit,
            "hindsight_delay": delay,
        },
    }
    found = distributions(TensorDict({"next": outcome}, [2, 3]))
    assert {
        name.removeprefix("distribution/"): values.tolist() for name, values in found.items()
    } == {
        "return": [5.0],
        "final_accuracy": [15.0],
        "hindsight_credit": [0.5],
        "hindsight_delay": [7.0],
        "contribution": [25.0],
        "cell_norm": [1.0] * 6,
    }
