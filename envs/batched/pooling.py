"""Pooling, and strides, of one small network's features on CPUs, compiled by Numba.

Features are ``[C·H·W, B]``, B examples innermost. Gradients are added to what is there.
"""

from __future__ import annotations

from envs.batched.instructions import Field, Opcode
from envs.batched.products import Array, kernel

_OPCODE, _CHANNELS, _HEIGHT, _WIDTH, _SIZE, _STRIDE, _PADDING, _OUT_HEIGHT, _OUT_WIDTH = (
    int(Field[name])
    for name in (
        "OPCODE", "INPUTS", "HEIGHT", "WIDTH", "SIZE", "STRIDE", "PADDING", "OUT_HEIGHT",
        "OUT_WIDTH",
    )
)  # fmt: skip
_SPLIT, _MAX_POOL = int(Opcode.SPLIT), int(Opcode.MAX_POOL)


@kernel
def pool(wanted: bool | None, line: Array, x: Array, out: Array, chosen: Array) -> None:
    """Run a line that is SPLIT, MAX_POOL or AVERAGE_POOL.

    Args:
        wanted: None where there is none, so that it isn't compiled.
        line: the instruction.
        x: features, all that it reads.
        out: features from the first that it writes on.
        chosen: from the first of its scratch on.
    """
    if wanted is not None:
        channels, height, width = line[_CHANNELS], line[_HEIGHT], line[_WIDTH]
        size, stride, padding = line[_SIZE], line[_STRIDE], line[_PADDING]
        tall, wide = line[_OUT_HEIGHT], line[_OUT_WIDTH]
        if line[_OPCODE] == _SPLIT:
            split_phases(x, channels, height, width, out, False)
        elif line[_OPCODE] == _MAX_POOL:
            max_pool(x, channels, height, width, size, stride, padding, out, tall, wide, chosen)
        else:
            average_pool(x, channels, height, width, size, stride, padding, out, tall, wide, False)


@kernel
def pool_backward(
    wanted: bool | None, line: Array, grad: Array, chosen: Array, grad_x: Array
) -> None:
    """Gradients of :func:`pool`, added to ``grad_x``."""
    if wanted is not None:
        channels, height, width = line[_CHANNELS], line[_HEIGHT], line[_WIDTH]
        size, stride, padding = line[_SIZE], line[_STRIDE], line[_PADDING]
        tall, wide = line[_OUT_HEIGHT], line[_OUT_WIDTH]
        if line[_OPCODE] == _SPLIT:
            split_phases(grad_x, channels, height, width, grad, True)
        elif line[_OPCODE] == _MAX_POOL:
            max_pool_backward(
                grad, channels, height, width, size, stride, padding, tall, wide, chosen, grad_x
            )
        else:
            average_pool(
                grad_x, channels, height, width, size, stride, padding, grad, tall, wide, True
            )


@kernel
def max_pool(
    x: Array,
    channels: int,
    height: int,
    width: int,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    out_height: int,
    out_width: int,
    chosen: Array,
) -> None:
    """The largest number of each window; ``chosen``, shaped like ``out``, says which it was."""
    batch = x.shape[1]
    for m in range(channels * out_height * out_width):
        c, i, j = m // (out_height * out_width), m // out_width % out_height, m % out_width
        first = True
        for tap in range(size * size):
            y, z = i * stride + tap // size - padding, j * stride + tap % size - padding
            if 0 <= y < height and 0 <= z < width:
                seen = x[(c * height + y) * width + z]
                for b in range(batch):
                    # NaN is the largest, as in PyTorch.
                    larger = first or seen[b] > out[m, b] or seen[b] != seen[b]
                    out[m, b] = seen[b] if larger else out[m, b]
                    chosen[m, b] = tap if larger else chosen[m, b]
                first = False


@kernel
def max_pool_backward(
    grad: Array,
    channels: int,
    height: int,
    width: int,
    size: int,
    stride: int,
    padding: int,
    out_height: int,
    out_width: int,
    chosen: Array,
    grad_x: Array,
) -> None:
    """Gradients of :func:`max_pool`."""
    batch = grad.shape[1]
    for m in range(channels * out_height * out_width):
        c, i, j = m // (out_height * out_width), m // out_width % out_height, m % out_width
        for b in range(batch):
            tap = int(chosen[m, b])
            y, z = i * stride + tap // size - padding, j * stride + tap % size - padding
            grad_x[(c * height + y) * width + z, b] += grad[m, b]


@kernel
def average_pool(
    x: Array,
    channels: int,
    height: int,
    width: int,
    size: int,
    stride: int,
    padding: int,
    out: Array,
    out_height: int,
    out_width: int,
    backward: bool,
) -> None:
    """The mean of each window, zeros of the padding included.

    ``backward`` adds gradients the other way: of what ``out`` holds to ``x``.
    """
    batch, share = x.shape[1], x.dtype.type(1 / (size * size))
    for m in range(channels * out_height * out_width):
        c, i, j = m // (out_height * out_width), m // out_width % out_height, m % out_width
        if not backward:
            for b in range(batch):
                out[m, b] = 0
        for tap in range(size * size):
            y, z = i * stride + tap // size - padding, j * stride + tap % size - padding
            if 0 <= y < height and 0 <= z < width:
                seen = x[(c * height + y) * width + z]
                for b in range(batch):
                    if backward:
                        seen[b] += share * out[m, b]
                    else:
                        out[m, b] += share * seen[b]


@kernel
def split_phases(
    x: Array, channels: int, height: int, width: int, out: Array, backward: bool
) -> None:
    """Sort pixels by whether their row and column are even: ``[C, H, W, B]`` to
    ``[C, 2, 2, ⌈H / 2⌉, ⌈W / 2⌉, B]``, zeros where there is no pixel.

    A convolution of stride 2 is one of stride 1 of these (:func:`envs.batched.products.runs`).
    ``backward`` adds gradients the other way: of what ``out`` holds to ``x``.
    """
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
