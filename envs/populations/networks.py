"""The networks that the rows of a population can be, and where their parameters lie."""

from __future__ import annotations

from itertools import accumulate

from envs.hosts import ModuleHost
from envs.populations.base import blueprint_choices


class Networks:
    """A host with all seeds that its slots can hold.

    A network is a row: first the host's parameters, segment by segment, then what the host keeps
    beside them, such as statistics of batch norm; then for every slot its gate's parameters and as
    many columns as its largest seed needs, for its parameters and what it keeps.

    Args:
        host: the network being grown.
        num_slots: slots of the host that are used, S, from the input on.

    Attributes:
        host, num_slots: as given.
        blueprints: names of the choices of head ``blueprint``.
        gates: for every slot, how far its seed's gate is open; it counts only while the seed is
            gated.
        seeds: for every slot, what it can hold by choice.
        segments, kept: columns of every segment of the host, and of what it keeps.
        slots: columns of every slot.
        host_size: parameters of the host.
        size: columns in all.
        draws: does anything draw random numbers in training?
    """

    def __init__(self, host: ModuleHost, num_slots: int) -> None:
        self.host, self.num_slots = host, num_slots
        self.blueprints = blueprint_choices(tuple(host.blueprints))
        self.gates = host.gates[:num_slots]
        self.seeds = [
            {self.blueprints.index(name): seed for name, seed in seeds.items()}
            for seeds in host.seeds[:num_slots]
        ]
        self.host_size = sum(segment.size for segment in host.segments)
        sizes = [segment.size for segment in host.segments]
        sizes += [segment.kept_size for segment in host.segments]
        sizes += [
            gate.size + max(seed.size + seed.kept_size for seed in seeds.values())
            for gate, seeds in zip(self.gates, self.seeds, strict=True)
        ]
        *starts, self.size = accumulate(sizes, initial=0)
        columns = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        count = len(host.segments)
        self.segments, self.kept = columns[:count], columns[count : 2 * count]
        self.slots = columns[2 * count :]
        self.draws = any(segment.draws for segment in host.segments) or any(
            seed.draws for seeds in self.seeds for seed in seeds.values()
        )

    def gate_columns(self, slot: int) -> slice:
        """Columns of a slot's gate, all in front of its seed's."""
        start = self.slots[slot].start
        return slice(start, start + self.gates[slot].size)

    def seed_columns(self, slot: int, kind: int) -> slice:
        """Columns of a seed."""
        start = self.gate_columns(slot).stop
        return slice(start, start + self.seeds[slot][kind].size)

    def kept_columns(self, slot: int, kind: int) -> slice:
        """Columns of what a seed keeps beside its parameters."""
        start = self.seed_columns(slot, kind).stop
        return slice(start, start + self.seeds[slot][kind].kept_size)
