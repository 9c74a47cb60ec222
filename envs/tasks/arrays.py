"""Tasks from arrays: inputs with a target each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import nn

from envs.batched.optimizers import SGD, Optimizer
from envs.checks import check_integer
from envs.hosts import ModuleHost
from envs.populations.data import LabelledData
from envs.populations.objectives import make_objective
from envs.populations.trained import TrainedPopulation
from envs.tasks.base import Task
from envs.tasks.examples import hold_out, pair_of, read_examples, words_of
from envs.typed import check_type


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayTask(Task):
    """A network of one's choice, trained on arrays by a loss of :mod:`torch.nn`.

    Args:
        name: for people and run folders.
        host: the network to grow.
        train: inputs ``[M, …]`` and targets, as a pair of NumPy arrays, tensors, or what NumPy
            makes an array of, such as a frame's columns; or a map-style
            :class:`~torch.utils.data.Dataset` of such pairs. Bytes are divided by 255 where the
            host takes floats, and images may have their channels last.
        validation: the same, other examples; or a number of examples to hold out from ``train``,
            by a permutation that is always the same.
        loss: with ``reduction="mean"``, one of

            - :class:`~torch.nn.CrossEntropyLoss` (default), with its class weights, label smoothing
              and ignored index: targets are classes ``[M]``, or ``[M, positions…]`` for a host that
              answers for each position of an example, whole numbers or words;
            - :class:`~torch.nn.BCEWithLogitsLoss`: several labels ``[M, labels]``, from 0 to 1;
            - :class:`~torch.nn.MSELoss`, :class:`~torch.nn.HuberLoss`,
              :class:`~torch.nn.SmoothL1Loss` or :class:`~torch.nn.L1Loss`: numbers shaped like the
              host's outputs; ``[M]`` where that is one. Bring them to a variance of about 1:
              learning rates are for such losses.

            What features, rewards and reports call accuracy is the share of classes or labels that
            are right, in percent; for numbers 100 · R² of the validation, 0 where that is less.
        class_names: order of the classes where targets are words; default: alphabetical.
        batches_per_epoch: minibatches of an epoch.
        minibatch_size: examples of a minibatch; an epoch's minibatches share none. Default: 64, or
            fewer where the data has no more.
        validation_size: how many of the validation examples are used, the first ones; default: all.
        optimizer: how parameters follow their gradients: :class:`envs.batched.optimizers.SGD`
            (default) or :class:`envs.batched.optimizers.AdamW`.
        topology, num_slots: default: the host's.
        parameter_budget: default: 8 times the host's parameters.
        guessing_loss: default: that of outputs that say nothing: ln C for C classes, for numbers
            that of the validation targets' mean.
        loss_limit: default: 10, for numbers 4 times ``guessing_loss``.
        description, max_epochs, warm_up, host_lr, seed_lr, reward, reward_terms: see
            :class:`Task`.

    Raises:
        TypeError: if arrays, sizes or the loss are of the wrong kind.
        ValueError: for an empty split, inputs and targets of different lengths, a number that
            isn't finite, a target that can't be, inputs that the host can't take, or sizes beyond
            the data. The message names the argument and the first bad example.

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
    loss: nn.Module = field(default_factory=nn.CrossEntropyLoss)
    batches_per_epoch: int = 5
    optimizer: Optimizer = field(default_factory=SGD)
    # None stands for what host or data say; afterwards each is what its name says.
    minibatch_size: Any = None
    validation_size: Any = None
    topology: Any = None
    num_slots: Any = None
    parameter_budget: Any = None
    guessing_loss: Any = None
    loss_limit: Any = None
    class_names: Any = None

    def __post_init__(self) -> None:
        check_type("host", self.host, ModuleHost)
        check_type("class_names", self.class_names, Sequence[str] | None)
        objective, validation = make_objective(self.loss), self.validation
        pair = pair_of("train", self.train)
        names = self.class_names or tuple(sorted(words_of(pair[1]))) or None
        train = read_examples("train", pair, self.host, objective, names)
        if isinstance(validation, Integral):
            count = check_integer("validation", validation, most=len(train.targets) - 1)
            validation, train = hold_out(train, count)
        else:
            validation = read_examples("validation", validation, self.host, objective, names)
        most_examples = len(train.targets) // check_integer(
            "batches_per_epoch", self.batches_per_epoch
        )
        classes = self.host.num_classes
        defaults = {
            "topology": self.host.topology,
            "num_slots": len(self.host.slot_channels),
            "parameter_budget": 8 * self.host_size,
            "minibatch_size": min(64, max(1, most_examples)),
            "validation_size": len(validation.targets),
            "guessing_loss": (guess := objective.guess(validation.targets, classes)) or None,
            "loss_limit": objective.limit(guess),
            "class_names": names,
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

    @property
    def offered(self) -> tuple[str, ...]:
        return tuple(self.host.blueprints)

    def numbers(self) -> dict[str, float | str | None]:
        numbers = super().numbers() | {"optimizer": repr(self.optimizer)}
        loss = _describe(self.loss)
        # States that were saved when there was one loss only have no word of it.
        return numbers if loss == _describe(nn.CrossEntropyLoss()) else numbers | {"loss": loss}

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
        train, validation = (
            (inputs[:size], self.host.channels_of_outputs_first(targets[:size]))
            for (inputs, targets), size in (
                (self.train, len(self.train.targets)),
                (self.validation, self.validation_size),
            )
        )
        data = LabelledData(
            train,
            validation,
            self.host.prepare,
            batches_per_epoch=self.batches_per_epoch,
            minibatch_size=self.minibatch_size,
            device=device,
            loss=self.loss,
        )
        return TrainedPopulation(self.host, data, self.optimizer, num_rows, num_slots, device)


def _describe(loss: nn.Module) -> str:
    options = {name: value for name, value in vars(loss).items() if not name.startswith("_")}
    weights = {name: value.tolist() for name, value in loss.named_buffers()}
    return f"{type(loss).__name__}({options | weights})"


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
