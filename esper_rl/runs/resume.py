"""Points from which a run can go on."""

from __future__ import annotations

import io
import logging
import os
import shutil
from collections.abc import Mapping
from errno import ENOENT
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import Checkpoint, CheckpointRotation, StateDictCheckpointAdapter

from esper_rl.runs.atomic_write import errors_name
from esper_rl.runs.checkpoint import CheckpointError

KEPT = 3
"""Latest points that are kept, beside the best one."""

_PREFIX = "iteration"
_LOGGER = logging.getLogger(__name__)


class _Tensors(StateDictCheckpointAdapter):
    """State dicts as one file of tensors, numbers and strings, and nothing that could run.

    TorchRL's adapter also takes other forms of a payload, one of which may hold pickles, and lets
    PyTorch write to the disk itself, whose errors don't say that it is full.
    """

    def __init__(self) -> None:
        super().__init__("torch")

    def save(
        self, component: Any, path: Path, *, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        state, buffer = component.state_dict(*args, **kwargs), io.BytesIO()
        torch.save(state, buffer)
        path.mkdir(parents=True)
        (path / self.state_torch).write_bytes(buffer.getvalue())
        return state

    def load(
        self,
        component: Any,
        path: Path,
        *,
        map_location: Any,
        tensor_load_kwargs: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        state = torch.load(path / self.state_torch, map_location=map_location, weights_only=True)
        component.load_state_dict(state, *args, **kwargs)


class _Stamp:
    """The number of iterations that were over at a point, and the digest of its run."""

    def __init__(self, digest: str) -> None:
        self.digest, self.iterations = digest, 0

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest, "iterations": self.iterations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["digest"] != self.digest:
            raise ValueError("it is of another run")
        self.iterations = state["iterations"]


def has_points(folder: Path) -> bool:
    """Does a folder hold points, damaged ones too?"""
    return any(folder.glob(f"{_PREFIX}-*"))


class ResumePoints:
    """The latest and the best points of a run, a file each.

    A file appears whole or not at all (:class:`torchrl.checkpoint.Checkpoint` writes it elsewhere
    and renames it). TorchRL doesn't wait for the disk, doesn't look for an older file where the
    newest one is damaged, and leaves what a killed process has begun; that is done here.

    Args:
        folder: where they are, or will be.
        digest: of the run, see :mod:`esper_rl.runs.digest`; points of other runs aren't read.
        **components: what a point holds: objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, folder: Path, digest: str, **components: Any) -> None:
        self._checkpoint, self._stamp = Checkpoint(format="archive"), _Stamp(digest)
        for name, component in {"run": self._stamp, **components}.items():
            self._checkpoint.register(name, component, adapter=_Tensors())
        self._rotation = CheckpointRotation(
            folder, keep_last=KEPT, keep_best=("return", "max"), prefix=_PREFIX
        )

    def save(self, iterations: int, mean_return: float) -> None:
        """Save a point.

        Args:
            iterations: number of iterations that are over.
            mean_return: of the last one, nan if no episode has ended; the point where it is
                largest is kept.

        Raises:
            OSError: when it can't be written; the points before are as they were.
        """
        worst = torch.finfo(torch.float64).min
        self._stamp.iterations = iterations
        if not self._rotation.directory.is_dir():  # TorchRL would make another one
            raise FileNotFoundError(ENOENT, "No such folder", str(self._rotation.directory))
        metadata = {"return": mean_return if mean_return == mean_return else worst}
        with errors_name(self._rotation.directory):
            file = self._rotation.save(self._checkpoint, step=iterations, metadata=metadata)
        for path in (file, file.parent):
            opened = os.open(path, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)

    def load(self) -> int:
        """Load the latest point that can be read; those that can't are named in a warning.

        Returns:
            The number of iterations that were over then, 0 where nothing has been saved.

        Raises:
            CheckpointError: when there are points, but none that can be read.
        """
        folder = self._rotation.directory
        if not folder.is_dir():
            return 0
        for left in folder.glob(f".{_PREFIX}-*"):  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        files = sorted(folder.glob(f"{_PREFIX}-*"), reverse=True)
        for file in files:
            try:
                self._checkpoint.load(file)
                done = self._stamp.iterations
                if int(file.name.removeprefix(f"{_PREFIX}-").split(".")[0]) != done:
                    raise ValueError(f"it is the one after {done} iterations")
            except Exception as error:  # whatever a damaged file may lead to
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                _LOGGER.warning("%s can't be used, the point before is: %s", file, reason)
            else:
                return done
        if files:
            raise CheckpointError(
                f"{folder} has no point that can be read; `esper-rl evaluate` plays the policy in "
                "checkpoint.pt, a new run starts from the beginning"
            )
        return 0
