"""N networks in training: their parameters, one epoch of it, validation.

Everything with a leading N lies in matrices with one row a network, so that optimizer steps,
gradient norms, resets and copies of rows are plain matrix operations, whatever a network is. On
CPUs, networks whose layers allow it run compiled, a row at a time
(:mod:`envs.populations.compiled`); all others run in PyTorch (:mod:`envs.populations.plain`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from envs.batched.modes import Mode
from envs.batched.optimizers import Optimizer
from envs.batched.workers import keep_freed_memory
from envs.checks import check_integer, check_memory
from envs.hosts import ModuleHost
from envs.networks.compiling import NotCompiledError
from envs.networks.growing import Blend, GrowingNetwork
from envs.populations.base import SlotInputs, Validation, look_up_sizes
from envs.populations.data import LabelledData
from envs.populations.left_out import sets_left_out
from envs.populations.networks import Networks
from envs.populations.plain import PlainPasses
from envs.populations.tensor_rows import TensorRows

if TYPE_CHECKING:
    from envs.populations.compiled import CompiledPasses


_LOGGER = logging.getLogger(__name__)

_MOST_VARIANCE = 50.0**2
"""Of a score from 0 to 100, in points²."""


class TrainedPopulation(TensorRows):
    """Hosts and seeds of N rows, trained on one set of data.

    Args:
        host: the network being grown.
        data: what it is trained and validated on.
        optimizer: how parameters follow their gradients.
        num_rows: N.
        num_slots: slots of the host that are used, S, from the input on.
        device: where everything lives.

    Attributes:
        networks: what the rows can be.
        passes: how they are trained and validated on the device.
        params: float32 ``[N, columns]``; see :class:`~envs.populations.networks.Networks`.
        buffers: the optimizer's, ``[buffers, N, columns]``.
    """

    def __init__(
        self,
        host: ModuleHost,
        data: LabelledData,
        optimizer: Optimizer,
        num_rows: int,
        num_slots: int,
        device: torch.device,
    ) -> None:
        self.host, self.data, self.optimizer = host, data, optimizer
        self.num_rows, self.num_slots = num_rows, num_slots
        keep_freed_memory()
        self.networks = networks = Networks(host, num_slots)
        self.host_size, self.blueprints = networks.host_size, networks.blueprints
        self.offered = torch.tensor([name in host.blueprints for name in self.blueprints])
        self._module_sizes = torch.zeros(num_slots, len(self.blueprints), dtype=torch.float32)
        self._gate_sizes = torch.zeros(num_slots, dtype=torch.float32)
        for slot, seeds in enumerate(networks.seeds):
            self._gate_sizes[slot] = networks.gates[slot].size
            for kind, seed in seeds.items():
                self._module_sizes[slot, kind] = seed.size
        # Parameters, what the optimizer remembers, a gradient, and two snapshots for the governor.
        of_row = 4 * networks.size * (4 + optimizer.num_buffers)
        check_memory(f"num_envs={num_rows}", num_rows * of_row, device)
        self.params = torch.zeros(num_rows, networks.size, dtype=torch.float32)
        self.buffers = torch.zeros(optimizer.num_buffers, *self.params.shape, dtype=torch.float32)
        self.keep_first()
        self.to(device)

    def to(self, device: torch.device) -> None:
        self.device = device
        self.data.to(device)
        tables = ("offered", "_module_sizes", "_gate_sizes")
        for name in ("params", "buffers", *tables):
            setattr(self, name, getattr(self, name).to(device))
        self.saved = [weights.to(device) for weights in self.saved]
        self.passes = make_passes(self.networks, self.data, self.optimizer, device)
        self.passes.prepare(self.params, self.buffers)

    @property
    def weights(self) -> Sequence[Tensor]:
        """The parameters, ``[N, columns]``."""
        return [self.params]

    @property
    def optimizer_state(self) -> Sequence[Tensor]:
        """The optimizer's buffers, each ``[N, columns]``."""
        return list(self.buffers)

    @property
    def host_params(self) -> Tensor:
        """Parameters of the hosts, a view ``[N, host_size]``."""
        return self.params[:, : self.host_size]

    @property
    def seed_params(self) -> list[Tensor]:
        """For every slot the seeds' parameters, the gate's first, a view ``[N, columns]``."""
        return [self.params[:, columns] for columns in self.networks.slots]

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        return look_up_sizes(self._module_sizes, self._gate_sizes, blueprint, algorithm)

    def network(self, row: int, inputs: SlotInputs) -> GrowingNetwork:
        """One row's network as an ordinary module on the CPU, in evaluation mode.

        It has copies of the weights. A seed that doesn't run, as a germinated one, is left out.

        Args:
            row: its number.
            inputs: what the slots do.

        Raises:
            ValueError: for a row that there isn't.
        """
        check_integer("row", row, least=0, most=self.num_rows - 1, what="last row")
        networks, own = self.networks, self.params[row].cpu()
        host = zip(self.host.segments, networks.segments, networks.kept, strict=True)
        pieces = [segment.module(own[columns], own[kept]) for segment, columns, kept in host]
        network = GrowingNetwork(pieces)
        kinds, modes = inputs.kind(training=True)[row].tolist(), inputs.mode[row].tolist()
        for slot, (kind, number) in enumerate(zip(kinds, modes, strict=True)):
            mode = Mode(number)
            if kind >= 0:
                columns = networks.seed_columns(slot, kind), networks.kept_columns(slot, kind)
                seed = networks.seeds[slot][kind].module(*(own[each] for each in columns))
                gate = None
                if mode is Mode.GATE:
                    columns = networks.gate_columns(slot), slice(0)
                    gate = networks.gates[slot].module(*(own[each] for each in columns))
                network.plant(slot, seed, mode, float(inputs.alpha[row, slot]), gate)
        return network.to(own.dtype).eval()

    def load_network(self, row: int, network: GrowingNetwork, inputs: SlotInputs) -> None:
        check_integer("row", row, least=0, most=self.num_rows - 1, what="last row")
        networks, segments = self.networks, self.host.segments
        if len(network.pieces) != len(segments):
            raise ValueError(
                f"network must have {len(segments)} pieces, as the host has, got "
                f"{len(network.pieces)}"
            )
        parts = [*zip(segments, network.pieces, networks.segments, networks.kept, strict=True)]
        kinds = inputs.kind(training=True)[row].tolist()
        for slot, (kind, blend) in enumerate(zip(kinds, network.slots, strict=False)):
            if isinstance(blend, Blend) != (kind >= 0):
                wanted = self.blueprints[kind] if kind >= 0 else "nothing"
                raise ValueError(f"network must have {wanted} in slot {slot}, as row {row} has")
            if isinstance(blend, Blend):
                own = networks.seed_columns(slot, kind), networks.kept_columns(slot, kind)
                parts.append((networks.seeds[slot][kind], blend.seed, *own))
                if blend.gate is not None:
                    gate = networks.gate_columns(slot)
                    parts.append((networks.gates[slot], blend.gate, gate, slice(0)))
        read = [(columns, segment.read(module)) for segment, module, *columns in parts]
        for columns, values in read:
            self._write(torch.tensor([row], device=self.device), columns, values)
        self.buffers[:, row] = 0.0

    # -- creation and removal ---------------------------------------------------------------

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        for matrix in (self.params, *self.buffers):
            matrix[rows] = 0.0
        host = zip(self.host.segments, self.networks.segments, self.networks.kept, strict=True)
        for i, (segment, columns, kept) in enumerate(host):
            self._write(rows, (columns, kept), segment.draw(keys + i))

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        for slot in where.any(0).nonzero().squeeze(1).tolist():
            for kind in blueprint[where[:, slot], slot].unique().tolist():
                here = where[:, slot] & (blueprint[:, slot] == kind)
                rows = here.nonzero().squeeze(1)
                self.plant_at(rows, slot, kind, keys[rows, slot])

    def plant_at(self, rows: Tensor, slot: int, blueprint: int, keys: Tensor) -> None:
        """Put a fresh seed with fresh optimizer state at ``slot`` of ``rows [n]``."""
        networks, gate = self.networks, self.networks.gate_columns(slot)
        columns = networks.seed_columns(slot, blueprint), networks.kept_columns(slot, blueprint)
        drawn = networks.seeds[slot][blueprint].draw(keys, skip=gate.stop - gate.start)
        self.params[rows, gate] = 0.0
        self._write(rows, columns, drawn)
        for buffer in self.buffers:
            buffer[rows, self.networks.slots[slot]] = 0.0

    def _write(self, rows: Tensor, columns: Sequence[slice], values: Sequence[Tensor]) -> None:
        for where, each in zip(columns, values, strict=True):
            self.params[rows, where] = each.to(self.params.dtype)

    def reset_gates(self, where: Tensor) -> None:
        for slot in where.any(0).nonzero().squeeze(1).tolist():
            rows = where[:, slot].nonzero().squeeze(1)
            for matrix in (self.params, *self.buffers):
                matrix[rows, self.networks.gate_columns(slot)] = 0.0

    # -- passes -----------------------------------------------------------------------------

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.train_on(inputs, self.data.draw(keys), rows, keys)

    def train_on(
        self,
        inputs: SlotInputs,
        examples: Tensor,
        rows: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Train rows for one epoch on minibatches that are given.

        Args:
            inputs: what the slots do.
            examples: int64 ``[N, batches, B]``: the training examples of every minibatch.
            rows: int64 ``[n]``, without repetition; default: all.
            keys: int64 ``[N]``, of the random numbers that networks draw; default: 0.

        Returns:
            Gradient norms, means over the minibatches: of the hosts ``[N]`` and of the seeds
            ``[N, S]`` (0 where nothing trained).
        """
        if rows is None:
            rows = torch.arange(self.num_rows, device=self.device)
        if keys is None:
            keys = torch.zeros(self.num_rows, dtype=torch.int64, device=self.device)
        return self.passes.train(self.params, self.buffers, inputs, examples, keys, rows)

    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        loss, scores = self.passes.validate(self.params, inputs, rows, ablate=ablate)
        sets = sets_left_out(self.num_slots, self.device)
        ablated = (inputs.kind(training=False)[rows] >= 0) & ablate
        # Leaving out a slot that gives nothing is leaving out the others of the set.
        places = sets.place(sets.within(ablated))
        total, square = (each[rows].gather(1, places) for each in scores)
        answers = self.data.num_answers
        spread = square * answers - total.square()  # exact up to some thousand answers
        variance = spread * (100**2 / answers**3)  # of a mean of so many
        variance = variance.nan_to_num(nan=_MOST_VARIANCE).clamp(0, _MOST_VARIANCE)
        total = total.nan_to_num(nan=0.0).clamp(0, answers)
        lost = total[:, :1] - total
        accuracy = total[:, 0] * 100 / answers
        return Validation(loss[rows], accuracy, lost * 100 / answers, variance, ablated)


def make_passes(
    networks: Networks, data: LabelledData, optimizer: Optimizer, device: torch.device
) -> CompiledPasses | PlainPasses:
    """Compiled passes on CPUs where all layers, the data and the optimizer allow it."""
    if device.type == "cpu":
        from envs.populations.compiled import CompiledPasses  # loads Numba

        try:
            return CompiledPasses(networks, data, optimizer)
        except NotCompiledError as reason:
            _say_why_not_compiled(str(reason))
    return PlainPasses(networks, data, optimizer)


@cache
def _say_why_not_compiled(reason: str) -> None:
    """Once in a process: environments are made by the dozen."""
    _LOGGER.warning("the networks run in PyTorch, several times slower than compiled: %s", reason)
