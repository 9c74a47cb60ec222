"""The folder of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from errno import EEXIST, ENOTDIR, ENOTEMPTY
from functools import cached_property
from itertools import count
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

from filelock import FileLock, Timeout

from esper_rl.errors import ConfigError, config_errors
from esper_rl.runs.atomic_write import remove_unfinished, write_atomically
from esper_rl.runs.checkpoint import Checkpoint
from esper_rl.runs.digest import digest_of_run, is_signed, is_whole, sign, with_total_steps


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run and the names of the files in it."""

    path: Path

    @property
    def holds_run(self) -> bool:
        """Is this the folder of a run that has begun, and not one with a ``config.yaml`` only?"""
        return self.config.is_file() and (self.checkpoint.is_file() or self.resume.is_dir())

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    def read_configuration(self) -> str:
        """The text of ``config.yaml``, as the run has written it.

        Raises:
            ConfigError: when it has been cut or changed since.
        """
        with config_errors(f"{self.config}: "):
            text = self.config.read_text(encoding="utf-8")
        if is_whole(text) or (not is_signed(text) and self._is_of_an_older_version()):
            return text
        raise ConfigError(
            f"{self.config} isn't as the run has written it: its last line, the digest of all "
            f"above, {'is of another text' if is_signed(text) else 'is missing'}; bring back what "
            "it was; `esper-rl evaluate RUN KEY=VALUE` plays in another world, `--resume RUN "
            "total_steps=N` trains for longer, `--config FILE` begins a new run"
        )

    def _is_of_an_older_version(self) -> bool:
        """Has it a policy without a digest?"""
        return self.checkpoint.is_file() and not Checkpoint.read(self.checkpoint, "cpu").digest

    @cached_property
    def digest(self) -> str:
        """The digest that its files carry, see :func:`esper_rl.runs.digest.digest_of_run`."""
        return digest_of_run(self.read_configuration())

    def extend(self, total_steps: int) -> None:
        """Write another number of steps into its configuration."""
        text = with_total_steps(self.read_configuration(), total_steps)
        write_atomically(self.config, text.encode())

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

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that are its own, but for points and what loggers write."""
        return (
            self.config, self.metrics, self.provenance, self.checkpoint, self.good_checkpoint,
            self.learning_curve, self.report, self.evaluation,
        )  # fmt: skip

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
                overwritten; or is inside the folder of another run.
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
    for above in path.absolute().parents:
        if RunFolder(above).holds_run:
            raise FileExistsError(
                f"run_dir: got {str(path)!r}, which is inside the folder of a run, {str(above)!r}; "
                "name one elsewhere"
            )
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
        RunFolder(unfinished).config.write_text(sign(config), encoding="utf-8")
        unfinished.rename(path)  # fails if there is a folder with something in it
    except OSError as error:
        rmtree(unfinished)
        if error.errno in (ENOTEMPTY, EEXIST, ENOTDIR):
            return False
        raise
    return True
