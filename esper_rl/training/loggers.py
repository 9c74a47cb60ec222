"""Loggers of TorchRL as callbacks: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from tensordict import TensorDictBase

from esper_rl.config import TrainConfig
from esper_rl.errors import ConfigError, check_choice, config_errors
from esper_rl.growing.monitors import distributions
from esper_rl.runs import RunFolder
from esper_rl.runs.atomic_write import printable
from esper_rl.training.callbacks import Callback


class ExperimentLog(Callback, ABC):
    """All metrics, for one of TorchRL's loggers."""

    logger: Any

    @abstractmethod
    def open(self, run: RunFolder) -> Any:
        """Make TorchRL's logger for a run."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.run = run
        self.logger = self.open(run)

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if math.isfinite(value):
                self.logger.log_scalar(name, value, int(metrics["steps"]))

    def on_end(self) -> None:
        self.logger.close()


class TensorBoardLog(ExperimentLog):
    """Into the run's folder ``tensorboard``, with distributions and, at the end, the picture.

    The distributions are those of :func:`esper_rl.growing.monitors.distributions`.
    """

    def open(self, run: RunFolder) -> Any:
        from torchrl.record.loggers import get_logger  # takes a second

        return get_logger("tensorboard", str(run.path), "tensorboard")

    def on_rollout(self, batch: TensorDictBase) -> None:
        self.batch = batch

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        super().on_iteration(metrics)
        for name, values in distributions(self.batch).items():
            if len(values):  # "auto": the intervals follow from the values
                self.logger.log_histogram(name, values, step=int(metrics["steps"]), bins="auto")

    def on_end(self) -> None:
        if self.run.learning_curve.exists():
            from imageio.v3 import imread

            picture = imread(self.run.learning_curve)
            self.logger.experiment.add_image("learning curve", picture, dataformats="HWC")
        super().on_end()


class WandbLog(ExperimentLog):
    """Into Weights & Biases, as an experiment with the run's name."""

    def open(self, run: RunFolder) -> Any:
        from torchrl.record.loggers import get_logger

        return get_logger("wandb", str(run.path), run.path.name)


class MLFlowLog(ExperimentLog):
    """Into the run's file ``mlflow.db``, or the server that ``MLFLOW_TRACKING_URI`` names."""

    def open(self, run: RunFolder) -> Any:
        # TorchRL's get_logger would have it write a folder, which MLflow refuses now.
        from torchrl.record.loggers import MLFlowLogger

        self.outer_uri = os.environ.get("MLFLOW_TRACKING_URI")
        database = f"sqlite:///{run.path.absolute() / 'mlflow.db'}"
        return MLFlowLogger(run.path.name, self.outer_uri or database)

    def on_end(self) -> None:
        import mlflow

        super().on_end()
        mlflow.end_run()  # TorchRL leaves its run and its database to those that follow
        mlflow.set_tracking_uri(self.outer_uri)


LOGGERS: dict[str, type[ExperimentLog]] = {
    "tensorboard": TensorBoardLog,
    "wandb": WandbLog,
    "mlflow": MLFlowLog,
}
"""Loggers by the name of the package that they need."""


def make_loggers(config: TrainConfig) -> list[Callback]:
    """Make the callbacks that ``config.loggers`` asks for.

    Raises:
        ConfigError: for one that there isn't, or that needs a package that isn't installed.
    """
    with config_errors():
        for name in config.loggers:
            check_choice("loggers", name, LOGGERS)
    for name in config.loggers:
        if find_spec(name) is None:
            raise ConfigError(
                f"loggers: {name} isn't installed; `pip install {name}`, or leave it out"
            )
    folder = config.run_dir or ""
    if "tensorboard" in config.loggers and printable(folder) != folder:  # it would wait for ever
        raise ConfigError(
            f"loggers: tensorboard can't write into {printable(folder)!r}, whose name isn't UTF-8; "
            "name another run_dir, or set loggers=[]"
        )
    return [LOGGERS[name]() for name in config.loggers]
