"""Passes of growing networks on CPUs, compiled: of layers and optimizers that have such a form."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import product
from threading import Timer

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.compiled import Network, Rows, train_rows, validate_rows
from envs.batched.instructions import Assembler, Field, Opcode
from envs.batched.losses import Criterion, Loss
from envs.batched.optimizers import SGD, AdamW, Optimizer
from envs.batched.workers import run_chunks
from envs.networks.compiling import NotCompiledError
from envs.networks.segments import Segment
from envs.networks.steps import copy_features
from envs.networks.views import Value, in_order, same_order
from envs.populations.base import SlotInputs
from envs.populations.data import LabelledData
from envs.populations.left_out import SetsLeftOut
from envs.populations.networks import Networks
from envs.populations.objectives import Classes, Labels, Numbers, Objective

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
        NotCompiledError: if a layer, the loss or the optimizer has no compiled form.
    """

    def __init__(self, networks: Networks, data: LabelledData, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, SGD | AdamW):
            raise NotCompiledError(f"{type(optimizer).__name__} is neither SGD nor AdamW")
        self.networks, self.data, self.optimizer = networks, data, optimizer
        self._numbers = np.array(optimizer.numbers)
        objective, wanted = data.objective, data.validation_targets()
        self._targets = _flat_targets(objective, data.targets)
        answers = self._targets.shape[1]  # of an example
        classes = networks.host.num_classes if isinstance(objective, Classes) else 1
        self.criterion = _make_criterion(objective, wanted, classes)
        self.network, extremes = assemble(networks, data.inputs[:1], classes, answers)
        prepare = window_extremes if extremes else networks.host.channels_first
        self._inputs = prepare(data.inputs).flatten(1).contiguous()
        self._validation_inputs = prepare(data.validation_inputs()).flatten(1).T
        self._answers = _flat_targets(objective, wanted).T
        self._at_once = max(_LEAST, _PIECE // answers)
        mass = objective.mass(wanted).double().reshape(len(wanted), -1).sum(1)
        self._mass = np.array([[part.sum()] for part in mass.split(self._at_once)])
        members = SetsLeftOut(networks.num_slots).members
        digits = 1 << torch.arange(networks.num_slots).flip(0)
        self._order = (members * digits).sum(1).argsort()  # that of envs.batched.compiled
        self._sets = members[self._order].numpy()

    def prepare(self, params: Tensor, buffers: Tensor) -> None:
        """Compile, or load what was compiled before, with a word to the user if it takes long.

        Args:
            params, buffers: as for :meth:`train`; nothing in them changes.
        """
        nothing = torch.zeros(len(params), self.networks.num_slots)
        dormant, rates = nothing.long(), nothing.sum(1)
        inputs = SlotInputs(dormant, dormant - 1, dormant, nothing, rates, nothing)
        examples = torch.zeros(len(params), 1, 1, dtype=torch.int64)
        no_rows = examples[:0, 0, 0]
        message = "compiling the networks' layers, once on this machine: half a minute or so"
        notice = Timer(2.0, _LOGGER.warning, [message])
        notice.daemon = True
        notice.start()
        try:
            self.train(params, buffers, inputs, examples, no_rows, no_rows)
            self.validate(params, inputs, no_rows, ablate=False)
        finally:
            notice.cancel()

    def train(
        self,
        params: Tensor,
        buffers: Tensor,
        inputs: SlotInputs,
        examples: Tensor,
        keys: Tensor,
        rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`envs.populations.plain.PlainPasses.train`."""
        host_norm = params.new_zeros(len(params))
        seed_norm = params.new_zeros(len(params), self.networks.num_slots)
        given = self._inputs, self._targets, inputs.host_lr, inputs.seed_lr
        examined, targets, host_lr, seed_lr = (_array(x.to(params.dtype)) for x in given)
        minibatches = _array(examples)
        state = _rows(params, inputs, training=True)

        def train(chunk: np.ndarray) -> None:
            train_rows(
                self.network,
                self.criterion,
                state,
                chunk,
                examined,
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
        self, params: Tensor, inputs: SlotInputs, rows: Tensor, *, ablate: bool
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`envs.populations.plain.PlainPasses.validate`."""
        number = len(self._sets) if ablate else 1
        order, sets = self._order[:number], self._sets[:number]
        state = _rows(params, inputs, training=False)
        at_once = self._at_once
        examined, answers = (x.to(params.dtype) for x in (self._validation_inputs, self._answers))
        pieces = [
            (_array(x), wanted.flatten().numpy())
            for x, wanted in zip(examined.split(at_once, 1), answers.split(at_once, 1), strict=True)
        ]
        loss = np.zeros((len(pieces), len(params)))
        scores = np.zeros((len(pieces), len(params), number, 2))

        def measure(share: tuple[int, np.ndarray]) -> None:
            i, chunk = share
            measured = loss[i], scores[i]
            validate_rows(self.network, self.criterion, state, chunk, *pieces[i], sets, *measured)

        run_chunks(measure, product(range(len(pieces)), _shares(rows)))
        mean_loss = torch.from_numpy((loss * self._mass).sum(0) / self._mass.sum())
        summed = params.new_zeros(2, len(params), len(self._sets))
        in_order = torch.from_numpy(scores.sum(0)).movedim(-1, 0)
        summed[:, :, order] = in_order.to(params.dtype)
        return mean_loss.to(params.dtype), summed


def _rows(params: Tensor, inputs: SlotInputs, *, training: bool) -> Rows:
    of_slots = inputs.kind(training=training), inputs.mode, inputs.alpha.to(params.dtype)
    return Rows(params.numpy(), *(_array(entry) for entry in of_slots))


def _array(values: Tensor) -> np.ndarray:
    """Contiguous: another layout is of another type, for which Numba would compile all again."""
    return values.contiguous().numpy()


def _flat_targets(objective: Objective, targets: Tensor) -> Tensor:
    """Targets of each answer ``[M, answers]``; a class that isn't asked for is −1."""
    if isinstance(objective, Classes):
        targets = torch.where(targets == objective.module.ignore_index, -1, targets)
    return targets.reshape(len(targets), -1).float()


def _make_criterion(objective: Objective, wanted: Tensor, classes: int) -> Criterion:
    """The compiled form of an objective, with the targets of the validation.

    Raises:
        NotCompiledError: if it has none.
    """
    loss = objective.module
    weights, spread = torch.ones(classes), 1.0
    if isinstance(objective, Classes):
        kind = Loss.CROSS_ENTROPY
        weights = weights if loss.weight is None else loss.weight
    elif isinstance(objective, Labels) and loss.weight is None:
        kind, weights = Loss.LOGISTIC, torch.ones(wanted.shape[1:])
        if loss.pos_weight is not None:
            weights = weights * loss.pos_weight
    elif isinstance(objective, Numbers) and isinstance(loss, nn.MSELoss):
        kind, spread = Loss.SQUARED, objective.spread(wanted).item()
    else:
        options = " with weight" if isinstance(objective, Labels) else ""
        raise NotCompiledError(f"no compiled form of nn.{type(loss).__name__}{options}")
    smoothing = float(getattr(loss, "label_smoothing", 0.0))
    return Criterion(int(kind), weights.flatten().double().numpy(), smoothing, spread)


def _shares(rows: Tensor) -> list[np.ndarray]:
    """Every thread's share of the rows, in several parts; like rows are far apart."""
    count = max(1, min(len(rows), _SHARES * torch.get_num_threads()))
    return [np.ascontiguousarray(rows.numpy()[i::count]) for i in range(count)]


def window_extremes(images: Tensor) -> Tensor:
    """Largest and smallest pixel of every 2×2 window, mean and variance of the image.

    Args:
        images: ``[M, 1, H, W]``, H and W even.

    Returns:
        ``[M, H·W/2 + 2]``.
    """
    largest = F.max_pool2d(images, 2).flatten(1)
    smallest = -F.max_pool2d(-images, 2).flatten(1)
    pixels = images.flatten(1)
    mean, variance = pixels.mean(1, keepdim=True), pixels.var(1, correction=0, keepdim=True)
    return torch.cat([largest, smallest, mean, variance], dim=1)


def assemble(
    networks: Networks, example: Tensor, classes: int, answers: int
) -> tuple[Network, bool]:
    """Write the instructions of all networks.

    Args:
        networks: hosts and seeds.
        example: an input ``[1, …]``.
        classes: numbers that an answer has.
        answers: of an example.

    Returns:
        The instructions; and do they take the :func:`window_extremes` of the examples?

    Raises:
        NotCompiledError: if a layer has no compiled form, or the outputs aren't so many.
    """
    host, features = networks.host, networks.host.features(example)
    code = Assembler(*(*host.channels_first(example).shape[1:], 1, 1)[:3])
    h = Value(code.inputs, tuple(example.shape[1:]), host.inputs_last)
    segments, outputs = [], []
    for i, segment in enumerate(host.segments):
        first, before, is_last = len(code.lines), h.buffer, i == len(host.segments) - 1
        own, kept = networks.segments[i], networks.kept[i]
        name = f"segment {i} of the host"
        h = _emit(name, segment, code, h, features[i], own, kept)
        last = host.classes_last if is_last else host.channels_last
        ordered = h if len(h.shape) == 1 else in_order(h, last)
        if ordered is None:
            raise NotCompiledError(f"in {name}, channels and positions come in another order")
        h = ordered
        in_place = before.start <= h.buffer.start < before.start + before.size
        if in_place and i < networks.num_slots:
            # A seed changes the features at its slot in place: not those of the slot before, or
            # the examples, of which these are a view.
            room = code.buffer(before.channels, before.height, before.width)
            copy_features(code, before, room)
            h = h._replace(
                buffer=replace(h.buffer, start=room.start + h.buffer.start - before.start)
            )
        segments.append((first, len(code.lines)))
        outputs.append(h)
    if h.buffer.size != classes * answers:
        raise NotCompiledError(
            f"the host gives {h.buffer.size} outputs an example, not {classes} for each of "
            f"{answers} answers"
        )
    host_places, places = code.place, code.place
    slots, seeds = [], []
    for s, (columns, choices) in enumerate(zip(networks.slots, networks.seeds, strict=True)):
        out, example = outputs[s].buffer, features[s + 1]
        code.place = places
        first = len(code.lines)
        seen = outputs[s]._replace(buffer=code.buffer(out.channels, out.height, out.width))
        code.line(Opcode.SHOW, out, seen.buffer, flag=s)
        shown = len(code.lines)
        gate = networks.gates[s]
        own = networks.gate_columns(s)
        openness = _emit("a gate", gate, code, seen, example, own, own).buffer
        steps = (first, shown, shown, len(code.lines))
        slots.append((out.start, seen.buffer.start, out.size, *steps, columns.start))
        place = code.place
        of_kind = [(0, 0, 0, 0)] * len(networks.blueprints)
        for kind, seed in choices.items():
            code.place = place
            first = len(code.lines)
            name = f"blueprint {networks.blueprints[kind]!r}"
            own, kept = networks.seed_columns(s, kind), networks.kept_columns(s, kind)
            given = _emit(name, seed, code, seen, example, own, kept)
            if not same_order(given, seen):
                raise NotCompiledError(f"in {name}, channels and positions come in another order")
            code.line(
                Opcode.BLEND,
                seen.buffer,
                out,
                other=given.buffer,
                scratch=openness,
                size=openness.size,
                flag=s,
            )
            of_kind[kind] = (first, len(code.lines), code.place, gate.size + seed.size)
            places = max(places, code.place)
        seeds.append(of_kind)
    network = Network(
        code.table(),
        np.array(segments),
        np.array(slots).reshape(-1, 8),
        np.array(seeds).reshape(len(slots), -1, 4),
        code.inputs.start,
        h.buffer.start,
        classes,
        answers,
        host_places,
        networks.host_size,
        places,
        True if any(line[Field.OPCODE] == Opcode.ATTEND for line in code.lines) else None,
        True if code.further else None,
    )
    return network, code.takes_extremes


def _emit(
    name: str,
    part: Segment,
    code: Assembler,
    x: Value,
    example: Tensor,
    columns: slice,
    kept: slice,
) -> Value:
    try:
        return part.emit(code, x, example, columns.start, kept.start)
    except NotCompiledError as error:
        raise NotCompiledError(f"in {name}, {error}") from None
