"""Tasks from functions that make, train and validate a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from envs.networks.blueprints import Blueprint
from envs.networks.growing import GrowingNetwork
from envs.populations.base import blueprint_choices
from envs.populations.live import LiveNetwork
from envs.populations.loops import LoopPopulation
from envs.populations.measuring import seeded
from envs.tasks.base import Task

_SGD = partial(SGD, lr=0.05, momentum=0.9)


@dataclass(frozen=True, eq=False)
class LoopTask(Task):
    """A network of one's choice, trained in whatever way one's own functions do it.

    Policies can be trained on it as on any task, but its rows run one after the other, in PyTorch:
    a :class:`envs.ArrayTask` is many times faster where it can say the same. Rows in several
    processes are a matter of TorchRL's :class:`~torchrl.envs.ParallelEnv` or collectors.

    All functions draw random numbers from torch's generator alone, which is set for every row and
    epoch: a row draws the same whatever the other rows do. They may use any device; the task's
    environment lives on the CPU.

    Args:
        make_network: makes an untrained module.
        train_epoch: called with a :class:`envs.GrowingNetwork` around such a module, in training
            mode, and its optimizer; trains it for an epoch.
        validate: called with the network, in evaluation mode; gives its mean loss and a score from
            0 to 100, such as the percentage of right answers.
        slots: names of the module's submodules after which a seed can be planted, in the order in
            which they run.
        example: an input ``[1, …]`` of it.
        make_optimizer: makes an optimizer of :mod:`torch.optim` for an iterator of parameters;
            default: SGD with learning rate 0.05 and momentum 0.9.
        blueprints, channel_dim: see :class:`envs.GrowingNetwork`.
        name: for people and run folders.
        host_lr, seed_lr: learning rates, as multiples of what the optimizer has.
        topology, num_slots, parameter_budget: default: those of the network, 8 times its
            parameters.
        description, max_epochs, warm_up, loss_limit, guessing_loss, reward, reward_terms: see
            :class:`Task`.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for slots that the module lacks, and what else :class:`envs.GrowingNetwork` and
            :class:`Task` refuse.

    Examples:
        >>> from envs import LoopTask, MorphogenesisEnv
        >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
        >>> def make_network():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> def train_epoch(network, optimizer):
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(network(x), y).backward()
        ...     optimizer.step()
        >>> def validate(network):
        ...     logits = network(x)
        ...     right = (logits.argmax(1) == y).float().mean()
        ...     return nn.functional.cross_entropy(logits, y), 100 * right
        >>> task = LoopTask(make_network, train_epoch, validate, slots=["1"], example=x[:1])
        >>> env = MorphogenesisEnv(task, num_envs=2, max_epochs=5)
        >>> env.rollout(5)["next", "metrics", "val_loss"].shape
        torch.Size([2, 5, 1])
    """

    make_network: Callable[[], nn.Module]
    train_epoch: Callable[[GrowingNetwork, Optimizer], object]
    validate: Callable[[GrowingNetwork], tuple[Any, Any]]
    _: KW_ONLY
    slots: Sequence[str]
    example: Tensor = field(repr=False)
    make_optimizer: Callable[[Iterator[nn.Parameter]], Optimizer] = _SGD
    blueprints: Mapping[str, Blueprint] | None = None
    channel_dim: int | None = None
    name: str = "loop"
    host_lr: float = 1.0
    seed_lr: float = 1.0
    # None stands for what the network says; afterwards each is what its name says.
    topology: Any = None
    num_slots: Any = None
    parameter_budget: Any = None

    def __post_init__(self) -> None:
        with seeded(0, torch.device("cpu")):
            network = self._make(len(self.slots)).network
        assert network.offer is not None  # it is made of a module
        defaults = {
            "topology": network.offer.topology,
            "num_slots": len(network.slots),
            "parameter_budget": 8 * sum(weight.numel() for weight in network.parameters()),
        }
        for name, default in defaults.items():
            self._set(name, default if getattr(self, name) is None else getattr(self, name))
        self._set("blueprints", network.offer.blueprints)
        super().__post_init__()

    @property
    def offered(self) -> tuple[str, ...]:
        return tuple(self.blueprints or ())

    def make_population(
        self, num_rows: int, num_slots: int, device: torch.device
    ) -> LoopPopulation:
        if device.type != "cpu":
            raise ValueError(
                f"device must be the CPU for a LoopTask, got {device}; let make_network put "
                "networks where they shall be"
            )
        choices, make = blueprint_choices(self.offered), partial(self._make, num_slots)
        return LoopPopulation(
            num_rows, make, self.train_epoch, self.validate, choices, self.offered
        )

    def _make(self, num_slots: int) -> LiveNetwork:
        """An untrained network with its first slots."""
        network = GrowingNetwork(
            self.make_network(),
            self.slots[:num_slots],
            self.example,
            self.blueprints,
            self.channel_dim,
        )
        return LiveNetwork(network, self.make_optimizer(network.parameters()))
