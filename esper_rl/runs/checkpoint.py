"""The file that keeps a policy."""

from __future__ import annotations

import io
import pickle
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper_rl.runs.atomic_write import write_atomically


class CheckpointError(ValueError):
    """A file that holds no policy, or one that doesn't fit; the message says what differs."""


@dataclass(frozen=True)
class Checkpoint:
    """A policy as a file keeps it.

    Attributes:
        policy: fields of its configuration.
        topology: of the hosts that it was trained on.
        steps: environment steps that it has been trained for.
        weights: of its network.
        digest: of the run's configuration, see :mod:`esper_rl.runs.digest`; empty in files of older
            versions.
    """

    policy: dict[str, Any]
    topology: str
    steps: int
    weights: dict[str, Tensor]
    digest: str = ""

    def write(self, file: Path) -> None:
        """Write it so that ``file`` is whole at every moment, also when interrupted.

        Raises:
            OSError: when it can't be written; ``file`` stays as it was.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        buffer = io.BytesIO()
        torch.save(content, buffer)  # PyTorch's own errors don't say that a disk is full
        write_atomically(file, buffer.getvalue())

    @classmethod
    def read(cls, file: Path, device: str) -> Checkpoint:
        """Read what :meth:`write` has written, onto a device.

        Raises:
            CheckpointError: when the file is damaged, or something else.
        """
        try:
            content = torch.load(file, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{file} is not a checkpoint, or it is damaged") from error
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        missing = needed - set(content if isinstance(content, dict) else ())
        if missing:
            raise CheckpointError(
                f"{file} is not a checkpoint of a policy: it has no {min(missing)!r}"
            )
        weights = content["weights"]
        for name, weight in weights.items() if isinstance(weights, dict) else [("weights", None)]:
            if not isinstance(weight, Tensor) or not weight.isfinite().all():
                raise CheckpointError(
                    f"{file} holds no policy that can play: {name} must be a tensor of finite "
                    "numbers"
                )
        known = [field.name for field in fields(cls) if field.name in content]
        return cls(**{name: content[name] for name in known})

    def difference(self, weights: dict[str, Tensor], topology: str) -> str | None:
        """Say in what it first differs from a network's weights and a topology, or None."""
        if self.topology != topology:
            return f"it was trained on {self.topology} hosts, not on {topology} ones"
        for name in [*weights, *self.weights]:
            have = list(self.weights[name].shape) if name in self.weights else "missing"
            want = list(weights[name].shape) if name in weights else "unknown"
            if have != want:
                return f"{name} is {have} in the file and {want} here"
        return None
