"""Hosts that have fewer slots than are shown."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from envs.networks.growing import GrowingNetwork
from envs.populations.base import Population, SlotInputs, Validation
from envs.populations.left_out import sets_left_out


def with_absent_slots(population: Population, num_present: int, num_slots: int) -> Population:
    """A population as one of ``num_slots``, if its hosts have fewer: nothing is in the others."""
    if num_present == num_slots:
        return population
    return _WithAbsentSlots(population, num_present, num_slots)


class _WithAbsentSlots:
    """Takes and gives tensors ``[N, S]``, of which its population has the first slots."""

    def __init__(self, population: Population, num_present: int, num_slots: int) -> None:
        self.population, self.num_present, self.num_slots = population, num_present, num_slots

    def __getattr__(self, name: str) -> Any:
        """All that isn't about slots."""
        if name == "population":  # as in copies that are being made
            raise AttributeError(name)
        return getattr(self.population, name)

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        own = slice(self.num_present)
        self.population.plant(where[:, own], blueprint[:, own], keys[:, own])

    def reset_gates(self, where: Tensor) -> None:
        self.population.reset_gates(where[:, : self.num_present])

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        host, seeds = self.population.train_epoch(self._own(inputs), keys, rows)
        return host, self._padded(seeds)

    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        own = self.population.validate(self._own(inputs), rows, ablate=ablate)
        shown = sets_left_out(self.num_slots, own.lost.device)
        present = sets_left_out(self.num_present, own.lost.device)
        places = present.place(shown.bits & (1 << self.num_present) - 1)
        lost, variance = own.lost[:, places], own.variance[:, places]
        return Validation(own.loss, own.accuracy, lost, variance, self._padded(own.ablated))

    def network(self, row: int, inputs: SlotInputs) -> GrowingNetwork:
        return self.population.network(row, self._own(inputs))

    def load_network(self, row: int, network: GrowingNetwork, inputs: SlotInputs) -> None:
        self.population.load_network(row, network, self._own(inputs))

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        own = slice(self.num_present)
        return self._padded(self.population.count_seed_params(blueprint[:, own], algorithm[:, own]))

    def _own(self, inputs: SlotInputs) -> SlotInputs:
        cut = {
            name: values if values.dim() == 1 else values[:, : self.num_present]
            for name, values in vars(inputs).items()
        }
        return SlotInputs(**cut)

    def _padded(self, values: Tensor) -> Tensor:
        return pad(values, (0, self.num_slots - self.num_present))
