"""Tasks from arrays: inputs with a class each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from envs.batched.optimizers import SGD, Optimizer
from envs.checks import check_integer
from envs.hosts import ModuleHost
from envs.populations.data import LabelledData
from envs.populations.trained import TrainedPopulation
from envs.tasks.base import Task


class Examples(NamedTuple):
    """Inputs ``[M, …]`` and their classes, int64 ``[M, positions…]``."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayTask(Task):
    """A network of one's choice, trained on arrays to name the class of each example.

    Args:
        name: for people and run folders.
        host: the network to grow.
        train: inputs ``[M, …]`` and classes ``[M]``, as NumPy arrays, tensors or a
            :class:`~torch.utils.data.TensorDataset`. Hosts that answer for each position of an
            example take classes ``[M, positions…]``.
        validation: the same, other examples; or a number of examples to hold out from ``train``,
            by a permutation that is always the same.
        batches_per_epoch: minibatches of an epoch.
        minibatch_size: examples of a minibatch; an epoch's minibatches share none. Default: 64, or
            fewer where the data has no more.
        validation_size: how many of the validation examples are used, the first ones; default: all.
        optimizer: how parameters follow their gradients.
        topology, num_slots: default: the host's.
        parameter_budget: default: 8 times the host's parameters.
        guessing_loss: default: ln C for the host's C classes.
        description, max_epochs, warm_up, host_lr, seed_lr, loss_limit, reward, reward_terms: see
            :class:`Task`.

    Raises:
        TypeError: if arrays or sizes are of the wrong kind.
        ValueError: for an empty split, inputs and targets of different lengths, a number that
            isn't finite, a class that the host doesn't know, inputs that the host can't take, or
            sizes beyond the data. The message names the argument and the first bad example.

    Examples:
        >>> from envs import ArrayTask, ConvHost, MorphogenesisEnv
        >>> images, classes = torch.rand(200, 1, 8, 8), torch.arange(200) % 4
        >>> host = ConvHost(kernel_size=1, channels=(4, 8), pooled=(True, False), classes=4)
        >>> task = ArrayTask(name="mine", host=host, train=(images, classes), validation=50)
        >>> env = MorphogenesisEnv(task, num_envs=2, num_slots=2, batches_per_epoch=2)
        >>> env.rollout(3)["observation"].shape
        torch.Size([2, 3, 83])
    """

    host: ModuleHost
    train: Any = field(repr=False)
    validation: Any = field(repr=False)
    batches_per_epoch: int = 5
    optimizer: Optimizer = field(default_factory=SGD)
    # None stands for what host or data say; afterwards each is what its name says.
    minibatch_size: Any = None
    validation_size: Any = None
    topology: Any = None
    num_slots: Any = None
    parameter_budget: Any = None
    guessing_loss: Any = None

    def __post_init__(self) -> None:
        train, validation = _examples("train", self.train), self.validation
        _check_examples("train", train, self.host)
        if isinstance(validation, Integral):
            count = check_integer("validation", validation, most=len(train.targets) - 1)
            validation, train = hold_out(train, count)
        else:
            validation = _examples("validation", validation)
            _check_examples("validation", validation, self.host)
        most_examples = len(train.targets) // check_integer(
            "batches_per_epoch", self.batches_per_epoch
        )
        defaults = {
            "topology": self.host.topology,
            "num_slots": len(self.host.slot_channels),
            "parameter_budget": 8 * self.host_size,
            "minibatch_size": min(64, max(1, most_examples)),
            "validation_size": len(validation.targets),
            "guessing_loss": math.log(self.host.num_classes) or None,
        }
        values = {name: _given(getattr(self, name), default) for name, default in defaults.items()}
        for name, value in {"train": train, "validation": validation, **values}.items():
            self._set(name, value)
        super().__post_init__()
        most = len(self.host.slot_channels)
        check_integer("num_slots", self.num_slots, most=most, what="slots of the host")
        examples = len(train.targets)
        self._check("minibatch_size", examples, "training examples")
        most = examples // self.minibatch_size
        self._check("batches_per_epoch", most, "minibatches of that size")
        self._check("validation_size", len(validation.targets), "validation examples")

    @property
    def host_size(self) -> int:
        """Parameters of the host."""
        return sum(segment.size for segment in self.host.segments)

    def numbers(self) -> dict[str, float | str | None]:
        return super().numbers() | {"optimizer": repr(self.optimizer)}

    def _check(self, name: str, most: int, what: str) -> None:
        self._set(name, check_integer(name, getattr(self, name), most=most, what=what))

    def resized(
        self,
        *,
        batches_per_epoch: int | None = None,
        minibatch_size: int | None = None,
        validation_size: int | None = None,
    ) -> ArrayTask:
        if (batches_per_epoch, minibatch_size, validation_size) == (None, None, None):
            return self
        return replace(
            self,
            batches_per_epoch=_given(batches_per_epoch, self.batches_per_epoch),
            minibatch_size=_given(minibatch_size, self.minibatch_size),
            validation_size=_given(validation_size, self.validation_size),
        )

    def make_population(
        self, num_rows: int, num_slots: int, device: torch.device
    ) -> TrainedPopulation:
        inputs, targets = self.validation
        data = LabelledData(
            self.train,
            (inputs[: self.validation_size], targets[: self.validation_size]),
            self.host.prepare,
            batches_per_epoch=self.batches_per_epoch,
            minibatch_size=self.minibatch_size,
            device=device,
        )
        return TrainedPopulation(self.host, data, self.optimizer, num_rows, num_slots, device)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def hold_out(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """Split ``count`` examples, always the same, from the others: (held out, others)."""
    inputs, targets = examples
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    held_out, others = slice(count), slice(count, None)
    return Examples(inputs[held_out], targets[held_out]), Examples(inputs[others], targets[others])


def _examples(name: str, given: Any) -> Examples:
    """Inputs and targets as tensors: floats as float32, integers as int64."""
    if isinstance(given, TensorDataset):
        given = given.tensors
    if not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(
            f"{name} must be inputs and targets, as a pair of arrays or tensors or a TensorDataset "
            f"of two, got {type(given).__name__}"
        )
    inputs = _tensor(f"{name} inputs", given[0])
    targets = _tensor(f"{name} targets", given[1])
    if targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"{name} targets must be integers, the classes, got {targets.dtype}")
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    return Examples(inputs, targets.long())


def _tensor(name: str, values: Any) -> Tensor:
    """Numbers as a tensor: of a tensor, an array or what NumPy makes one of, series and frames."""
    sparse = hasattr(values, "toarray") or (
        isinstance(values, Tensor) and values.layout is not torch.strided
    )
    if sparse:
        how = "to_dense()" if isinstance(values, Tensor) else "toarray()"
        raise TypeError(f"{name} must be dense, got {type(values).__name__}; call {how} on it")
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"it holds {array.dtype}; categories and words need a number each, as "
                "np.unique(values, return_inverse=True)[1] gives them"
            )
        # In this machine's byte order, and not backwards, which PyTorch doesn't know.
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array or tensor of numbers: {error}") from None


def _check_examples(name: str, examples: Examples, host: ModuleHost) -> None:
    inputs, targets = examples
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"{name} must have as many targets as inputs, got shapes {list(inputs.shape)} and "
            f"{list(targets.shape)}"
        )
    if len(targets) == 0:
        raise ValueError(f"{name} must have at least one example, got none")
    bad = ~inputs.isfinite().reshape(len(inputs), -1).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name} inputs must be finite, got nan or infinity in example {first}")
    bad = ((targets < 0) | (targets >= host.num_classes)).reshape(len(targets), -1).any(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        values = targets[first].flatten().tolist()
        wrong = next(value for value in values if not 0 <= value < host.num_classes)
        raise ValueError(
            f"{name} targets must be classes from 0 to {host.num_classes - 1}, which the host "
            f"knows, got {wrong} in example {first}"
        )
    try:
        prepared = host.prepare(inputs[:1])
    except ValueError as error:
        raise ValueError(f"{name} inputs don't fit the host: {error}") from None
    logits = host.features(prepared)[-1]
    answers = tuple(logits.shape[1:-1] if host.classes_last else logits.shape[2:])
    if tuple(targets.shape[1:]) != answers:
        shape = ", ".join(["M", *map(str, answers)])
        raise ValueError(
            f"{name} targets must be of shape [{shape}], a class for each of the host's answers, "
            f"got {list(targets.shape)}; targets.argmax(1) makes classes of one-hot rows, "
            "targets.squeeze(1) of a column"
        )
