"""Growing networks on CPUs, a row at a time: an epoch of training, and validation.

Compiled by Numba at the first use and cached on disk. All functions work on some rows and may run
beside each other for others; what a row does depends on nothing but the row.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from envs.batched.interpreter import backward, forward
from envs.batched.losses import Criterion, loss_of, score
from envs.batched.modes import Mode
from envs.batched.products import Array, cached_kernel, kernel
from envs.batched.steps import step

_GATE = int(Mode.GATE)

SOURCES = zlib.crc32(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))))
"""Digest of all the code here. Numba's cache notices changes in a function's own file only. The
digest is the default of an argument that no caller gives, so it is part of the cache's key, and a
change in any file here compiles the kernels again."""


class Network(NamedTuple):
    """Programs of a host and of all seeds that its slots can hold, as tables of integers.

    Attributes:
        lines: int64 ``[lines, fields]``, of all programs.
        segments: int64 ``[S + 1, 2]``, first and last line (excluded) of every segment.
        slots: int64 ``[S, 8]``: place of the features after the segment, place of those that the
            seed sees, numbers an example of each, first and last line that shows them, first and
            last line of the gate, first column of the seed's parameters.
        seeds: int64 ``[S, K, 4]`` by kind: first and last line, last place that the seed uses,
            number of columns.
        inputs, outputs: place of the examples and of the outputs.
        classes: numbers that an answer has.
        answers: of an example, 1 if it has a class as a whole.
        host_places: places of the host's own features, all in front of the seeds'.
        host_columns: parameters of the host, all in front of the seeds'.
        places: of the arena, numbers an example.
        attention: True if a line is ATTEND; None otherwise, and then that isn't compiled.
        further: the same of layers that the hosts of this package don't have: pooling, stride 2,
            batch norm, parameters on their own and activations but ReLU and sigmoid.
    """

    lines: Array
    segments: Array
    slots: Array
    seeds: Array
    inputs: int
    outputs: int
    classes: int
    answers: int
    host_places: int
    host_columns: int
    places: int
    attention: bool | None
    further: bool | None


class Rows(NamedTuple):
    """All rows and their work in an epoch.

    Attributes:
        params: floats ``[N, columns]``.
        kind: int64 ``[N, S]``, which seed runs in a slot, −1 for none.
        mode: int64 ``[N, S]``, a :class:`~envs.batched.modes.Mode`.
        alpha: floats ``[N, S]``.
    """

    params: Array
    kind: Array
    mode: Array
    alpha: Array


@kernel
def _write_order(
    network: Network, kind: Array, mode: Array, left_out: Array, order: Array, starts: Array
) -> int:
    """Write which lines run one after the other for one row, and return their number.

    Args:
        network: the programs.
        kind, mode: of the row's slots, ``[S]``.
        left_out: bool ``[S]``, seeds that don't run.
        order: the numbers of the lines, written.
        starts: ``[S + 1]``, where in ``order`` each segment starts, written.
    """
    count = 0
    for s in range(len(network.segments)):
        starts[s] = count
        count = _append(order, count, network.segments[s, 0], network.segments[s, 1])
        if s < len(network.slots) and kind[s] >= 0 and not left_out[s]:
            slot, seed = network.slots[s], network.seeds[s, kind[s]]
            count = _append(order, count, slot[3], slot[4])
            if mode[s] == _GATE:
                count = _append(order, count, slot[5], slot[6])
            count = _append(order, count, seed[0], seed[1])
    return count


@kernel
def _append(order: Array, count: int, first: int, last: int) -> int:
    for number in range(first, last):
        order[count] = number
        count += 1
    return count


@kernel
def _clear(arena: Array, first: int, last: int) -> None:
    """Set places ``first`` to ``last`` (excluded) to 0."""
    for i in range(first, last):
        for b in range(arena.shape[1]):
            arena[i, b] = 0


@kernel
def _outputs(network: Network, arena: Array) -> Array:
    """A view of the outputs, ``[classes, answers · B]``."""
    first, columns = network.outputs * arena.shape[1], network.answers * arena.shape[1]
    return arena.ravel()[first : first + network.classes * columns].reshape(-1, columns)


@cached_kernel
def train_rows(
    network: Network,
    criterion: Criterion,
    rows: Rows,
    chosen: Array,
    inputs: Array,
    targets: Array,
    examples: Array,
    buffers: Array,
    host_lr: Array,
    seed_lr: Array,
    rule: int,
    numbers: Array,
    host_norm: Array,
    seed_norm: Array,
    sources: int = SOURCES,
) -> None:
    """Train some rows for an epoch; parameters and buffers change in place.

    Args:
        network: the programs.
        criterion: the loss, and the score of an answer.
        rows: of all rows.
        chosen: int64 ``[n]``, those that train.
        inputs: floats ``[M, features]``, all training examples.
        targets: floats ``[M, answers]``; see :func:`~envs.batched.losses.loss_of`.
        examples: int64 ``[N, batches, B]``, the minibatches.
        buffers: floats ``[buffers, N, columns]``.
        host_lr, seed_lr: learning rates ``[N]`` and ``[N, S]``.
        rule, numbers: of the optimizer; see :func:`envs.batched.steps.step`.
        host_norm, seed_norm: mean gradient norms ``[N]`` and ``[N, S]``, written.
    """
    batches, batch = examples.shape[1:]
    slots = len(network.slots)
    arena = np.empty((network.places, batch), inputs.dtype)
    grads = np.empty((network.places, batch), inputs.dtype)
    grad_params = np.empty(rows.params.shape[1], inputs.dtype)
    lines = network.lines
    room, starts = np.empty(len(lines), np.int64), np.empty(slots + 1, np.int64)
    outputs, grad_outputs = _outputs(network, arena), _outputs(network, grads)
    wanted, nothing = np.empty(outputs.shape[1], targets.dtype), np.zeros(slots, np.bool_)
    for row in chosen:
        params, kind = rows.params[row], rows.kind[row]
        mode, alpha = rows.mode[row], rows.alpha[row]
        order = room[: _write_order(network, kind, mode, nothing, room, starts)]
        host_norm[row] = 0
        seed_norm[row] = 0
        for number in range(batches):
            for b in range(batch):
                example = examples[row, number, b]
                for answer in range(network.answers):
                    wanted[answer * batch + b] = targets[example, answer]
                for f in range(inputs.shape[1]):
                    arena[network.inputs + f, b] = inputs[example, f]
            grad_params[:] = 0
            _clear(grads, 0, network.host_places)
            for s in range(slots):
                if kind[s] >= 0:
                    _clear(grads, network.slots[s, 1], network.seeds[s, kind[s], 2])
            forward(
                lines, order, params, mode, alpha, arena, network.attention, network.further, True
            )  # fmt: skip
            loss_of(criterion, outputs, wanted, grad_outputs)
            backward(
                lines,
                order,
                params,
                mode,
                alpha,
                arena,
                network.attention,
                network.further,
                grads,
                grad_params,
            )
            for s in range(-1, slots):  # the host, then its seeds: one call, compiled once
                first, last, rate = 0, network.host_columns, host_lr[row]
                if s >= 0:
                    first, rate = network.slots[s, 7], seed_lr[row, s]
                    last = first + (network.seeds[s, kind[s], 3] if kind[s] >= 0 else 0)
                norm = step(rule, numbers, params, buffers, row, grad_params, first, last, rate)
                if s < 0:
                    host_norm[row] += norm / batches
                else:
                    seed_norm[row, s] += norm / batches


@cached_kernel
def validate_rows(
    network: Network,
    criterion: Criterion,
    rows: Rows,
    chosen: Array,
    inputs: Array,
    targets: Array,
    sets: Array,
    loss: Array,
    scores: Array,
    sources: int = SOURCES,
) -> None:
    """Loss and scores of some rows, and scores with sets of seeds left out.

    A set is left out only if all its slots are mixed. Two sets in a row share the features up to
    the first slot in which they differ: these are not computed again.

    Args:
        network: the programs.
        criterion: the loss, and the score of an answer.
        rows: of all rows.
        chosen: int64 ``[n]``, those that are validated.
        inputs: floats ``[features, B]``.
        targets: floats ``[answers · B]``.
        sets: bool ``[K, S]``, in increasing order with slot 0 as the highest digit; first the
            one that leaves out nothing.
        loss: ``[N]``, written.
        scores: ``[N, K, 2]``, sums of the answers' scores and of their squares, written.
    """
    batch = inputs.shape[1]
    slots = len(network.slots)
    arena = np.empty((network.places, batch), inputs.dtype)
    lines = network.lines
    room, starts = np.empty(len(lines), np.int64), np.empty(slots + 1, np.int64)
    outputs = _outputs(network, arena)
    scratch = np.empty_like(outputs)
    for f in range(len(inputs)):
        for b in range(batch):
            arena[network.inputs + f, b] = inputs[f, b]
    for row in chosen:
        params, kind = rows.params[row], rows.kind[row]
        mode, alpha = rows.mode[row], rows.alpha[row]
        before = 0
        for k in range(len(sets)):
            possible = True
            for s in range(slots):
                possible &= not (sets[k, s] and kind[s] < 0)
            if not possible:
                continue
            order = room[: _write_order(network, kind, mode, sets[k], room, starts)]
            if k > 0:
                s = 0
                while sets[k, s] == sets[before, s]:
                    s += 1
                # The seed in slot s has run and is left out now: its input goes on in its place.
                for i in range(network.slots[s, 2]):
                    for b in range(batch):
                        arena[network.slots[s, 0] + i, b] = arena[network.slots[s, 1] + i, b]
                order = order[starts[s + 1] :]
            forward(
                lines, order, params, mode, alpha, arena, network.attention, network.further, False
            )  # fmt: skip
            before = k
            scores[row, k] = score(criterion, outputs, targets)
            if k == 0:
                loss[row] = loss_of(criterion, outputs, targets, scratch)
