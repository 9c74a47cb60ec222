"""What a task is: data, a host to grow on it, and how the host is trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from envs.hosts.base import Host


@dataclass(frozen=True)
class Task:
    """Data and host of one growing problem.

    Attributes:
        name: its name in the registry.
        host: the batched network.
        train_inputs: float32 ``[M, …]``.
        train_targets: int64 ``[M]``, classes.
        validation_inputs: float32 ``[V, …]``.
        validation_targets: int64 ``[V]``.
        num_classes: number of classes C.
        host_lr: learning rate of host and fossilized seeds.
        seed_lr: learning rate of live seeds.
        momentum: of SGD.
        batches_per_epoch: default number of minibatches in an epoch.
        minibatch_size: default number of examples in one.
        parameter_budget: seed parameters at which ``params_utilization`` is 1.
        loss_limit: what a validation loss that isn't finite is shown as; also the largest loss
            that is shown.
        description: one line for people.
    """

    name: str
    host: Host
    train_inputs: Tensor
    train_targets: Tensor
    validation_inputs: Tensor
    validation_targets: Tensor
    num_classes: int
    host_lr: float
    seed_lr: float
    momentum: float
    batches_per_epoch: int
    minibatch_size: int
    parameter_budget: int
    loss_limit: float
    description: str
