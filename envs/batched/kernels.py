"""Fused layers for CPUs, compiled by Numba at first use and cached on disk.

In PyTorch's own operations a group normalisation reads and writes its features about ten times;
memory traffic is what small networks in large batches cost. Here each is two or three passes over
a block that stays in the cache. Arrays are C-contiguous, ``[n, C, H, W, B]`` for features,
``[n, C]`` for scale and shift, ``[n, B]`` for statistics; the layers that
call them make sure of it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from envs.batched.parameters import NORM_EPSILON

# Sums may be reordered, so that they are vectorised; NaN and infinity keep their meaning.
_kernel = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)

Array = Any
"""A NumPy array, in types that Numba infers."""


@_kernel
def _statistics(x: Array, mean: Array, rstd: Array) -> None:
    """Mean and 1/σ over C, H, W of one network's features, into ``[B]``."""
    channels, height, width, batch = x.shape
    count = channels * height * width
    mean[:] = 0
    rstd[:] = 0
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                for b in range(batch):
                    mean[b] += x[c, i, j, b]
    for b in range(batch):
        mean[b] /= count
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                for b in range(batch):
                    centred = x[c, i, j, b] - mean[b]
                    rstd[b] += centred * centred
    for b in range(batch):
        rstd[b] = 1 / np.sqrt(rstd[b] / count + x.dtype.type(NORM_EPSILON))


@_kernel
def norm_forward(
    x: Array,
    scale: Array,
    shift: Array,
    residual: Array,
    relu: bool,
    out: Array,
    mean: Array,
    rstd: Array,
) -> None:
    """``out`` is the norm of ``x``, ReLU where asked for, plus ``residual`` unless None."""
    n, channels, height, width, batch = x.shape
    for k in range(n):
        m, r = mean[k], rstd[k]
        _statistics(x[k], m, r)
        for c in range(channels):
            gain, offset = scale[k, c], shift[k, c]
            for i in range(height):
                for j in range(width):
                    for b in range(batch):
                        value = (x[k, c, i, j, b] - m[b]) * r[b] * gain + offset
                        if relu and value < 0:  # NaN passes
                            value = x.dtype.type(0)
                        if residual is not None:
                            value += residual[k, c, i, j, b]
                        out[k, c, i, j, b] = value


@_kernel
def norm_backward(
    grad: Array,
    x: Array,
    scale: Array,
    shift: Array,
    mean: Array,
    rstd: Array,
    relu: bool,
    grad_x: Array,
    grad_scale: Array,
    grad_shift: Array,
) -> None:
    """Gradients of :func:`norm_forward`; ``grad_x`` may be None.

    dx = rstd · (scale·g − mean(scale·g) − x̂ · mean(scale·g·x̂)), means over C, H, W.
    """
    n, channels, height, width, batch = x.shape
    count = channels * height * width
    zero = x.dtype.type(0)
    mean_sum, mean_dot = np.empty(batch, x.dtype), np.empty(batch, x.dtype)
    for k in range(n):
        m, r = mean[k], rstd[k]
        mean_sum[:] = 0
        mean_dot[:] = 0
        for c in range(channels):
            gain, offset = scale[k, c], shift[k, c]
            total, dot = zero, zero
            for i in range(height):
                for j in range(width):
                    for b in range(batch):
                        normed = (x[k, c, i, j, b] - m[b]) * r[b]
                        g = grad[k, c, i, j, b]
                        if relu and normed * gain + offset <= 0:
                            g = zero
                        total += g
                        dot += g * normed
                        mean_sum[b] += gain * g
                        mean_dot[b] += gain * g * normed
            grad_shift[k, c] = total
            grad_scale[k, c] = dot
        if grad_x is not None:
            for b in range(batch):
                mean_sum[b] /= count
                mean_dot[b] /= count
            for c in range(channels):
                gain, offset = scale[k, c], shift[k, c]
                for i in range(height):
                    for j in range(width):
                        for b in range(batch):
                            normed = (x[k, c, i, j, b] - m[b]) * r[b]
                            g = grad[k, c, i, j, b]
                            if relu and normed * gain + offset <= 0:
                                g = zero
                            grad_x[k, c, i, j, b] = r[b] * (
                                gain * g - mean_sum[b] - normed * mean_dot[b]
                            )


@_kernel
def norm_pool_forward(
    x: Array, scale: Array, shift: Array, out: Array, chosen: Array, mean: Array, rstd: Array
) -> None:
    """ReLU of 2×2 max pooling of the norm; ``chosen`` says which of the four pixels it took.

    4 stands for none of them: ReLU was 0.
    """
    n, channels, height, width, batch = out.shape
    for k in range(n):
        m, r = mean[k], rstd[k]
        _statistics(x[k], m, r)
        for c in range(channels):
            gain, offset = scale[k, c], shift[k, c]
            for i in range(height):
                for j in range(width):
                    for b in range(batch):
                        best = (x[k, c, 2 * i, 2 * j, b] - m[b]) * r[b] * gain + offset
                        index = np.uint8(0)
                        for other in range(1, 4):  # the first of equal pixels, as in torch
                            pixel = x[k, c, 2 * i + other // 2, 2 * j + other % 2, b]
                            value = (pixel - m[b]) * r[b] * gain + offset
                            if value > best:
                                best = value
                                index = np.uint8(other)
                        if best <= 0:
                            best = x.dtype.type(0)
                            index = np.uint8(4)
                        out[k, c, i, j, b] = best
                        chosen[k, c, i, j, b] = index


@_kernel
def unpool(grad: Array, chosen: Array, out: Array) -> None:
    """``grad`` of the pooled pixels, at those that :func:`norm_pool_forward` took, else 0."""
    n, channels, height, width, batch = out.shape
    for k in range(n):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    pixel = np.uint8(2 * (i % 2) + j % 2)
                    for b in range(batch):
                        taken = chosen[k, c, i // 2, j // 2, b] == pixel
                        g = grad[k, c, i // 2, j // 2, b]
                        out[k, c, i, j, b] = g if taken else grad.dtype.type(0)


@_kernel
def _taps(height: int, width: int) -> Array:
    """Output pixel, input pixel and tap of every product of a 3×3 convolution, padding 1."""
    taps = np.empty((9 * height * width, 3), np.uintp)
    count = 0
    for p in range(height * width):
        for q in range(height * width):
            down, right = q // width - p // width, q % width - p % width
            if abs(down) <= 1 and abs(right) <= 1:
                taps[count, 0], taps[count, 1] = p, q
                taps[count, 2] = 3 * (down + 1) + right + 1
                count += 1
    return taps[:count]


@_kernel
def dense_matrix(kernel: Array, height: int, width: int, matrix: Array) -> None:
    """A 3×3 convolution as a matrix ``[n, C_out, H·W, C_in, H·W]``, mostly zeros.

    The kernel is ``[n, C_out, C_in, 9]``.
    """
    n, out_channels, _, in_channels, _ = matrix.shape
    taps = _taps(height, width)
    matrix[:] = 0
    for k in range(n):
        for o in range(out_channels):
            for c in range(in_channels):
                for t in range(len(taps)):
                    matrix[k, o, taps[t, 0], c, taps[t, 1]] = kernel[k, o, c, taps[t, 2]]


@_kernel
def dense_matrix_backward(grad: Array, height: int, width: int, grad_kernel: Array) -> None:
    """Gradient of :func:`dense_matrix`."""
    n, out_channels, _, in_channels, _ = grad.shape
    taps = _taps(height, width)
    grad_kernel[:] = 0
    for k in range(n):
        for o in range(out_channels):
            for c in range(in_channels):
                for t in range(len(taps)):
                    grad_kernel[k, o, c, taps[t, 2]] += grad[k, o, taps[t, 0], c, taps[t, 1]]


@_kernel
def depthwise_forward(x: Array, kernel: Array, out: Array) -> None:
    """3×3 convolution of every channel alone, zero padding 1; kernel ``[n, C, 3, 3]``."""
    n, channels, height, width, batch = x.shape
    out[:] = 0
    for k in range(n):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    for di in range(max(0, 1 - i), min(3, height + 1 - i)):
                        for dj in range(max(0, 1 - j), min(3, width + 1 - j)):
                            tap = kernel[k, c, di, dj]
                            for b in range(batch):
                                out[k, c, i, j, b] += tap * x[k, c, i + di - 1, j + dj - 1, b]


@_kernel
def depthwise_backward(
    grad: Array, x: Array, kernel: Array, grad_x: Array, grad_kernel: Array
) -> None:
    """Gradients of :func:`depthwise_forward`; ``grad_x`` may be None."""
    n, channels, height, width, batch = x.shape
    grad_kernel[:] = 0
    if grad_x is not None:
        grad_x[:] = 0
    for k in range(n):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    for di in range(max(0, 1 - i), min(3, height + 1 - i)):
                        for dj in range(max(0, 1 - j), min(3, width + 1 - j)):
                            u, v = i + di - 1, j + dj - 1
                            tap = kernel[k, c, di, dj]
                            total = x.dtype.type(0)
                            for b in range(batch):
                                total += grad[k, c, i, j, b] * x[k, c, u, v, b]
                            grad_kernel[k, c, di, dj] += total
                            if grad_x is not None:
                                for b in range(batch):
                                    grad_x[k, c, u, v, b] += tap * grad[k, c, i, j, b]


@_kernel
def stem_forward(
    x: Array, kernel: Array, scale: Array, shift: Array, out: Array, mean: Array, rstd: Array
) -> None:
    """1×1 convolution of one channel, norm, 2×2 max pooling and ReLU, in closed form.

    ``x`` is ``[n or 1, 2·P + 2, B]``: largest and smallest pixel of the P windows, then mean and
    variance of the image; kernel ``[n, C]``; ``out`` is ``[n, C, P, B]``.

    Channel c of the convolution is k_c · pixel: its statistics follow from the image's, and
    norm, pooling and ReLU are monotonic in the pixel. Kernel and image are independent, so that
    the variance is mean(k²)·var + var(k)·mean², both terms ≥ 0.
    """
    n, channels, windows, batch = out.shape
    for k in range(n):
        image = x[k if len(x) > 1 else 0]
        average, variance = image[2 * windows], image[2 * windows + 1]
        m, r = mean[k], rstd[k]
        kernel_mean = kernel[k].mean()
        kernel_square = np.square(kernel[k]).mean()
        kernel_variance = np.square(kernel[k] - kernel_mean).mean()
        for b in range(batch):
            m[b] = kernel_mean * average[b]
            spread = kernel_square * variance[b] + kernel_variance * average[b] * average[b]
            r[b] = 1 / np.sqrt(spread + x.dtype.type(NORM_EPSILON))
        for c in range(channels):
            tap, gain, offset = kernel[k, c], scale[k, c], shift[k, c]
            start = 0 if tap * gain >= 0 else windows
            for p in range(windows):
                for b in range(batch):
                    value = (tap * image[start + p, b] - m[b]) * r[b] * gain + offset
                    out[k, c, p, b] = x.dtype.type(0) if value < 0 else value


@_kernel
def stem_backward(
    grad: Array,
    x: Array,
    kernel: Array,
    scale: Array,
    shift: Array,
    mean: Array,
    rstd: Array,
    grad_kernel: Array,
    grad_scale: Array,
    grad_shift: Array,
) -> None:
    """Gradients of :func:`stem_forward`."""
    n, channels, windows, batch = grad.shape
    zero = x.dtype.type(0)
    for k in range(n):
        image = x[k if len(x) > 1 else 0]
        average, variance = image[2 * windows], image[2 * windows + 1]
        m, r = mean[k], rstd[k]
        kernel_mean = kernel[k].mean()
        through_mean, through_square, through_variance = zero, zero, zero
        for c in range(channels):
            tap, gain, offset = kernel[k, c], scale[k, c], shift[k, c]
            start = 0 if tap * gain >= 0 else windows
            total, dot, moved = zero, zero, zero
            for p in range(windows):
                for b in range(batch):
                    pixel = image[start + p, b]
                    normed = (tap * pixel - m[b]) * r[b]
                    g = grad[k, c, p, b]
                    if normed * gain + offset <= 0:
                        g = zero
                    total += g
                    dot += g * normed
                    moved += g * r[b] * pixel
                    through_mean += gain * g * r[b] * average[b]
                    # d(1/σ) = −½/σ³ · d(spread), and normed already holds one 1/σ
                    slope = gain * g * normed * r[b] * r[b]
                    through_square += slope * variance[b]
                    through_variance += slope * average[b] * average[b]
            grad_shift[k, c] = total
            grad_scale[k, c] = dot
            grad_kernel[k, c] = gain * moved
        for c in range(channels):
            tap = kernel[k, c]
            through_rstd = tap * through_square + (tap - kernel_mean) * through_variance
            grad_kernel[k, c] -= (through_mean + through_rstd) / channels
