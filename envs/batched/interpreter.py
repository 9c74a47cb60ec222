"""The compiled interpreter: goes through lines of instructions, forward and backward.

Works on one network at a time, on CPUs, without gradients by autograd. See
:mod:`envs.batched.products` and :mod:`envs.batched.norms` for the layers with much work and
:mod:`envs.batched.instructions` for the lines.

A seed's steps are lines too: SHOW gives it a copy of the features at its slot, BLEND changes them
in place by what it gives, as its :class:`~envs.batched.modes.Mode` says.
"""

from __future__ import annotations

import numpy as np

from envs.batched.attention import attend, attend_backward
from envs.batched.instructions import DRAWN, Field, Opcode
from envs.batched.modes import Mode
from envs.batched.norms import (
    norm_backward,
    norm_forward,
    pool_forward,
    stem_backward,
    stem_forward,
    unpool,
)
from envs.batched.products import Array, add_dots, add_products, entry_kernel, kernel, runs

_OPCODE, _X, _OTHER, _OUT, _SCRATCH, _PARAMETERS = map(int, list(Field)[:6])
_INPUTS, _OUTPUTS, _HEIGHT, _WIDTH, _SIZE, _FLAG = map(int, list(Field)[6:])
_CONV, _DEPTHWISE3X3, _NORM, _NORM_POOL, _STEM, _AVERAGE = map(int, list(Opcode)[:6])
_RELU, _SIGMOID, _ADD, _SCALE, _MIX, _SHOW, _BLEND, _EMBED, _ATTEND = map(int, list(Opcode)[6:])
_INCUBATE, _, _MULTIPLY, _GATE = map(int, Mode)


@kernel
def tanh_difference(a: Array, b: Array, out: Array) -> None:
    """out = tanh(a − b), in operations that are vectorised: exact to some units in the last place.

    Lambert's continued fraction for a 32nd, then tanh 2y = 2 tanh y / (1 + tanh² y) five times.
    """
    number = out.dtype.type
    for i in range(len(out)):
        y = a[i] - b[i]
        y = number(20) if y > 20 else y  # where it is 1; NaN passes
        y = (number(-20) if y < -20 else y) * number(1 / 32)
        s = y * y
        over = number(135135) + s * (number(17325) + s * (number(378) + s))
        under = number(135135) + s * (number(62370) + s * (number(3150) + s * number(28)))
        y = y * over / under
        for _ in range(5):
            y = (y + y) / (number(1) + y * y)
        out[i] = y


@kernel
def blend(out: Array, h: Array, seed: Array, openness: Array, mode: int, alpha: float) -> None:
    """Change features by what a seed gives.

    Args:
        out: features ``[≥ rows, B]``, ``h`` before.
        h: ``[rows, B]``.
        seed: what it gives, ``[≥ rows, B]``.
        openness: of its gate, ``[pixels, B]``; or ``[1, B]``, the same for all.
    """
    rows, batch = h.shape
    pixels = len(openness)
    weight = h.dtype.type(alpha)
    for m in range(rows if mode != _INCUBATE else 0):
        if mode == _MULTIPLY:
            tanh_difference(seed[m], h[m], out[m])
            for b in range(batch):
                out[m, b] = h[m, b] * (1 + weight * out[m, b])
        elif mode == _GATE:
            own = openness[m % pixels]
            for b in range(batch):
                out[m, b] = h[m, b] + weight * own[b] * (seed[m, b] - h[m, b])
        else:
            for b in range(batch):
                out[m, b] = h[m, b] + weight * (seed[m, b] - h[m, b])


@kernel
def blend_backward(
    grad: Array,
    grad_seed: Array,
    grad_openness: Array,
    h: Array,
    seed: Array,
    openness: Array,
    mode: int,
    alpha: float,
) -> None:
    """Gradients of :func:`blend`; an incubating seed gets the one that the features get.

    ``grad`` becomes that of ``h`` in place.
    """
    rows, batch = h.shape
    pixels = len(openness)
    weight = h.dtype.type(alpha)
    for m in range(rows):
        if mode == _INCUBATE:
            for b in range(batch):
                grad_seed[m, b] = grad[m, b]
        elif mode == _MULTIPLY:
            tanh_difference(seed[m], h[m], grad_seed[m])
            for b in range(batch):
                moved, g = grad_seed[m, b], weight * grad[m, b]
                grad_seed[m, b] = g * h[m, b] * (1 - moved * moved)
                grad[m, b] += g * moved - grad_seed[m, b]
        elif mode == _GATE:
            own, grad_own = openness[m % pixels], grad_openness[m % pixels]
            for b in range(batch):
                grad_own[b] += weight * grad[m, b] * (seed[m, b] - h[m, b])
                grad_seed[m, b] = weight * own[b] * grad[m, b]
                grad[m, b] -= grad_seed[m, b]
        else:
            for b in range(batch):
                grad_seed[m, b] = weight * grad[m, b]
                grad[m, b] -= grad_seed[m, b]


@kernel
def _kernel(line: Array, params: Array) -> tuple[int, int]:
    """Size of a convolution's kernel and its first parameter."""
    if line[_SIZE] != DRAWN:
        return line[_SIZE], 0
    pointwise = line[_INPUTS] * line[_OUTPUTS]
    return (3, 1 + pointwise) if params[0] > 0 else (1, 1)


@kernel
def _columns(flat: Array, place: int, rows: int, apart: int, batch: int) -> Array:
    """Features from ``place`` on as ``[rows / apart, apart · B]``: a view of the arena."""
    return flat[place * batch : (place + rows) * batch].reshape(rows // apart, apart * batch)


@entry_kernel
def forward(
    lines: Array,
    order: Array,
    params: Array,
    mode: Array,
    alpha: Array,
    arena: Array,
    attention: bool | None,
) -> None:
    """Run lines.

    Args:
        lines: int64 ``[lines, fields]``.
        order: int64, numbers of the lines that run.
        params: of the network, flat.
        mode: int64 ``[S]``, a :class:`~envs.batched.modes.Mode` for each slot.
        alpha: floats ``[S]``.
        arena: ``[places, B]``, features of B examples, read and written.
        attention: None where no line is ATTEND.
    """
    batch, flat = arena.shape[1], arena.ravel()
    zero = arena.dtype.type(0)
    for number in order:
        line = lines[number]
        opcode, flag = line[_OPCODE], line[_FLAG]
        channels, outputs = line[_INPUTS], line[_OUTPUTS]
        pixels = line[_HEIGHT] * line[_WIDTH]
        rows, start = channels * pixels, line[_PARAMETERS]
        x, own = arena[line[_X] : line[_X] + rows], params[start:]
        mean, rstd = arena[line[_SCRATCH]], arena[line[_SCRATCH] + 1]  # where a layer has them
        kept, apart = arena[line[_SCRATCH] + 2 :], line[_SIZE]
        other, out = arena[line[_OTHER] :], arena[line[_OUT] :]
        if opcode == _CONV:
            for m in range(outputs * pixels):
                value = own[outputs * channels + m // pixels] if flag else zero
                for b in range(batch):
                    out[m, b] = value
            size, first = _kernel(line, own)
            taps, step = size * size, pixels * batch
            found = runs(size, line[_HEIGHT], line[_WIDTH])
            for k in range(len(found)):
                to, at = (line[_OUT] + found[k, 0]) * batch, (line[_X] + found[k, 1]) * batch
                add_products(
                    own, first + found[k, 2], taps * channels, taps, flat, at, step, channels,
                    flat, to, step, outputs, found[k, 3] * batch,
                )  # fmt: skip
        elif opcode == _DEPTHWISE3X3:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = zero
            found = runs(3, line[_HEIGHT], line[_WIDTH])
            for c in range(channels):
                for k in range(len(found)):
                    p, q = c * pixels + found[k, 0], c * pixels + found[k, 1]
                    tap = own[9 * c + found[k, 2]]
                    for m in range(found[k, 3]):
                        for b in range(batch):
                            out[p + m, b] += tap * x[q + m, b]
        elif opcode == _NORM:
            norm_forward(
                _columns(flat, line[_X], rows, apart, batch), own, channels, flag != 0,
                _columns(flat, line[_OUT], rows, apart, batch),
                _columns(flat, line[_SCRATCH], apart, apart, batch)[0],
                _columns(flat, line[_SCRATCH] + apart, apart, apart, batch)[0],
            )  # fmt: skip
        elif opcode == _NORM_POOL:
            pooled = out[: rows // 4]
            pool_forward(x, own, channels, line[_WIDTH], pooled, kept, mean, rstd)
        elif opcode == _STEM:
            windows = outputs * (rows // 2 - 1)
            stem_forward(x, own, outputs, out[:windows], mean, rstd)
        elif opcode == _AVERAGE:
            for c in range(channels):
                for b in range(batch):
                    out[c, b] = zero
                for p in range(pixels):
                    for b in range(batch):
                        out[c, b] += x[c * pixels + p, b]
                for b in range(batch):
                    out[c, b] /= pixels
        elif opcode == _RELU:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = zero if x[m, b] < 0 else x[m, b]  # NaN passes
        elif opcode == _SIGMOID:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = flag / (1 + np.exp(-x[m, b]))
        elif opcode == _ADD:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = x[m, b] + other[m, b]
        elif opcode == _SCALE:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = x[m, b] * other[m // pixels, b]
        elif opcode == _MIX:
            for m in range(rows):
                mix = arena.dtype.type(np.tanh(own[m // pixels]))
                for b in range(batch):
                    out[m, b] = x[m, b] + mix * (other[m, b] - x[m, b])
        elif opcode == _SHOW:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = x[m, b]
        elif opcode == _BLEND:
            openness = arena[line[_SCRATCH] : line[_SCRATCH] + apart]
            blend(out, x, other, openness, mode[flag], alpha[flag])
        elif opcode == _EMBED:
            tokens = x.ravel()
            for c in range(outputs):
                vectors, to = own[c * flag : (c + 1) * flag], (line[_OUT] + c * rows) * batch
                for i in range(len(tokens)):
                    flat[to + i] = vectors[int(tokens[i])]
        elif opcode == _ATTEND:
            attend(
                attention, _columns(flat, line[_X], rows, pixels, batch), own, line[_SIZE],
                flag, batch, _columns(flat, line[_OUT], outputs * pixels, pixels, batch),
                flat[line[_SCRATCH] * batch :],
            )  # fmt: skip


@entry_kernel
def backward(
    lines: Array,
    order: Array,
    params: Array,
    mode: Array,
    alpha: Array,
    arena: Array,
    attention: bool | None,
    grads: Array,
    grad_params: Array,
) -> None:
    """Run lines backwards.

    Args:
        lines, order, params, mode, alpha, arena, attention: as :func:`forward` got and left them.
        grads: gradients with respect to features, shaped like ``arena``; those of inputs are
            added, those of outputs may be overwritten.
        grad_params: gradients with respect to ``params``, added.
    """
    batch, flat, flat_grads = arena.shape[1], arena.ravel(), grads.ravel()
    zero = arena.dtype.type(0)
    for number in order[::-1]:
        line = lines[number]
        opcode, flag = line[_OPCODE], line[_FLAG]
        channels, outputs = line[_INPUTS], line[_OUTPUTS]
        pixels = line[_HEIGHT] * line[_WIDTH]
        rows, start = channels * pixels, line[_PARAMETERS]
        x, own = arena[line[_X] : line[_X] + rows], params[start:]
        grad_x, grad_own = grads[line[_X] : line[_X] + rows], grad_params[start:]
        mean, rstd = arena[line[_SCRATCH]], arena[line[_SCRATCH] + 1]
        kept, grad_kept = arena[line[_SCRATCH] + 2 :], grads[line[_SCRATCH] + 2 :]
        apart = line[_SIZE]
        other, grad_other = arena[line[_OTHER] :], grads[line[_OTHER] :]
        grad = grads[line[_OUT] :]
        if opcode == _CONV:
            size, first = _kernel(line, own)
            taps, step = size * size, pixels * batch
            found = runs(size, line[_HEIGHT], line[_WIDTH])
            for k in range(len(found)):
                to, at = (line[_OUT] + found[k, 0]) * batch, (line[_X] + found[k, 1]) * batch
                tap, length = first + found[k, 2], found[k, 3] * batch
                add_dots(
                    grad_own, tap, taps * channels, taps, flat, at, step, channels,
                    flat_grads, to, step, outputs, length,
                )  # fmt: skip
                add_products(
                    own, tap, taps, taps * channels, flat_grads, to, step, outputs,
                    flat_grads, at, step, channels, length,
                )  # fmt: skip
            if flag:
                for o in range(outputs):
                    total, first = zero, (line[_OUT] + o * pixels) * batch
                    for i in range(first, first + pixels * batch):
                        total += flat_grads[i]
                    grad_own[outputs * channels + o] += total
        elif opcode == _DEPTHWISE3X3:
            found = runs(3, line[_HEIGHT], line[_WIDTH])
            for c in range(channels):
                for k in range(len(found)):
                    p, q = c * pixels + found[k, 0], c * pixels + found[k, 1]
                    tap, dot = own[9 * c + found[k, 2]], zero
                    for m in range(found[k, 3]):
                        for b in range(batch):
                            dot += grad[p + m, b] * x[q + m, b]
                            grad_x[q + m, b] += tap * grad[p + m, b]
                    grad_own[9 * c + found[k, 2]] += dot
        elif opcode == _NORM:
            norm_backward(
                _columns(flat_grads, line[_OUT], rows, apart, batch),
                _columns(flat, line[_X], rows, apart, batch), own, channels,
                _columns(flat, line[_SCRATCH], apart, apart, batch)[0],
                _columns(flat, line[_SCRATCH] + apart, apart, apart, batch)[0], flag != 0,
                _columns(flat_grads, line[_X], rows, apart, batch), grad_own,
            )  # fmt: skip
        elif opcode == _NORM_POOL:
            whole = grad_kept[rows // 4 : rows // 4 + rows]
            unpool(grad, kept, line[_WIDTH], whole)
            norm_backward(whole, x, own, channels, mean, rstd, False, grad_x, grad_own)
        elif opcode == _STEM:
            windows = outputs * (rows // 2 - 1)
            stem_backward(grad[:windows], x, own, outputs, mean, rstd, grad_own)
        elif opcode == _AVERAGE:
            for m in range(rows):
                for b in range(batch):
                    grad_x[m, b] += grad[m // pixels, b] / pixels
        elif opcode == _RELU:
            for m in range(rows):
                for b in range(batch):
                    if not x[m, b] <= 0:
                        grad_x[m, b] += grad[m, b]
        elif opcode == _SIGMOID:
            for m in range(rows):
                for b in range(batch):
                    share = 1 / (1 + np.exp(-x[m, b]))
                    grad_x[m, b] += grad[m, b] * flag * share * (1 - share)
        elif opcode == _ADD:
            for m in range(rows):
                for b in range(batch):
                    grad_other[m, b] += grad[m, b]
                    grad_x[m, b] += grad[m, b]
        elif opcode == _SCALE:
            for m in range(rows):
                for b in range(batch):
                    grad_other[m // pixels, b] += grad[m, b] * x[m, b]
                    grad_x[m, b] += grad[m, b] * other[m // pixels, b]
        elif opcode == _MIX:
            for m in range(rows):
                mix, dot = arena.dtype.type(np.tanh(own[m // pixels])), zero
                for b in range(batch):
                    dot += grad[m, b] * (other[m, b] - x[m, b])
                    grad_other[m, b] += mix * grad[m, b]
                    grad_x[m, b] += (1 - mix) * grad[m, b]
                grad_own[m // pixels] += dot * (1 - mix * mix)
        elif opcode == _SHOW:
            if mode[flag] != _INCUBATE:
                for m in range(rows):
                    for b in range(batch):
                        grad_x[m, b] += grad[m, b]
        elif opcode == _BLEND:
            last = line[_SCRATCH] + apart
            blend_backward(
                grad, grad_other, grads[line[_SCRATCH] : last], x, other,
                arena[line[_SCRATCH] : last], mode[flag], alpha[flag],
            )  # fmt: skip
        elif opcode == _EMBED:
            tokens = x.ravel()
            for c in range(outputs):
                vectors, at = grad_own[c * flag : (c + 1) * flag], (line[_OUT] + c * rows) * batch
                for i in range(len(tokens)):
                    vectors[int(tokens[i])] += flat_grads[at + i]
        elif opcode == _ATTEND:
            scratch = line[_SCRATCH] * batch
            attend_backward(
                attention, _columns(flat_grads, line[_OUT], outputs * pixels, pixels, batch),
                _columns(flat, line[_X], rows, pixels, batch), line[_SIZE], flag, batch,
                flat[scratch:], flat_grads[scratch:],
                _columns(flat_grads, line[_X], rows, pixels, batch), grad_own,
            )  # fmt: skip
