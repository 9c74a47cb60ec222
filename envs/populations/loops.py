"""Populations of networks that loops of someone's own train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from envs.checks import check_integer
from envs.networks.growing import Gate, GrowingNetwork
from envs.networks.offers import Offer
from envs.populations.base import SlotInputs, Validation, look_up_sizes
from envs.populations.left_out import sets_left_out
from envs.populations.live import LiveNetwork
from envs.populations.measuring import Measure, seeded


class LivePopulation:
    """Networks that are trained before :meth:`train_epoch` is called.

    It lives on the CPU, wherever the networks are.

    Args:
        networks: a row each.
        blueprints: names of the choices of head ``blueprint``.
        known: those that may be planted, if the networks offer them.

    Attributes:
        networks, blueprints: as given.
        validations: of each row, how it is validated, and how it is compared with itself without
            some seeds (None: in the same way).

    Raises:
        ValueError: for blueprints that don't fit their slot.
    """

    def __init__(
        self,
        networks: Sequence[LiveNetwork],
        blueprints: tuple[str, ...],
        known: Collection[str],
    ) -> None:
        self.networks, self.blueprints = list(networks), blueprints
        self.validations: list[tuple[Measure, Measure | None]] = []
        first = self.networks[0]
        offer, pieces = first.offer, first.network.pieces
        self.host_size = sum(weight.numel() for weight in pieces.parameters())
        names = [name for name in offer.blueprints if name in known]
        self.offered = torch.tensor([name in names for name in blueprints])
        self._sizes, self._gate_sizes = _seed_sizes(offer, names, blueprints)

    def to(self, device: torch.device) -> None:
        """Nothing: networks are where their owner put them."""

    def finite(self) -> Tensor:
        return torch.tensor([each.finite() for each in self.networks])

    def save(self, rows: Tensor) -> None:
        for row in rows.tolist():
            self.networks[row].save()

    def restore(self, rows: Tensor) -> None:
        for row in rows.tolist():
            self.networks[row].restore()

    def state_dict(self) -> dict[str, Any]:
        return {str(row): each.state_dict() for row, each in enumerate(self.networks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for go_on in [each.ready(state[str(row)]) for row, each in enumerate(self.networks)]:
            go_on()

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        raise NotImplementedError("networks in training aren't made anew")

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        for row, slot in where.nonzero().tolist():
            name = self.blueprints[int(blueprint[row, slot])]
            self.networks[row].plant(slot, name, int(keys[row, slot]))

    def reset_gates(self, where: Tensor) -> None:
        """Nothing: a seed that comes to be gated has a new gate."""

    def settle(self, inputs: SlotInputs, rows: Tensor) -> None:
        """Bring what the slots do into the networks and their optimizers."""
        for row in rows.tolist():
            self.networks[row].settle(inputs, row)

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_slots = inputs.stage.shape
        norms = _zeros(num_rows, 1 + num_slots)
        for row in rows.tolist():
            norms[row] = self.networks[row].mean_norms()
        return norms[:, 0], norms[:, 1:]

    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        num_slots = inputs.stage.shape[1]
        sets = sets_left_out(num_slots, torch.device("cpu"))
        ablated = (inputs.kind(training=False)[rows] >= 0) & ablate
        places = sets.place(sets.within(ablated))
        loss, score = _zeros(len(rows)), _zeros(len(rows))
        lost = _zeros(len(rows), len(sets.bits))
        for place, row in enumerate(rows.tolist()):
            validate, compare = self.validations[row]
            chosen = places[place].unique()[1:]  # without the set of none
            slots = [each.nonzero().squeeze(1).tolist() for each in sets.members[chosen]]
            measured = self.networks[row].measure(validate, compare, slots)
            loss[place], score[place], points = measured
            by_set = _zeros(len(sets.bits))
            by_set[chosen] = torch.tensor(points, dtype=torch.float32)
            lost[place] = by_set[places[place]]
        return Validation(loss, score, lost, torch.zeros_like(lost), ablated)

    def network(self, row: int, inputs: SlotInputs) -> GrowingNetwork:
        check_integer("row", row, least=0, most=len(self.networks) - 1, what="last row")
        self.networks[row].settle(inputs, row)
        return copy.deepcopy(self.networks[row].network).cpu().eval()

    def load_network(self, row: int, network: GrowingNetwork, inputs: SlotInputs) -> None:
        check_integer("row", row, least=0, most=len(self.networks) - 1, what="last row")
        live = self.networks[row]
        live.settle(inputs, row)
        try:
            live.network.load_state_dict(network.state_dict())
        except RuntimeError as error:
            raise ValueError(f"network must be like that of row {row}: {error}") from None
        live.optimizer.state.clear()

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        return look_up_sizes(self._sizes, self._gate_sizes, blueprint, algorithm)


class LoopPopulation(LivePopulation):
    """Networks that are made, trained and validated by functions, a row after the other.

    Args:
        num_rows: N.
        make: makes a network with its optimizer, random only by torch's generator.
        train_epoch: trains a network for an epoch, random in the same way.
        validate: see :class:`LivePopulation`.
        blueprints, known: as there.
    """

    def __init__(
        self,
        num_rows: int,
        make: Callable[[], LiveNetwork],
        train_epoch: Callable[[GrowingNetwork, Optimizer], object],
        validate: Callable[[GrowingNetwork], tuple[float, float]],
        blueprints: tuple[str, ...],
        known: Collection[str],
    ) -> None:
        self._make, self._train, self._validate = make, train_epoch, validate
        cpu = torch.device("cpu")
        with seeded(0, cpu):
            networks = [make() for _ in range(num_rows)]
        super().__init__(networks, blueprints, known)

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        for row, key in zip(rows.tolist(), keys.tolist(), strict=True):
            with seeded(key, self.networks[row].device):
                self.networks[row] = self._make()

    @torch.enable_grad()  # collectors step environments without gradients
    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Train rows; RuntimeError if their optimizer makes no step in it."""
        self.settle(inputs, rows)
        for row in rows.tolist():
            live = self.networks[row]
            live.begin_epoch()
            live.network.train()
            with seeded(int(keys[row]), live.device):
                self._train(live.network, live.optimizer)
            if not live.steps:
                raise RuntimeError(
                    "train_epoch must train the network with the optimizer that it is given, but "
                    "that has made no step"
                )
        return super().train_epoch(inputs, keys, rows)

    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        self.validations = [(partial(self._validate, each.network), None) for each in self.networks]
        return super().validate(inputs, rows, ablate=ablate)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32)


def _seed_sizes(
    offer: Offer, names: Sequence[str], blueprints: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Parameters of the seeds, ``[S, blueprints]``, and of the gates ``[S]``.

    Raises:
        ValueError: for a seed that doesn't keep the shape of the features at a slot.
    """
    sizes, gates = _zeros(len(offer.channels), len(blueprints)), _zeros(len(offer.channels))
    with seeded(0, torch.device("cpu")), torch.no_grad():
        for slot, (channels, shape) in enumerate(zip(offer.channels, offer.shapes, strict=True)):
            gate = Gate(channels, 1 + len(shape), offer.channel_dim)
            gates[slot] = sum(weight.numel() for weight in gate.parameters())
            for name in names:
                seed, features = offer.blueprints[name](channels), torch.zeros(2, *shape)
                try:
                    given = str(list(seed.eval()(features).shape))
                except RuntimeError as error:
                    given = f"an error: {error}"
                if given != str(list(features.shape)):
                    raise ValueError(
                        f"blueprint {name!r} must give features of the shape that it takes, at "
                        f"slot {slot} {list(features.shape)}, got {given}"
                    )
                number = sum(weight.numel() for weight in seed.parameters())
                sizes[slot, blueprints.index(name)] = number
    return sizes, gates
