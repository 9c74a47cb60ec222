"""The compiled interpreter: goes through lines of instructions, forward and backward.

Works on one network at a time, on CPUs, without gradients by autograd. See
:mod:`envs.batched.products` and :mod:`envs.batched.norms` for the layers with much work and
:mod:`envs.batched.instructions` for the lines.

A seed's steps are lines too: SHOW gives it a copy of the features at its slot, BLEND changes them
in place by what it gives, as its :class:`~envs.batched.modes.Mode` says.
"""

from __future__ import annotations

import numpy as np

from envs.batched.activations import activate, activate_backward
from envs.batched.attention import attend, attend_backward
from envs.batched.batch_norm import batch_norm, batch_norm_backward
from envs.batched.blending import blend, blend_backward
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
from envs.batched.pooling import pool
from envs.batched.products import Array, add_dots, add_products, entry_kernel, kernel, runs
from envs.batched.rms_norm import rms_norm, rms_norm_backward
from envs.batched.weighing import weigh, weigh_backward

_OPCODE, _X, _OTHER, _OUT, _SCRATCH, _PARAMETERS = map(int, list(Field)[:6])
_INPUTS, _OUTPUTS, _HEIGHT, _WIDTH, _SIZE, _FLAG = map(int, list(Field)[6:12])
_STRIDE, _PADDING, _OUT_HEIGHT, _OUT_WIDTH, _REAL, _SECOND, _FLAT = map(int, list(Field)[12:])
_CONV, _DEPTHWISE, _NORM, _NORM_POOL, _STEM, _AVERAGE = map(int, list(Opcode)[:6])
_ACTIVATE, _ADD, _SCALE, _MIX, _SHOW, _BLEND, _EMBED, _ATTEND = map(int, list(Opcode)[6:14])
_ALTER, _BATCH_NORM = int(Opcode.ALTER), int(Opcode.BATCH_NORM)
_WEIGH, _RMS_NORM = int(Opcode.WEIGH), int(Opcode.RMS_NORM)
_INCUBATE = int(Mode.INCUBATE)


@kernel
def _kernel(line: Array, params: Array) -> tuple[int, int, int, int]:
    """Size of a convolution's kernel, its taps, its padding and its first parameter."""
    size = line[_SIZE]
    if size != DRAWN:
        return size, size if line[_FLAT] else size * size, line[_PADDING], 0
    pointwise = line[_INPUTS] * line[_OUTPUTS]
    return (3, 9, 1, 1 + pointwise) if params[0] > 0 else (1, 1, 0, 1)


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
    further: bool | None,
    training: bool,
) -> None:
    """Run lines.

    Args:
        lines: int64 ``[lines, fields]``.
        order: int64, numbers of the lines that run.
        params: of the network, flat; what it keeps beside them changes in training.
        mode: int64 ``[S]``, a :class:`~envs.batched.modes.Mode` for each slot.
        alpha: floats ``[S]``.
        arena: ``[places, B]``, features of B examples, read and written.
        attention, further: see :class:`envs.batched.compiled.Network`.
        training: rather than evaluation.
    """
    batch, flat = arena.shape[1], arena.ravel()
    zero, reals = arena.dtype.type(0), lines.view(np.float64)
    for number in order:
        line, real, second = lines[number], reals[number, _REAL], reals[number, _SECOND]
        opcode, flag = line[_OPCODE], line[_FLAG]
        channels, outputs = line[_INPUTS], line[_OUTPUTS]
        pixels, stride = line[_HEIGHT] * line[_WIDTH], line[_STRIDE]
        to = line[_OUT_HEIGHT], line[_OUT_WIDTH]
        made = to[0] * to[1]
        rows, start = channels * pixels, line[_PARAMETERS]
        x, own = arena[line[_X] : line[_X] + rows], params[start:]
        mean, rstd = arena[line[_SCRATCH]], arena[line[_SCRATCH] + 1]  # where a layer has them
        kept, apart = arena[line[_SCRATCH] + 2 :], line[_SIZE]
        other, out = arena[line[_OTHER] :], arena[line[_OUT] :]
        if opcode == _CONV:
            size, taps, padding, first = _kernel(line, own)
            seen = pixels * stride * stride * batch
            for m in range(outputs * made):
                value = own[outputs * channels * taps + m // made] if flag else zero
                for b in range(batch):
                    out[m, b] = value
            found = runs(size, stride, padding, line[_FLAT] != 0, line[_HEIGHT], line[_WIDTH], to)
            for k in range(len(found)):
                goal, at = (line[_OUT] + found[k, 0]) * batch, (line[_X] + found[k, 1]) * batch
                add_products(
                    own, first + found[k, 2], taps * channels, taps, flat, at, seen, channels,
                    flat, goal, made * batch, outputs, found[k, 3] * batch,
                )  # fmt: skip
        elif opcode == _DEPTHWISE:
            size, taps, padding, _ = _kernel(line, own)
            seen = pixels * stride * stride
            for m in range(channels * made):
                value = own[channels * taps + m // made] if flag else zero
                for b in range(batch):
                    out[m, b] = value
            found = runs(size, stride, padding, line[_FLAT] != 0, line[_HEIGHT], line[_WIDTH], to)
            for c in range(channels):
                for k in range(len(found)):
                    p, q = c * made + found[k, 0], line[_X] + c * seen + found[k, 1]
                    tap = own[taps * c + found[k, 2]]
                    for m in range(found[k, 3]):
                        for b in range(batch):
                            out[p + m, b] += tap * arena[q + m, b]
        elif opcode == _NORM:
            norm_forward(
                _columns(flat, line[_X], rows, apart, batch), own, channels, stride, flag != 0,
                real, _columns(flat, line[_OUT], rows, apart, batch),
                _columns(flat, line[_SCRATCH], apart, apart, batch)[0],
                _columns(flat, line[_SCRATCH] + apart, apart, apart, batch)[0],
            )  # fmt: skip
        elif opcode == _NORM_POOL:
            pooled = out[: rows // 4]
            pool_forward(x, own, channels, line[_WIDTH], real, pooled, kept, mean, rstd)
        elif opcode == _STEM:
            windows = outputs * (rows // 2 - 1)
            stem_forward(x, own, outputs, real, out[:windows], mean, rstd)
        elif opcode == _AVERAGE:
            for c in range(channels):
                for b in range(batch):
                    out[c, b] = zero
                for p in range(pixels):
                    for b in range(batch):
                        out[c, b] += x[c * pixels + p, b]
                for b in range(batch):
                    out[c, b] /= pixels
        elif opcode == _ACTIVATE:
            activate(further, x, out, apart)
        elif opcode == _ADD:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = x[m, b] + flag * other[m, b]
        elif opcode == _SCALE:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = x[m, b] * other[m // apart, b]
        elif opcode == _MIX:
            for m in range(rows):
                mix = arena.dtype.type(np.tanh(own[m // pixels]))
                for b in range(batch):
                    out[m, b] = x[m, b] + mix * (other[m, b] - x[m, b])
        elif opcode == _ALTER:
            factor, term = arena.dtype.type(real), arena.dtype.type(second)
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = factor * x[m, b] + term
        elif opcode == _SHOW:
            for m in range(rows):
                for b in range(batch):
                    out[m, b] = x[m, b]
        elif opcode == _BLEND:
            openness = arena[line[_SCRATCH] : line[_SCRATCH] + apart]
            blend(out, x, other, openness, mode[flag], alpha[flag])
        elif opcode == _EMBED:
            tokens = x.ravel()
            by_channel, by_token = (flag, 1) if apart else (1, outputs)
            for c in range(outputs):
                vectors, to = own[c * by_channel :], (line[_OUT] + c * rows) * batch
                for i in range(len(tokens)):
                    flat[to + i] = vectors[int(tokens[i]) * by_token]
        elif opcode == _ATTEND:
            attend(
                attention, _columns(flat, line[_X], rows, pixels, batch), own, line[_SIZE],
                flag, stride != 0, line[_PADDING] != 0, batch,
                _columns(flat, line[_OUT], outputs * pixels, pixels, batch),
                flat[line[_SCRATCH] * batch :],
            )  # fmt: skip
        elif opcode == _BATCH_NORM:
            batch_norm(
                further, line, real, second, params, x, out, arena[line[_SCRATCH] :], training
            )
        elif opcode == _WEIGH:
            weigh(further, line, own, x, out)
        elif opcode == _RMS_NORM:
            rms_norm(
                further, _columns(flat, line[_X], rows, pixels, batch), own, real,
                _columns(flat, line[_OUT], rows, pixels, batch),
                _columns(flat, line[_SCRATCH], pixels, pixels, batch)[0],
            )  # fmt: skip
        else:
            pool(further, line, x, out, arena[line[_SCRATCH] :], False)


@entry_kernel
def backward(
    lines: Array,
    order: Array,
    params: Array,
    mode: Array,
    alpha: Array,
    arena: Array,
    attention: bool | None,
    further: bool | None,
    grads: Array,
    grad_params: Array,
) -> None:
    """Run lines backwards.

    Args:
        lines, order, params, mode, alpha, arena, attention, further: as :func:`forward` got them,
            and left them.
        grads: gradients with respect to features, shaped like ``arena``; those of inputs are
            added, those of outputs may be overwritten.
        grad_params: gradients with respect to ``params``, added.
    """
    batch, flat, flat_grads = arena.shape[1], arena.ravel(), grads.ravel()
    zero, reals = arena.dtype.type(0), lines.view(np.float64)
    for number in order[::-1]:
        line, real = lines[number], reals[number, _REAL]
        opcode, flag = line[_OPCODE], line[_FLAG]
        channels, outputs = line[_INPUTS], line[_OUTPUTS]
        pixels, stride = line[_HEIGHT] * line[_WIDTH], line[_STRIDE]
        to = line[_OUT_HEIGHT], line[_OUT_WIDTH]
        made = to[0] * to[1]
        rows, start = channels * pixels, line[_PARAMETERS]
        x, own = arena[line[_X] : line[_X] + rows], params[start:]
        grad_x, grad_own = grads[line[_X] : line[_X] + rows], grad_params[start:]
        mean, rstd = arena[line[_SCRATCH]], arena[line[_SCRATCH] + 1]
        kept, grad_kept = arena[line[_SCRATCH] + 2 :], grads[line[_SCRATCH] + 2 :]
        apart = line[_SIZE]
        other, grad_other = arena[line[_OTHER] :], grads[line[_OTHER] :]
        grad = grads[line[_OUT] :]
        if opcode == _CONV:
            size, taps, padding, first = _kernel(line, own)
            seen, step = pixels * stride * stride * batch, made * batch
            found = runs(size, stride, padding, line[_FLAT] != 0, line[_HEIGHT], line[_WIDTH], to)
            for k in range(len(found)):
                goal, at = (line[_OUT] + found[k, 0]) * batch, (line[_X] + found[k, 1]) * batch
                tap, length = first + found[k, 2], found[k, 3] * batch
                add_dots(
                    grad_own, tap, taps * channels, taps, flat, at, seen, channels,
                    flat_grads, goal, step, outputs, length,
                )  # fmt: skip
                add_products(
                    own, tap, taps, taps * channels, flat_grads, goal, step, outputs,
                    flat_grads, at, seen, channels, length,
                )  # fmt: skip
            if flag:
                for o in range(outputs):
                    total, first = zero, (line[_OUT] + o * made) * batch
                    for i in range(first, first + step):
                        total += flat_grads[i]
                    grad_own[outputs * channels * taps + o] += total
        elif opcode == _DEPTHWISE:
            size, taps, padding, _ = _kernel(line, own)
            seen = pixels * stride * stride
            found = runs(size, stride, padding, line[_FLAT] != 0, line[_HEIGHT], line[_WIDTH], to)
            for c in range(channels):
                for k in range(len(found)):
                    p, q = c * made + found[k, 0], line[_X] + c * seen + found[k, 1]
                    tap, dot = own[taps * c + found[k, 2]], zero
                    for m in range(found[k, 3]):
                        for b in range(batch):
                            dot += grad[p + m, b] * arena[q + m, b]
                            grads[q + m, b] += tap * grad[p + m, b]
                    grad_own[taps * c + found[k, 2]] += dot
                if flag:
                    for m in range(c * made, (c + 1) * made):
                        for b in range(batch):
                            grad_own[channels * taps + c] += grad[m, b]
        elif opcode == _NORM:
            norm_backward(
                _columns(flat_grads, line[_OUT], rows, apart, batch),
                _columns(flat, line[_X], rows, apart, batch), own, channels, stride,
                _columns(flat, line[_SCRATCH], apart, apart, batch)[0],
                _columns(flat, line[_SCRATCH] + apart, apart, apart, batch)[0], flag != 0,
                _columns(flat_grads, line[_X], rows, apart, batch), grad_own,
            )  # fmt: skip
        elif opcode == _NORM_POOL:
            whole = grad_kept[rows // 4 : rows // 4 + rows]
            unpool(grad, kept, line[_WIDTH], whole)
            norm_backward(whole, x, own, channels, channels, mean, rstd, False, grad_x, grad_own)
        elif opcode == _STEM:
            windows = outputs * (rows // 2 - 1)
            stem_backward(grad[:windows], x, own, outputs, mean, rstd, grad_own)
        elif opcode == _AVERAGE:
            for m in range(rows):
                for b in range(batch):
                    grad_x[m, b] += grad[m // pixels, b] / pixels
        elif opcode == _ACTIVATE:
            activate_backward(further, grad, x, apart, grad_x)
        elif opcode == _ALTER:
            factor = arena.dtype.type(real)
            for m in range(rows):
                for b in range(batch):
                    grad_x[m, b] += factor * grad[m, b]
        elif opcode == _ADD:
            for m in range(rows):
                for b in range(batch):
                    grad_other[m, b] += flag * grad[m, b]
                    grad_x[m, b] += grad[m, b]
        elif opcode == _SCALE:
            for m in range(rows):
                for b in range(batch):
                    grad_other[m // apart, b] += grad[m, b] * x[m, b]
                    grad_x[m, b] += grad[m, b] * other[m // apart, b]
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
            by_channel, by_token = (flag, 1) if apart else (1, outputs)
            for c in range(outputs):
                vectors, at = grad_own[c * by_channel :], (line[_OUT] + c * rows) * batch
                for i in range(len(tokens)):
                    vectors[int(tokens[i]) * by_token] += flat_grads[at + i]
        elif opcode == _ATTEND:
            scratch = line[_SCRATCH] * batch
            attend_backward(
                attention, _columns(flat_grads, line[_OUT], outputs * pixels, pixels, batch),
                _columns(flat, line[_X], rows, pixels, batch), line[_SIZE], flag,
                line[_STRIDE] != 0, line[_PADDING] != 0, batch,
                flat[scratch:], flat_grads[scratch:],
                _columns(flat_grads, line[_X], rows, pixels, batch), grad_own,
            )  # fmt: skip
        elif opcode == _BATCH_NORM:
            kept = arena[line[_SCRATCH] :]
            batch_norm_backward(further, line, params, x, kept, grad, grad_x, grad_own)
        elif opcode == _WEIGH:
            weigh_backward(further, line, own, x, grad, grad_x, grad_own)
        elif opcode == _RMS_NORM:
            rms_norm_backward(
                further, _columns(flat_grads, line[_OUT], rows, pixels, batch),
                _columns(flat, line[_X], rows, pixels, batch), own,
                _columns(flat, line[_SCRATCH], pixels, pixels, batch)[0],
                _columns(flat_grads, line[_X], rows, pixels, batch), grad_own,
            )  # fmt: skip
        else:
            pool(further, line, grad_x, grad, arena[line[_SCRATCH] :], True)
