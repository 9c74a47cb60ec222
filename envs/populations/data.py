"""Training data: examples, their minibatches, and the score of an answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.randomness import shuffled


class Data(Protocol):
    """The examples of one task, for many networks at once.

    Attributes:
        batches_per_epoch, minibatch_size: minibatches of an epoch, examples of a minibatch B.
        validation_size: validation examples V.
    """

    batches_per_epoch: int
    minibatch_size: int
    validation_size: int

    def to(self, device: torch.device) -> None:
        """Move the examples to a device."""
        ...

    def draw(self, keys: Tensor) -> Tensor:
        """Choose an epoch's minibatches for int64 ``keys [N]``: int64 ``[N, batches, B]``."""
        ...

    def train_inputs(self, examples: Tensor) -> Tensor:
        """Inputs of the training examples ``[n, B]``: ``[n, B, features…]``."""
        ...

    def train_targets(self, examples: Tensor) -> Tensor:
        """Targets of the training examples ``[n, B]``: ``[n, B, …]``."""
        ...

    def validation_inputs(self) -> Tensor:
        """Inputs of all validation examples, the same for every network: ``[V, features…]``."""
        ...

    def validation_targets(self) -> Tensor:
        """Targets of all validation examples: ``[V, …]``."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each of n networks with outputs ``[n, B, …]``, ``[n]``."""
        ...

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Number of right answers of each of n networks, as floats ``[n]``."""
        ...


class LabelledData:
    """Examples with a class each, or a class for each of their positions.

    Outputs are logits ``[n, B, classes, positions…]``, targets ``[n, B, positions…]``; the loss is
    the cross-entropy in nats. An epoch's minibatches share no example.

    Args:
        train: inputs ``[M, …]`` of any dtype and int64 targets ``[M, positions…]``.
        validation: the same of the validation examples.
        prepare: makes of raw inputs what the networks take.
        batches_per_epoch, minibatch_size: at most M examples an epoch.
        device: where everything lives.

    Attributes:
        inputs: of the training examples, ``[M, features…]``.
        targets: int64 ``[M, positions…]``.
    """

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        prepare: Callable[[Tensor], Tensor],
        *,
        batches_per_epoch: int,
        minibatch_size: int,
        device: torch.device,
    ) -> None:
        self.batches_per_epoch, self.minibatch_size = batches_per_epoch, minibatch_size
        self.inputs, self.targets = prepare(train[0]).to(device), train[1].to(device)
        self._validation = prepare(validation[0]).to(device), validation[1].to(device)
        self.validation_size = len(validation[1])

    def to(self, device: torch.device) -> None:
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
        inputs, targets = self._validation
        self._validation = inputs.to(device), targets.to(device)

    def draw(self, keys: Tensor) -> Tensor:
        shape = self.batches_per_epoch, self.minibatch_size
        return shuffled(keys, len(self.targets), math.prod(shape)).unflatten(1, shape)

    def train_inputs(self, examples: Tensor) -> Tensor:
        return self.inputs[examples]

    def train_targets(self, examples: Tensor) -> Tensor:
        return self.targets[examples]

    def validation_inputs(self) -> Tensor:
        return self._validation[0]

    def validation_targets(self) -> Tensor:
        return self._validation[1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1), reduction="none")
        return each.view(len(outputs), -1).mean(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        best = outputs.max(2).indices  # several times as fast as argmax
        return (best == targets).to(outputs.dtype).flatten(1).sum(1)
