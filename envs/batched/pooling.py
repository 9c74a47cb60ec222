"""Pooling, and strides, of one small network's features on CPUs, compiled by Numba.

Features are ``[C·H·W, B]``, B examples innermost. Gradients are added to what is there.
"""

from __future__ import annotations

from envs.batched.instructions import Field, Opcode
from envs.batched.products import Array, kernel

_OPCODE, _CHANNELS, _HEIGHT, _WIDTH = (
    int(field) for field in (Field.OPCODE, Field.INPUTS, Field.HEIGHT, Field.WIDTH)
)
_SIZE, _STRIDE, _PADDING = int(Field.SIZE), int(Field.STRIDE), int(Field.PADDING)
_OUT_HEIGHT, _OUT_WIDTH, _FLAT = int(Field.OUT_HEIGHT), int(Field.OUT_WIDTH), int(Field.FLAT)
_SPLIT, _MAX_POOL = int(Opcode.SPLIT), int(Opcode.MAX_POOL)


@kernel
def pool(
    wanted: bool | None, line: Array, x: Array, out: Array, chosen: Array, backward: bool
) -> None:
    """Run a line that is SPLIT, MAX_POOL or AVERAGE_POOL.

    Args:
        wanted: None where there is none, so that it isn't compiled.
        line: the instruction.
        x: features, all that it reads.
        out: features from the first that it writes on.
        chosen: from the first of its scratch on.
        backward: ``x`` and ``out`` are gradients, and those of ``out`` are added to ``x``.
    """
    if wanted is not None:
        if line[_OPCODE] == _SPLIT:
            split_phases(line, x, out, backward)
        elif line[_OPCODE] != _MAX_POOL:
            average_pool(line, x, out, backward)
        elif backward:
            max_pool_backward(line, x, out, chosen)
        else:
            max_pool(line, x, out, chosen)


@kernel
def _windows(line: Array) -> int:
    """Number of windows, over all channels."""
    return line[_CHANNELS] * line[_OUT_HEIGHT] * line[_OUT_WIDTH]


@kernel
def _taps(line: Array) -> int:
    """Pixels of a window."""
    return line[_SIZE] if line[_FLAT] else line[_SIZE] * line[_SIZE]


@kernel
def _pixel(line: Array, window: int, tap: int) -> int:
    """Row of the features that a tap of a window sees, −1 in the padding."""
    size, stride, padding = line[_SIZE], line[_STRIDE], line[_PADDING]
    height, width, tall, wide = line[_HEIGHT], line[_WIDTH], line[_OUT_HEIGHT], line[_OUT_WIDTH]
    above = 0 if line[_FLAT] else padding
    y = window // wide % tall * stride + tap // size - above
    z = window % wide * stride + tap % size - padding
    inside = 0 <= y < height and 0 <= z < width
    return (window // (tall * wide) * height + y) * width + z if inside else -1


@kernel
def max_pool(line: Array, x: Array, out: Array, chosen: Array) -> None:
    """The largest number of each window; ``chosen``, shaped like ``out``, says which it was."""
    batch = x.shape[1]
    for m in range(_windows(line)):
        first = True
        for tap in range(_taps(line)):
            pixel = _pixel(line, m, tap)
            if pixel >= 0:
                seen = x[pixel]
                for b in range(batch):
                    # NaN is the largest, as in PyTorch.
                    larger = first or seen[b] > out[m, b] or seen[b] != seen[b]
                    out[m, b] = seen[b] if larger else out[m, b]
                    chosen[m, b] = tap if larger else chosen[m, b]
                first = False


@kernel
def max_pool_backward(line: Array, grad_x: Array, grad: Array, chosen: Array) -> None:
    """Gradients of :func:`max_pool`."""
    for m in range(_windows(line)):
        for b in range(grad_x.shape[1]):
            grad_x[_pixel(line, m, int(chosen[m, b])), b] += grad[m, b]


@kernel
def average_pool(line: Array, x: Array, out: Array, backward: bool) -> None:
    """The mean of each window, zeros of the padding included; see :func:`pool`."""
    batch, taps = x.shape[1], _taps(line)
    share = x.dtype.type(1 / taps)
    for m in range(_windows(line)):
        if not backward:
            for b in range(batch):
                out[m, b] = 0
        for tap in range(taps):
            pixel = _pixel(line, m, tap)
            if pixel >= 0:
                seen = x[pixel]
                for b in range(batch):
                    if backward:
                        seen[b] += share * out[m, b]
                    else:
                        out[m, b] += share * seen[b]


@kernel
def split_phases(line: Array, x: Array, out: Array, backward: bool) -> None:
    """Sort pixels by whether their row and column are even: ``[C, H, W, B]`` to
    ``[C, 2, 2, ⌈H / 2⌉, ⌈W / 2⌉, B]``, zeros where there is no pixel; see :func:`pool`.

    A convolution of stride 2 is one of stride 1 of these (:func:`envs.batched.products.runs`).
    """
    channels, height, width = line[_CHANNELS], line[_HEIGHT], line[_WIDTH]
    batch, tall, wide = x.shape[1], (height + 1) // 2, (width + 1) // 2
    for m in range(channels * 4 * tall * wide):
        c, phase = m // (4 * tall * wide), m // (tall * wide) % 4
        y, z = m // wide % tall * 2 + phase // 2, m % wide * 2 + phase % 2
        inside = y < height and z < width
        pixel = (c * height + y) * width + z
        for b in range(batch):
            if not backward:
                out[m, b] = x[pixel, b] if inside else x.dtype.type(0)
            elif inside:
                x[pixel, b] += out[m, b]
