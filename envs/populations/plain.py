"""Passes of growing networks in PyTorch, with gradients by autograd: any layers, any device.

All rows of a chunk run through a segment of the host together, and those with the same seed in a
slot, mixed in the same way, run through that seed together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.batched.modes import Mode
from envs.batched.optimizers import Optimizer
from envs.batched.randomness import fold
from envs.batched.workers import one_thread, run_chunks
from envs.networks.growing import blend
from envs.networks.segments import Segment
from envs.populations.base import SlotInputs
from envs.populations.data import LabelledData
from envs.populations.left_out import SetsLeftOut
from envs.populations.networks import Networks

_CHUNK_BYTES = {"cpu": 2**21}
"""Size that the largest activation of a chunk should have: of a processor's cache."""

_DEVICE_BYTES = 2**29
"""The same for other devices: part of their memory."""

Group = tuple[int, Mode, Tensor]
"""Rows ``[m]`` that have the same seed (its index) in the same mode."""


@dataclass
class _Chunk:
    """Some networks in a pass.

    Attributes:
        params: ``[n, columns]``, of which gradients are taken.
        kept: the same numbers, of which what networks keep beside parameters changes in training.
        kind, mode, alpha: of their slots, ``[n, S]``; see
            :class:`~envs.populations.base.SlotInputs`.
        training: rather than evaluation.
        keys: int64 ``[n]``, of random numbers in training.
    """

    params: Tensor
    kept: Tensor
    kind: Tensor
    mode: Tensor
    alpha: Tensor
    training: bool = False
    keys: Tensor | None = None

    def run(
        self, part: Segment, columns: slice, kept: slice, x: Tensor, here: Tensor | None = None
    ) -> Tensor:
        """Features of all networks, or of those that are ``here``, after a segment of them."""
        rows = slice(None) if here is None else here
        beside, keys = self.kept[rows, kept], self.keys
        if keys is not None:
            keys = fold(keys if here is None else keys[here], columns.start)
        given = part(self.params[rows, columns], x, beside, training=self.training, keys=keys)
        if self.training and part.kept_size:
            self.kept[rows, kept] = beside
        return given


class PlainPasses:
    """Training and validation of rows by the layers' own functions.

    Args:
        networks: what the rows can be.
        data: what they are trained and validated on.
        optimizer: how parameters follow their gradients.
    """

    def __init__(self, networks: Networks, data: LabelledData, optimizer: Optimizer) -> None:
        self.networks, self.data, self.optimizer = networks, data, optimizer
        inputs = data.validation_inputs()
        example = torch.zeros(1, *inputs.shape[1:], dtype=inputs.dtype)
        self._sets = SetsLeftOut(networks.num_slots)
        self._places = {bits: place for place, bits in enumerate(self._sets.bits.tolist())}
        self._activation_size = max(h.numel() for h in networks.host.features(example))

    def prepare(self, params: Tensor, buffers: Tensor) -> None:
        """Nothing to prepare."""

    # -- forward ----------------------------------------------------------------------------

    def _segment(self, i: int, chunk: _Chunk, h: Tensor) -> Tensor:
        """Features after a segment of the host."""
        networks = self.networks
        return chunk.run(networks.host.segments[i], networks.segments[i], networks.kept[i], h)

    def _slot(self, slot: int, chunk: _Chunk, h: Tensor, groups: Sequence[Group]) -> Tensor:
        """Features after a slot of rows that are grouped by :func:`_groups`."""
        networks = self.networks
        for kind, mode, here in groups:
            seed, features = networks.seeds[slot][kind], h[here]
            columns, kept = networks.seed_columns(slot, kind), networks.kept_columns(slot, kind)
            seen = features.detach() if mode is Mode.INCUBATE else features
            given = chunk.run(seed, columns, kept, seen, here)
            weight = chunk.alpha[here, slot].view(-1, *[1] * (h.dim() - 1))
            if mode is Mode.GATE:
                gate = networks.gate_columns(slot)
                openness = chunk.run(networks.gates[slot], gate, slice(0), features, here)
                weight = weight * openness
            h = h.index_copy(0, here, blend(mode, features, given, weight))
        return h

    def _outputs(self, h: Tensor) -> Tensor:
        """Outputs with channels first, ``[n, B, C, …]``, of what the last segment gives."""
        return h.movedim(-1, 2) if self.networks.host.classes_last else h

    def _chunks(self, rows: Tensor, batch: int) -> Sequence[Tensor]:
        """Rows with ``batch`` examples each, split into those that go through together."""
        limit = _CHUNK_BYTES.get(rows.device.type, _DEVICE_BYTES)
        at_once = max(1, limit // (4 * self._activation_size * batch))
        if rows.device.type == "cpu":
            at_once = min(at_once, max(1, -(-len(rows) // torch.get_num_threads())))
        return rows.split(at_once) if len(rows) else ()

    # -- training ---------------------------------------------------------------------------

    @torch.enable_grad()  # collectors step environments without gradients
    def train(
        self,
        params: Tensor,
        buffers: Tensor,
        inputs: SlotInputs,
        examples: Tensor,
        keys: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Train rows for one epoch.

        Args:
            params: floats ``[N, columns]``, changed in place.
            buffers: the optimizer's, floats ``[buffers, N, columns]``, changed in place.
            inputs: work of the slots.
            examples: int64 ``[N, batches, B]``.
            keys: int64 ``[N]``, of the random numbers that networks draw.
            rows: int64 ``[n]``, without repetition; the others stay as they are.

        Returns:
            Gradient norms, means over the minibatches: of hosts ``[N]`` and seeds ``[N, S]``.
        """
        norms = params.new_zeros(len(params), 1 + self.networks.num_slots)
        matrices = [params, *buffers]

        kind, mode = inputs.kind(training=True), inputs.mode

        def train(chunk: Tensor) -> None:
            seeds = kind[chunk], mode[chunk], inputs.alpha[chunk]
            rates = inputs.host_lr[chunk], inputs.seed_lr[chunk]
            drawn = examples[chunk], keys[chunk]
            self._train_chunk(matrices, seeds, rates, *drawn, chunk, norms)

        chunks = self._chunks(rows, examples.shape[2])
        if self.networks.draws:  # from torch's generator, which threads share
            with torch.random.fork_rng(devices=[]):
                for chunk in chunks:
                    one_thread(train)(chunk)
        else:
            run_chunks(train, chunks)
        return norms[:, 0], norms[:, 1:]

    def _train_chunk(
        self,
        matrices: Sequence[Tensor],
        seeds: tuple[Tensor, Tensor, Tensor],
        rates: tuple[Tensor, Tensor],
        examples: Tensor,
        keys: Tensor,
        rows: Tensor,
        norms: Tensor,
    ) -> None:
        networks = self.networks
        params, *buffers = (matrix[rows] for matrix in matrices)
        host_lr, seed_lr = rates
        chunk = _Chunk(params.requires_grad_(), matrices[0][rows], *seeds, training=True)
        groups = [_groups(chunk, slot) for slot in range(networks.num_slots)]
        everything = torch.arange(len(rows), device=rows.device)
        parts = [(0, slice(networks.host_size), everything, host_lr)]
        beside = [(everything, columns) for columns in networks.kept]
        for slot, of_slot in enumerate(groups):
            for kind, _, here in of_slot:
                stop = networks.seed_columns(slot, kind).stop
                columns = slice(networks.slots[slot].start, stop)
                parts.append((1 + slot, columns, here, seed_lr[here, slot]))
                beside.append((here, networks.kept_columns(slot, kind)))
        for number, chosen in enumerate(examples.unbind(1)):
            chunk.keys = fold(keys, number) if networks.draws else None
            h = self.data.train_inputs(chosen)
            for i in range(len(networks.host.segments)):
                h = self._segment(i, chunk, h)
                if i < networks.num_slots:
                    h = self._slot(i, chunk, h, groups[i])
            targets = self.data.train_targets(chosen)
            loss = self.data.objective.loss(self._outputs(h), targets).sum()
            (gradient,) = torch.autograd.grad(loss, params)
            with torch.no_grad():
                for i, columns, here, rate in parts:
                    part = [x[here, columns] for x in (params, *buffers, gradient)]
                    self.optimizer.step(part[0], part[1:-1], part[-1], rate[:, None])
                    for matrix, changed in zip((params, *buffers), part, strict=False):
                        matrix[here, columns] = changed
                    norm = torch.linalg.vector_norm(part[-1], dim=1)
                    norms[rows[here], i] += norm / examples.shape[1]
        with torch.no_grad():
            for here, columns in beside:
                params[here, columns] = chunk.kept[here, columns]
        for matrix, changed in zip(matrices, (params.detach(), *buffers), strict=True):
            matrix[rows] = changed

    # -- validation -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(
        self, params: Tensor, inputs: SlotInputs, rows: Tensor, *, ablate: bool
    ) -> tuple[Tensor, Tensor]:
        """Measure rows.

        Args:
            params: floats ``[N, columns]``.
            inputs: work of the slots.
            rows: int64 ``[n]``, without repetition.
            ablate: leave out seeds, the K sets of
                :class:`~envs.populations.left_out.SetsLeftOut`.

        Returns:
            Mean loss ``[N]``, and sums of the answers' scores and of their squares, ``[2, N, K]``,
            0 where nothing is measured.
        """
        most, places = self._sets.most if ablate else 0, self._places
        kind, mode = inputs.kind(training=False), inputs.mode
        loss = params.new_zeros(len(params))
        scores = params.new_zeros(2, len(params), len(places))
        targets, objective = self.data.validation_targets(), self.data.objective

        def measure(h: Tensor, i: int, rows: Tensor, left_out: int) -> None:
            """Go on from segment ``i`` for rows without the seeds ``left_out`` (bits)."""
            own = params[rows]  # in evaluation nothing is written
            chunk = _Chunk(own, own, kind[rows], mode[rows], inputs.alpha[rows])
            h = self._segment(i, chunk, h)
            if i < self.networks.num_slots:
                after = self._slot(i, chunk, h, _groups(chunk, i))
                measure(after, i + 1, rows, left_out)
                here = (chunk.kind[:, i] >= 0).nonzero().squeeze(1)
                if left_out.bit_count() < most and len(here):
                    measure(h[here], i + 1, rows[here], left_out | 1 << i)
                return
            if i < len(self.networks.host.segments) - 1:
                measure(h, i + 1, rows, left_out)
                return
            outputs, answers = self._outputs(h), targets.expand(len(h), *targets.shape)
            scores[:, rows, places[left_out]] = torch.stack(objective.score(outputs, answers))
            if left_out == 0:
                loss[rows] = objective.loss(outputs, answers)

        def run(chunk: Tensor) -> None:
            x = self.data.validation_inputs()
            measure(x.expand(len(chunk), *x.shape), 0, chunk, 0)

        run_chunks(run, self._chunks(rows, self.data.validation_size))
        return loss, scores


def _groups(chunk: _Chunk, slot: int) -> list[Group]:
    """Rows with the same seed in the same mode; those without any are left out."""
    kind, mode = chunk.kind[:, slot], chunk.mode[:, slot]
    groups = []
    for code in (kind * len(Mode) + mode)[kind >= 0].unique().tolist():
        number, of_mode = divmod(code, len(Mode))
        here = ((kind == number) & (mode == of_mode)).nonzero().squeeze(1)
        groups.append((number, Mode(of_mode), here))
    return groups
