"""What a task is: a host to grow and how it is trained, mostly on data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.arguments import check_integer
from envs.growth import GrowingHosts
from envs.hosts.base import Host
from envs.population import Population


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """One growing problem.

    Attributes:
        name: its name in the registry.
        description: one line for people.
        topology: kind of host; a policy knows the blueprints of one kind only.
        num_slots: how many slots its host has.
        max_epochs: default length of an episode.
        host_lr: learning rate of host and fossilized seeds.
        seed_lr: learning rate of live seeds.
        parameter_budget: seed parameters at which ``params_utilization`` is 1.
        loss_limit: what a validation loss that isn't finite is shown as; also the largest loss
            that is shown.
    """

    name: str
    description: str
    topology: str
    num_slots: int
    max_epochs: int
    host_lr: float
    seed_lr: float
    parameter_budget: int
    loss_limit: float

    @abstractmethod
    def make_hosts(
        self,
        num_rows: int,
        num_slots: int,
        device: torch.device,
        *,
        batches_per_epoch: int | None,
        minibatch_size: int | None,
        validation_size: int | None,
    ) -> GrowingHosts:
        """N hosts of which S slots are used; None stands for the task's own number.

        Raises:
            TypeError: if a number isn't an integer.
            ValueError: if it is more than the task has, or means nothing to it.
        """


@dataclass(frozen=True, kw_only=True)
class DataTask(Task):
    """A network that is trained on data by SGD.

    Attributes:
        host: the batched network.
        train_inputs: float32 ``[M, …]``.
        train_targets: int64 ``[M]``, classes.
        validation_inputs: float32 ``[V, …]``.
        validation_targets: int64 ``[V]``.
        num_classes: number of classes C.
        momentum: of SGD.
        batches_per_epoch: default number of minibatches in an epoch.
        minibatch_size: default number of examples in one.
    """

    host: Host
    train_inputs: Tensor
    train_targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    num_classes: int
    momentum: float
    batches_per_epoch: int
    minibatch_size: int

    def make_hosts(
        self,
        num_rows: int,
        num_slots: int,
        device: torch.device,
        *,
        batches_per_epoch: int | None = None,
        minibatch_size: int | None = None,
        validation_size: int | None = None,
    ) -> Population:
        examples, most = len(self.train_targets), len(self.validation_targets)
        if minibatch_size is None:
            minibatch_size = self.minibatch_size
        if batches_per_epoch is None:
            batches_per_epoch = self.batches_per_epoch
        if validation_size is None:
            validation_size = most
        check_integer("minibatch_size", minibatch_size, most=examples, what="training examples")
        most_batches = examples // minibatch_size
        check_integer(
            "batches_per_epoch",
            batches_per_epoch,
            most=most_batches,
            what="minibatches of that size",
        )
        check_integer("validation_size", validation_size, most=most, what="validation examples")
        return Population(
            self, num_rows, num_slots, batches_per_epoch, minibatch_size, validation_size, device
        )
