"""Interface between the environment and the networks in its care."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from envs.actions import BLUEPRINTS, STAGES, Algorithm
from envs.batched.modes import Mode
from envs.lookup import look_up
from envs.networks.growing import GrowingNetwork

_MIXED = [row.mixed for row in STAGES.values()]
_TRAINS = [row.trains for row in STAGES.values()]


@dataclass
class SlotInputs:
    """The slots of all rows in one epoch.

    Attributes:
        stage: int64 ``[N, S]``, a :class:`~envs.actions.Stage`.
        blueprint: int64 ``[N, S]``, −1 where no module sits.
        algorithm: int64 ``[N, S]``, an :class:`~envs.actions.Algorithm`.
        alpha: float32 ``[N, S]``, in [0, 1].
        host_lr: float32 ``[N]``, learning rate of the hosts.
        seed_lr: float32 ``[N, S]``, learning rate of each slot's seed.
    """

    stage: Tensor
    blueprint: Tensor
    algorithm: Tensor
    alpha: Tensor
    host_lr: Tensor
    seed_lr: Tensor

    @property
    def mixed(self) -> Tensor:
        """Bool ``[N, S]``: slots whose seed acts on the host, if its α is above 0."""
        return look_up(_MIXED, self.stage).bool()

    @property
    def trains(self) -> Tensor:
        """Bool ``[N, S]``: slots whose seed runs in training."""
        return look_up(_TRAINS, self.stage).bool()

    @property
    def mode(self) -> Tensor:
        """int64 ``[N, S]``, a :class:`~envs.batched.modes.Mode`."""
        return torch.where(self.mixed, self.algorithm - Algorithm.ADD + Mode.ADD, Mode.INCUBATE)

    def kind(self, *, training: bool) -> Tensor:
        """int64 ``[N, S]``, which seed runs, −1 for none: of those incubated none in validation."""
        return torch.where(self.trains if training else self.mixed, self.blueprint, -1)


@dataclass
class Validation:
    """Result of a validation pass over n rows.

    Attributes:
        loss: mean loss, float32 ``[n]``; may be non-finite.
        accuracy: percent, ``[n]``.
        lost: what accuracy loses when the α of some slots is forced to 0, in points, ``[n, K]``
            for the K sets of :class:`~envs.populations.left_out.SetsLeftOut`; 0 where it wasn't
            measured. Counted in answers, so that five of 500 are exactly one point.
        variance: of the accuracy that is left with each of these sets left out, by chance in which
            answers are asked for, in points², ``[n, K]``; 0 where accuracies are exact.
        ablated: bool ``[n, S]``: slots with α > 0 that were left out by turns.
    """

    loss: Tensor
    accuracy: Tensor
    lost: Tensor
    variance: Tensor
    ablated: Tensor

    def spread(self, rows: Tensor, num_rows: int) -> Validation:
        """A validation of ``rows [n]`` as one of all N rows, the others 0."""
        if len(rows) == num_rows:
            return self
        fields = {}
        for name, values in vars(self).items():
            fields[name] = values.new_zeros(num_rows, *values.shape[1:])
            fields[name][rows] = values
        return Validation(**fields)


class Population(Protocol):
    """N hosts with S slots each: trained networks, or formulas that behave like them.

    Attributes:
        host_size: parameters of a host without seeds.
        blueprints: names of the choices of head ``blueprint``, in order: :data:`BLUEPRINTS` and
            whatever the hosts offer beyond them.
        offered: bool ``[len(blueprints)]``, those that can be planted.
    """

    host_size: int
    blueprints: tuple[str, ...]
    offered: Tensor

    def finite(self) -> Tensor:
        """Bool ``[N]``: rows that have learned nothing but numbers."""
        ...

    def save(self, rows: Tensor) -> None:
        """Keep what ``rows [n]`` have learned, to go back to it."""
        ...

    def restore(self, rows: Tensor) -> None:
        """Take ``rows [n]`` back to what was kept of them; the optimizer's memory begins anew."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that decides how the networks go on, by name."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: for what isn't of such a population; nothing changes then.
        """
        ...

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        """Put fresh hosts, without seeds, into ``rows [n]``, drawn from int64 ``keys [n]``."""
        ...

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        """Put fresh seeds into the slots ``where [N, S]``.

        Args:
            where: bool ``[N, S]``.
            blueprint: int64 ``[N, S]``, which seed.
            keys: int64 ``[N, S]``, what it is drawn from.
        """
        ...

    def reset_gates(self, where: Tensor) -> None:
        """Make the gates of the seeds in the slots ``where [N, S]`` ½ everywhere."""
        ...

    def to(self, device: torch.device) -> None:
        """Move all that it holds to a device."""
        ...

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Train ``rows [n]`` for one epoch, random only by int64 ``keys [N]``.

        Args:
            inputs: what the slots do.
            keys: of all rows.
            rows: int64 ``[n]``, without repetition; the others stay as they are.

        Returns:
            Gradient norms, means over the epoch: of the hosts ``[N]`` and of the seeds
            ``[N, S]`` (0 where nothing trained).
        """
        ...

    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        """Measure loss and accuracy of ``rows [n]``, and accuracy with seeds left out.

        Args:
            inputs: what the slots do.
            rows: int64 ``[n]``, without repetition.
            ablate: measure ``lost``.
        """
        ...

    def network(self, row: int, inputs: SlotInputs) -> GrowingNetwork:
        """One row's network as an ordinary module, with copies of its weights.

        Raises:
            ValueError: for a row that there isn't.
            TypeError: where there are no networks.
        """
        ...

    def load_network(self, row: int, network: GrowingNetwork, inputs: SlotInputs) -> None:
        """Copy a network's weights into a row; the optimizer's memory of it begins anew.

        Args:
            row: its number.
            network: with seeds of the same kind in the same slots as the row has.
            inputs: what the slots do.

        Raises:
            ValueError: for another network, or a row that there isn't; nothing changes then.
            TypeError: where there are no networks.
        """
        ...

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        """Count the parameters of the seed in every slot, its gate included: float32 ``[N, S]``.

        Args:
            blueprint: int64 ``[N, S]``, −1 for none.
            algorithm: int64 ``[N, S]``.
        """
        ...


def blueprint_choices(offered: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the choices of head ``blueprint`` where hosts offer these blueprints.

    Examples:
        >>> blueprint_choices(("norm", "mine"))[-2:]
        ('flex_attention', 'mine')
    """
    return (*BLUEPRINTS, *(name for name in offered if name not in BLUEPRINTS))


def look_up_sizes(sizes: Tensor, gates: Tensor, blueprint: Tensor, algorithm: Tensor) -> Tensor:
    """Parameters of the seed in every slot, its gate included: float32 ``[N, S]``, 0 without one.

    Args:
        sizes: of the seeds by slot and choice, ``[S, blueprints]``.
        gates: of the slots' gates, ``[S]``.
        blueprint, algorithm: int64 ``[N, S]``.
    """
    slots = torch.arange(len(gates), device=gates.device)
    size = sizes[slots, blueprint.clamp(min=0)]
    size = size + torch.where(algorithm == Algorithm.GATE, gates, 0.0)
    return torch.where(blueprint >= 0, size, 0.0)
