"""The networks that the rows of a population can be, and where their parameters lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.actions import Algorithm
from envs.batched.layers import Linear, Sigmoid
from envs.batched.modes import Mode
from envs.batched.parameters import ParameterLayout
from envs.batched.programs import Program
from envs.blueprints.base import Segment
from envs.hosts.base import Host
from envs.networks.segments import make_seed
from envs.populations.base import SlotInputs, blueprint_choices


@dataclass(frozen=True)
class Seed:
    """One of the seeds that a slot can hold.

    Attributes:
        module: the seed itself.
        layout: parameters of its slot's gate, then its own.
    """

    module: Segment
    layout: ParameterLayout


class Networks:
    """A host with all seeds that its slots can hold.

    A network's parameters are a row: first the host's, segment by segment, then for every slot as
    many columns as its largest seed needs.

    Args:
        host: the network being grown.
        num_slots: slots of the host that are used, S, from the input on.

    Attributes:
        host, num_slots: as given.
        blueprints: names of the choices of head ``blueprint``.
        gates: for every slot, how far its seed's gate is open, ``[n, 1, B]``, or ``[n, 1, …, B]``
            where positions open by themselves; it counts only while the seed is gated.
        seeds: for every slot, what it can hold by choice.
        segments: columns of every segment of the host.
        slots: columns of every slot.
        host_size: parameters of the host.
        size: columns in all.
        channels_last: of the host, False if it doesn't say.
    """

    def __init__(self, host: Host, num_slots: int) -> None:
        self.host, self.num_slots = host, num_slots
        self.blueprints = blueprint_choices(tuple(host.blueprints))
        channels = host.slot_channels[:num_slots]
        self.channels_last = last = getattr(host, "channels_last", False)
        self.gates = [
            Program(host.pool, Linear("gate", count, 1, zero=True), Sigmoid()) for count in channels
        ]
        self.seeds = [
            {
                self.blueprints.index(name): _seed(gate, make_seed(blueprint, count, last=last))
                for name, blueprint in host.blueprints.items()
            }
            for gate, count in zip(self.gates, channels, strict=True)
        ]
        sizes = [segment.layout.size for segment in host.segments]
        self.host_size = sum(sizes)
        sizes += [max(seed.layout.size for seed in seeds.values()) for seeds in self.seeds]
        columns, self.size = [], 0
        for size in sizes:
            columns.append(slice(self.size, self.size + size))
            self.size += size
        self.segments, self.slots = columns[: len(host.segments)], columns[len(host.segments) :]


def _seed(gate: Program, module: Segment) -> Seed:
    return Seed(module, ParameterLayout([*gate.layout.entries, *module.layout.entries]))


@dataclass(frozen=True)
class Work:
    """The work of all rows' slots.

    Attributes:
        kind: int64 ``[N, S]``, which seed runs, −1 for none.
        mode: int64 ``[N, S]``, a :class:`~envs.batched.modes.Mode`.
        alpha: floats ``[N, S]``.
        host_lr, seed_lr: learning rates, floats ``[N]`` and ``[N, S]``.
    """

    kind: Tensor
    mode: Tensor
    alpha: Tensor
    host_lr: Tensor
    seed_lr: Tensor


def slot_work(inputs: SlotInputs, *, training: bool) -> Work:
    """The work of slots; while validating, an incubated seed need not run."""
    mixed = inputs.mixed
    runs = inputs.trains if training else mixed
    mode = torch.where(mixed, inputs.algorithm - Algorithm.ADD + Mode.ADD, Mode.INCUBATE)
    kind = torch.where(runs, inputs.blueprint, -1)
    return Work(kind, mode, inputs.alpha, inputs.host_lr, inputs.seed_lr)
