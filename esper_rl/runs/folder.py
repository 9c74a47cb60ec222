"""The folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from errno import EEXIST, ENOTDIR, ENOTEMPTY
from itertools import count
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

from filelock import FileLock, Timeout

from esper_rl.runs.atomic_write import remove_unfinished, write_atomically


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
    def provenance(self) -> Path:
        """With what the run was started, and went on: see :mod:`esper_rl.runs.provenance`."""
        return self.path / "provenance.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def good_checkpoint(self) -> Path:
        """The policy before the updates exploded, if they did."""
        return self.path / "checkpoint.good.pt"

    def keep_checkpoint(self) -> None:
        """Copy the checkpoint to :attr:`good_checkpoint`, if there is none yet."""
        if self.checkpoint.exists() and not self.good_checkpoint.exists():
            write_atomically(self.good_checkpoint, self.checkpoint.read_bytes())

    @property
    def resume(self) -> Path:
        """Folder of the points from which the run can go on."""
        return self.path / "resume"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder.

        Raises:
            BlockingIOError: when one does.
        """
        self.resume.mkdir(exist_ok=True)
        lock = FileLock(self.resume / ".lock")  # the system unlocks it when the process ends
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise BlockingIOError(
                f"run: got {str(self.path)!r}, which another process is training in; wait for it, "
                "or end it"
            ) from error
        try:
            remove_unfinished(self.path)
            yield
        finally:
            lock.release()

    @classmethod
    def create(cls, path: str | None, name: str, config: str) -> RunFolder:
        """Make the folder of a new run, with its configuration in it.

        Args:
            path: where; None makes ``runs/NAME-TIME``.
            name: what the run is about, for that.
            config: text of its ``config.yaml``.

        Raises:
            FileExistsError: when ``path`` exists already and isn't an empty folder: a run is never
                overwritten.
        """
        return cls(_make_named(Path(path), config) if path else _make_unused(name, config))

    @classmethod
    def open(cls, path: str | Path, *, begun: bool = False) -> RunFolder:
        """The folder of a run that has been started.

        Args:
            path: where.
            begun: it may have been ended before there was a policy.

        Raises:
            FileNotFoundError: when ``path`` isn't the folder of a run.
        """
        folder = cls(Path(path))
        for needed in (folder.config, *([] if begun else [folder.checkpoint])):
            if not needed.is_file():
                raise FileNotFoundError(
                    f"run: got {str(path)!r}, which has no {needed.name}; "
                    "name a folder that `esper-rl train` has made"
                )
        return folder


def _make_named(path: Path, config: str) -> Path:
    if not _make(path, config):
        raise FileExistsError(
            f"run_dir: got {str(path)!r}, which exists already and is never overwritten; "
            "name a new folder, or leave run_dir out to have one named by the time"
        )
    return path


def _make_unused(about: str, config: str) -> Path:
    """runs/ABOUT-TIME, with a number behind it if another run took the name in that second."""
    name = f"{about}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if _make(path, config):
            return path
    raise AssertionError("unreachable: the numbers never end")


def _make(path: Path, config: str) -> bool:
    """Make a folder with its configuration in it, at once; False if there is something."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}-{uuid4().hex}")
    unfinished.mkdir()
    try:
        RunFolder(unfinished).config.write_text(config, encoding="utf-8")
        unfinished.rename(path)  # fails if there is a folder with something in it
    except OSError as error:
        rmtree(unfinished)
        if error.errno in (ENOTEMPTY, EEXIST, ENOTDIR):
            return False
        raise
    return True
