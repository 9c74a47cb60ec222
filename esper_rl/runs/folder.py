"""The folder of a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path


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
    def create(cls, path: str | None, name: str, config: str) -> RunFolder:
        """Make the folder of a new run, with its configuration in it.

        Args:
            path: where; None makes ``runs/NAME-TIME``.
            name: what the run is about, for that.
            config: text of its ``config.yaml``.

        Raises:
            FileExistsError: when ``path`` exists already: a run is never overwritten.
        """
        folder = cls(_make_named(Path(path)) if path else _make_unused(name))
        folder.config.write_text(config)
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


def _make_named(path: Path) -> Path:
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise FileExistsError(
            f"run_dir: got {str(path)!r}, which exists already and is never overwritten; "
            "name a new folder, or leave run_dir out to have one named by the time"
        ) from error
    return path


def _make_unused(about: str) -> Path:
    """runs/ABOUT-TIME, with a number behind it if another run took the name in that second."""
    name = f"{about}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable: the numbers never end")
