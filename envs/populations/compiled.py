"""Passes of growing networks on CPUs, compiled: of layers and optimizers that have such a form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import product
from threading import Timer

import numpy as np
import torch
from torch import Tensor

from envs.batched.compiled import Network, Rows, train_rows, validate_rows
from envs.batched.instructions import Assembler, Buffer, Field, Opcode
from envs.batched.optimizers import SGD, AdamW, Optimizer
from envs.batched.programs import NotCompiledError, emit
from envs.batched.workers import run_chunks
from envs.blueprints.base import Segment
from envs.populations.base import ablations
from envs.populations.data import Data, LabelledData
from envs.populations.networks import Networks, Work

_LOGGER = logging.getLogger(__name__)

_PIECE, _LEAST = 128, 16
"""Validation examples that go through a network at once (for sequences: positions, of at least so
many examples). Their features fit the cache, and fill the vector units."""

_SHARES = 2
"""Parts into which a thread's work is divided, so that all threads end at about the same time."""


class CompiledPasses:
    """Training and validation of rows, each by itself, spread over threads.

    Args:
        networks: what the rows can be.
        data: what they are trained and validated on.
        optimizer: how parameters follow their gradients.

    Raises:
        NotCompiledError: if a layer or the optimizer has no compiled form, or the data have no
            class for each example, or for each position.
    """

    def __init__(self, networks: Networks, data: Data, optimizer: Optimizer) -> None:
        if not isinstance(data, LabelledData) or data.targets.dim() > 2:
            raise NotCompiledError("targets are not classes of examples or of their positions")
        if not isinstance(optimizer, SGD | AdamW):
            raise NotCompiledError(f"{type(optimizer).__name__} is neither SGD nor AdamW")
        self.networks, self.data, self.optimizer = networks, data, optimizer
        self._inputs = data.inputs.flatten(1)
        self._targets = data.targets.view(len(data.targets), -1)
        self._answers = data.validation_targets()[0].view(-1, data.validation_size)
        self._numbers = np.array(optimizer.numbers)
        self._validation_inputs = data.validation_inputs()[0].flatten(0, -2)
        positions = len(self._answers)
        self.network = assemble(networks, data.inputs.shape[1:], positions)
        self._at_once = max(_LEAST, _PIECE // positions)
        slots, left_out = torch.arange(networks.num_slots), ablations(networks.num_slots)
        digits = left_out[:, None] >> slots & 1
        order = (digits << slots.flip(0)).sum(1).argsort()  # that of envs.batched.compiled
        self._left_out, self._sets = left_out[order], digits[order].bool().numpy()

    def prepare(self, params: Tensor, buffers: Tensor) -> None:
        """Compile, or load what was compiled before, with a word to the user if it takes long.

        Args:
            params, buffers: as for :meth:`train`; nothing in them changes.
        """
        slots = self.networks.num_slots
        free = torch.zeros(len(params), slots)
        work = Work((free - 1).long(), free.long(), free, free.sum(1), free)
        examples = torch.zeros(len(params), 1, 1, dtype=torch.int64)
        no_rows, places = examples[:0, 0, 0], torch.zeros(1 << slots, dtype=torch.int64)
        message = "compiling the networks' layers, once on this machine: half a minute or so"
        notice = Timer(2.0, _LOGGER.warning, [message])
        notice.daemon = True
        notice.start()
        try:
            self.train(params, buffers, work, examples, no_rows)
            self.validate(params, work, no_rows, places, ablate=False)
        finally:
            notice.cancel()

    def train(
        self, params: Tensor, buffers: Tensor, work: Work, examples: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`envs.populations.plain.PlainPasses.train`."""
        host_norm = params.new_zeros(len(params))
        seed_norm = params.new_zeros(len(params), self.networks.num_slots)
        inputs, targets = self._inputs.to(params.dtype).numpy(), self._targets.numpy()
        minibatches = examples.contiguous().numpy()
        host_lr, seed_lr = (rate.to(params.dtype).numpy() for rate in (work.host_lr, work.seed_lr))
        state = _rows(params, work)

        def train(chunk: np.ndarray) -> None:
            train_rows(
                self.network,
                state,
                chunk,
                inputs,
                targets,
                minibatches,
                buffers.numpy(),
                host_lr,
                seed_lr,
                int(self.optimizer.rule),
                self._numbers,
                host_norm.numpy(),
                seed_norm.numpy(),
            )

        run_chunks(train, _shares(rows))
        return host_norm, seed_norm

    def validate(
        self, params: Tensor, work: Work, rows: Tensor, places: Tensor, *, ablate: bool
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`envs.populations.plain.PlainPasses.validate`."""
        number = len(self._left_out) if ablate else 1
        left_out, sets = self._left_out[:number], self._sets[:number]
        state = _rows(params, work)
        inputs, at_once = self._validation_inputs.to(params.dtype), self._at_once
        pieces = [
            (x.contiguous().numpy(), answers.flatten().numpy())
            for x, answers in zip(
                inputs.split(at_once, 1), self._answers.split(at_once, 1), strict=True
            )
        ]
        loss = np.zeros((len(pieces), len(params)))
        correct = np.zeros((len(pieces), len(params), number), np.int64)

        def measure(share: tuple[int, np.ndarray]) -> None:
            piece, chunk = share
            validate_rows(
                self.network, state, chunk, *pieces[piece], sets, loss[piece], correct[piece]
            )

        run_chunks(measure, product(range(len(pieces)), _shares(rows)))
        sizes = np.array([[len(answers)] for _, answers in pieces])
        mean_loss = torch.from_numpy((loss * sizes).sum(0) / self._answers.numel())
        counted = params.new_zeros(len(params), int(places.max()) + 1)
        counted[:, places[left_out]] = torch.from_numpy(correct.sum(0)).to(params.dtype)
        return mean_loss.to(params.dtype), counted


def _rows(params: Tensor, work: Work) -> Rows:
    alpha = work.alpha.to(params.dtype)
    return Rows(params.numpy(), work.kind.numpy(), work.mode.numpy(), alpha.numpy())


def _shares(rows: Tensor) -> list[np.ndarray]:
    """Every thread's share of the rows, in several parts; like rows are far apart."""
    count = max(1, min(len(rows), _SHARES * torch.get_num_threads()))
    return [np.ascontiguousarray(rows.numpy()[i::count]) for i in range(count)]


def assemble(networks: Networks, features: Sequence[int], positions: int) -> Network:
    """Write the instructions of all programs.

    Args:
        networks: hosts and seeds.
        features: shape of an example, as the host's ``prepare`` gives it.
        positions: answers of an example.

    Raises:
        NotCompiledError: if a layer has no compiled form, or the outputs aren't a logit of each
            class for each answer.
    """
    code = Assembler()
    channels, height, width = (*features, 1, 1)[:3]
    h = inputs = code.buffer(channels, height, width)
    segments, outputs = [], []
    for i, segment in enumerate(networks.host.segments):
        first = len(code.lines)
        given = _emit_part(f"segment {i} of the host", segment, code, h)
        if given.start == h.start and i < networks.num_slots:
            # A seed changes the features at its slot in place: not those of the slot before, or
            # the examples, of which these are a view.
            room = code.buffer(given.channels, given.height, given.width)
            given = code.line(Opcode.AVERAGE_POOL, given, room)  # of one pixel: a copy
        h = given
        segments.append((first, len(code.lines)))
        outputs.append(h)
    if h.size != networks.host.num_classes * positions:
        raise NotCompiledError(
            f"the host gives {h.size} outputs an example, not {networks.host.num_classes} for each "
            f"of {positions} positions"
        )
    host_places, places = code.place, code.place
    slots, seeds = [], []
    for s, (columns, choices) in enumerate(zip(networks.slots, networks.seeds, strict=True)):
        out = outputs[s]
        code.column, code.place = columns.start, places
        first = len(code.lines)
        seen = code.buffer(out.channels, out.height, out.width)
        code.line(Opcode.SHOW, out, seen, flag=s)
        shown = len(code.lines)
        openness = _emit_part("the host's pool", networks.gates[s], code, seen)
        steps = (first, shown, shown, len(code.lines))
        slots.append((out.start, seen.start, seen.size, *steps, columns.start))
        column, place = code.column, code.place
        of_kind = [(0, 0, 0, 0)] * len(networks.blueprints)
        for kind, seed in choices.items():
            code.column, code.place = column, place
            first = len(code.lines)
            name = f"blueprint {networks.blueprints[kind]!r}"
            given = _emit_part(name, seed.module, code, seen)
            code.line(
                Opcode.BLEND, seen, out, other=given, scratch=openness, size=openness.size, flag=s
            )
            of_kind[kind] = (first, len(code.lines), code.place, seed.layout.size)
            places = max(places, code.place)
        seeds.append(of_kind)
    return Network(
        code.table(),
        np.array(segments),
        np.array(slots).reshape(-1, 8),
        np.array(seeds).reshape(len(slots), -1, 4),
        inputs.start,
        h.start,
        networks.host.num_classes,
        positions,
        host_places,
        networks.host_size,
        places,
        True if any(line[Field.OPCODE] == Opcode.ATTEND for line in code.lines) else None,
        True if code.further else None,
    )


def _emit_part(name: str, part: Segment, code: Assembler, x: Buffer) -> Buffer:
    try:
        return emit(part, code, x)
    except NotCompiledError as error:
        raise NotCompiledError(f"in {name}, {error}") from None
