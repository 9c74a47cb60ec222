"""Loggers of TorchRL as callbacks: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec

from tensordict import TensorDictBase

from esper_rl.errors import ConfigError
from esper_rl.growing.monitors import distributions
from esper_rl.runs import RunFolder
from esper_rl.runs.files import printable
from esper_rl.training.callbacks import Callback
from esper_rl.training.config import TrainConfig

BINS = "auto"
"""Intervals of a histogram are chosen by its values."""


def make_loggers(config: TrainConfig) -> list[Callback]:
    """Make the callbacks that ``config.loggers`` asks for.

    Raises:
        ConfigError: if one needs a package that isn't installed.
    """
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
    return [ExperimentLog(name) for name in config.loggers]


class ExperimentLog(Callback):
    """All metrics, distributions and the learning curve, for one of TorchRL's loggers.

    TensorBoard shows the run's folder ``tensorboard``, MLflow its file ``mlflow.db`` or the server
    that ``MLFLOW_TRACKING_URI`` names. The distributions are those of
    :func:`esper_rl.growing.monitors.distributions`; they and the picture are TensorBoard's only.

    Args:
        name: ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        from torchrl.record.loggers import MLFlowLogger, get_logger  # takes a second

        self.run = run
        if self.name == "mlflow":  # get_logger would have it write a folder, which it now refuses
            self.outer_uri = os.environ.get("MLFLOW_TRACKING_URI")
            database = f"sqlite:///{run.path.absolute() / 'mlflow.db'}"
            self.logger = MLFlowLogger(run.path.name, self.outer_uri or database)
        else:
            experiment = self.name if self.name == "tensorboard" else run.path.name
            self.logger = get_logger(self.name, str(run.path), experiment)

    def on_rollout(self, batch: TensorDictBase) -> None:
        self.batch = batch

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        steps = int(metrics["steps"])
        for name, value in metrics.items():
            if math.isfinite(value):
                self.logger.log_scalar(name, value, steps)
        if self.name == "tensorboard":
            for name, values in distributions(self.batch).items():
                if len(values):
                    self.logger.log_histogram(name, values, step=steps, bins=BINS)

    def on_end(self) -> None:
        if self.name == "tensorboard" and self.run.learning_curve.exists():
            from imageio.v3 import imread

            picture = imread(self.run.learning_curve)
            self.logger.experiment.add_image("learning curve", picture, dataformats="HWC")
        self.logger.close()
        if self.name == "mlflow":  # TorchRL leaves its run and its database to those that follow
            import mlflow

            mlflow.end_run()
            mlflow.set_tracking_uri(self.outer_uri)
