"""Training data: examples, their minibatches, and what an answer is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from envs.batched.randomness import shuffled
from envs.populations.objectives import make_objective


class LabelledData:
    """Examples with a target each, for many networks at once. An epoch's minibatches share none.

    Args:
        train: inputs ``[M, …]`` of any dtype and targets ``[M, …]``, as the loss takes them.
        validation: the same of the V validation examples.
        prepare: makes of raw inputs what the networks take.
        batches_per_epoch, minibatch_size: at most M examples an epoch.
        device: where everything lives.
        loss: see :func:`~envs.populations.objectives.make_objective`.

    Attributes:
        inputs: of the training examples, ``[M, features…]``.
        targets: of the same.
        validation_size: V.
        objective: loss and score.
        num_answers: that the validation asks for.
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
        loss: nn.Module | None = None,
    ) -> None:
        self.batches_per_epoch, self.minibatch_size = batches_per_epoch, minibatch_size
        self.inputs, self.targets = prepare(train[0]).to(device), train[1].to(device)
        self._validation = prepare(validation[0]).to(device), validation[1].to(device)
        self.validation_size = len(validation[1])
        self.objective = make_objective(loss or nn.CrossEntropyLoss(), device)
        self.num_answers = self.objective.count(self.validation_targets())

    def to(self, device: torch.device) -> None:
        """Move the examples to a device."""
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
        inputs, targets = self._validation
        self._validation = inputs.to(device), targets.to(device)
        self.objective.module.to(device)

    def draw(self, keys: Tensor) -> Tensor:
        """Choose an epoch's minibatches for int64 ``keys [N]``: int64 ``[N, batches, B]``."""
        shape = self.batches_per_epoch, self.minibatch_size
        return shuffled(keys, len(self.targets), math.prod(shape)).unflatten(1, shape)

    def train_inputs(self, examples: Tensor) -> Tensor:
        """Inputs of the training examples ``[n, B]``: ``[n, B, features…]``."""
        return self.inputs[examples]

    def train_targets(self, examples: Tensor) -> Tensor:
        """Targets of the training examples ``[n, B]``: ``[n, B, …]``."""
        return self.targets[examples]

    def validation_inputs(self) -> Tensor:
        """Inputs of all validation examples, the same for every network: ``[V, features…]``."""
        return self._validation[0]

    def validation_targets(self) -> Tensor:
        """Targets of all validation examples: ``[V, …]``."""
        return self._validation[1]
