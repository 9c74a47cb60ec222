"""Where a run keeps what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from esper_rl.training.config import TrainConfig, dump_config, load_config


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run and the names of the files in it."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """Makes the folder of a new run, with its configuration in it.

        Raises:
            FileExistsError: when ``config.run_dir`` exists already: a run is never overwritten.
        """
        path = _make_named(Path(config.run_dir)) if config.run_dir else _make_unused(config)
        folder = cls(path)
        folder.config.write_text(dump_config(config))
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run that has been started.

        Raises:
            FileNotFoundError: when ``path`` isn't the folder of a run.
        """
        folder = cls(Path(path))
        for needed in (folder.config, folder.checkpoint):
            if not needed.is_file():
                raise FileNotFoundError(
                    f"run: got {str(path)!r}, which has no {needed.name}; "
                    "name a folder that `esper-rl train` has made"
                )
        return folder

    def read_config(self) -> TrainConfig:
        """The configuration that the run was started with."""
        return load_config(self.config.read_text())


def _make_named(path: Path) -> Path:
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise FileExistsError(
            f"run_dir: got {str(path)!r}, which exists already and is never overwritten; "
            "name a new folder, or leave run_dir out to have one named by the time"
        ) from error
    return path


def _make_unused(config: TrainConfig) -> Path:
    """runs/<task>-<time>, with a number behind it if another run took the name in that second."""
    name = f"{config.env.task}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the numbers never end")
