"""Objectives of training: a loss of :mod:`torch.nn`, and a score of answers.

Outputs of n networks for B examples are ``[n, B, C, …]``, channels first, targets of them
``[n, B, …]``; what is said of one network's has ``[C, …]``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Objective(ABC):
    """A loss and a score.

    Args:
        loss: of :mod:`torch.nn`; it is copied.

    Attributes:
        module: the loss of each answer by itself.
    """

    def __init__(self, loss: nn.Module) -> None:
        each: Any = deepcopy(loss).float()
        each.reduction = "none"
        self.module = each

    @abstractmethod
    def read(self, targets: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Targets ``[M, …]`` for outputs ``[C, …]`` of this shape, of the dtype that is needed.

        Raises:
            TypeError: for numbers of another kind.
            ValueError: for another shape, or a target that can't be. Messages go on after
                "targets must be".
        """

    @abstractmethod
    def guess(self, targets: Tensor, channels: int) -> float:
        """Loss of outputs that say nothing, of so many channels."""

    def limit(self, guess: float) -> float:
        """Loss beyond which a network may be failing, where guessing costs ``guess``."""
        return 10.0

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each network, ``[n]``."""
        each = self.module.to(outputs.dtype)(outputs, targets.to(outputs.dtype))
        return each.flatten(1).mean(1)

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the answers' scores, each at most 1, and of their squares: ``[n]`` both."""

    def mass(self, targets: Tensor) -> Tensor:
        """Weight of each target in the mean loss: float32, shaped like ``targets``."""
        return torch.ones_like(targets, dtype=torch.float32)

    def count(self, targets: Tensor) -> int:
        """Number of answers that are asked for."""
        return targets.numel()


class Classes(Objective):
    """Cross-entropy in nats of the right class; an answer that is right scores 1."""

    def read(self, targets: Tensor, shape: tuple[int, ...]) -> Tensor:
        hint = "; targets.argmax(1) makes classes of one-hot rows, targets.squeeze(1) of a column"
        _check_shape(targets, shape[1:], "a class for each of the host's answers", hint)
        whole = targets.long()
        if not targets.equal(whole.to(targets.dtype)):
            wrong = targets != whole.to(targets.dtype)
            _refuse("classes, whole numbers", targets, wrong, TypeError)
        if self.module.weight is not None and len(self.module.weight) != shape[0]:
            raise ValueError(
                f"weighted by a number for each of {shape[0]} classes, got "
                f"{len(self.module.weight)} in {self.module}"
            )
        known = (whole >= 0) & (whole < shape[0])
        wrong = ~known & (whole != self.module.ignore_index)
        if wrong.any():
            _refuse(
                f"classes from 0 to {shape[0] - 1}, which the host knows, or "
                f"{self.module.ignore_index} to be ignored",
                targets,
                wrong,
            )
        if not known.any():
            raise ValueError("asked for somewhere, got none but those to be ignored")
        return whole

    def guess(self, targets: Tensor, channels: int) -> float:
        return math.log(channels)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = self.module.to(outputs.dtype)(outputs.flatten(0, 1), targets.flatten(0, 1))
        mass = self.mass(targets).flatten(1).sum(1).to(outputs.dtype)
        return each.view(len(outputs), -1).sum(1) / torch.where(mass > 0, mass, 1.0)

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        best = outputs.max(2).indices  # several times as fast as argmax
        right = (best == targets) & self._asked(targets)
        total = right.to(outputs.dtype).flatten(1).sum(1)
        return total, total

    def mass(self, targets: Tensor) -> Tensor:
        asked, weight = self._asked(targets).float(), self.module.weight
        return asked if weight is None else asked * weight[targets.clamp(0, len(weight) - 1)]

    def count(self, targets: Tensor) -> int:
        return int(self._asked(targets).sum())

    def _asked(self, targets: Tensor) -> Tensor:
        return targets != self.module.ignore_index


class Labels(Objective):
    """Binary cross-entropy of several labels, each 1 or 0; one that is right scores 1."""

    def read(self, targets: Tensor, shape: tuple[int, ...]) -> Tensor:
        targets = _numbers(targets, shape)
        wrong = (targets < 0) | (targets > 1)
        if wrong.any():
            _refuse("labels from 0 to 1", targets, wrong)
        return targets

    def guess(self, targets: Tensor, channels: int) -> float:
        return self.loss(torch.zeros_like(targets)[None], targets[None]).item()

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        right = ((outputs > 0) == (targets > 0.5)).to(outputs.dtype).flatten(1).sum(1)
        return right, right


class Numbers(Objective):
    """Any loss of an error; an answer's score is 1 − its squared error by the targets' variance.

    So the mean score is R², the share of the variance that is explained: 1 if all is right, 0 for
    the targets' mean.
    """

    def read(self, targets: Tensor, shape: tuple[int, ...]) -> Tensor:
        targets = _numbers(targets, shape)
        if self.spread(targets) == 0:
            raise ValueError(f"numbers that differ, got {targets[0].flatten()[0]:g} everywhere")
        return targets

    def spread(self, targets: Tensor) -> Tensor:
        """Variance of targets ``[M, C, …]``, those of a channel around its mean: ``[]``."""
        return (targets - self._mean(targets)).square().mean()

    def limit(self, guess: float) -> float:
        return 4 * guess

    def guess(self, targets: Tensor, channels: int) -> float:
        mean = self._mean(targets).expand_as(targets)
        return self.loss(mean[None], targets[None]).item()

    def score(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        each = 1 - (outputs - targets).square() / self.spread(targets[0])
        each = torch.where(each.isfinite(), each, 0.0).flatten(1)
        return each.sum(1), each.square().sum(1)

    def _mean(self, targets: Tensor) -> Tensor:
        return targets.mean([0, *range(2, targets.dim())], keepdim=True)


OBJECTIVES: dict[type[nn.Module], type[Objective]] = {
    nn.CrossEntropyLoss: Classes,
    nn.BCEWithLogitsLoss: Labels,
    nn.MSELoss: Numbers,
    nn.L1Loss: Numbers,
    nn.SmoothL1Loss: Numbers,
    nn.HuberLoss: Numbers,
}
"""By class of the loss, which must be the very one."""


def make_objective(loss: nn.Module, device: torch.device | str = "cpu") -> Objective:
    """The objective of a loss, with a copy of it on a device.

    Raises:
        TypeError: for a loss that isn't one of :data:`OBJECTIVES`.
        ValueError: if it isn't a mean.
    """
    if type(loss) not in OBJECTIVES:
        allowed = ", ".join(f"nn.{each.__name__}" for each in OBJECTIVES)
        raise TypeError(f"loss must be one of {allowed}, got {loss!r}")
    if loss.reduction != "mean":
        raise ValueError(f"loss must have reduction='mean', got {loss.reduction!r}")
    objective = OBJECTIVES[type(loss)](loss)
    objective.module.to(device)
    return objective


def _numbers(targets: Tensor, shape: tuple[int, ...]) -> Tensor:
    if targets.dim() == 1 and shape == (1,):
        targets = targets[:, None]
    _check_shape(targets, shape, "a number for each output of the host")
    targets = targets.float()
    if not targets.isfinite().all():
        _refuse("finite", targets, ~targets.isfinite())
    return targets


def _check_shape(targets: Tensor, shape: tuple[int, ...], what: str, hint: str = "") -> None:
    if tuple(targets.shape[1:]) != shape:
        wanted = ", ".join(["M", *map(str, shape)])
        raise ValueError(f"of shape [{wanted}], {what}, got {list(targets.shape)}{hint}")


def _refuse(
    allowed: str, targets: Tensor, wrong: Tensor, error: type[Exception] = ValueError
) -> None:
    """Name the first example with a wrong target, and that."""
    first = int(wrong.reshape(len(wrong), -1).any(1).nonzero()[0])
    value = targets[first][wrong[first]].flatten()[0].item()
    raise error(f"{allowed}, got {value} in example {first}")
