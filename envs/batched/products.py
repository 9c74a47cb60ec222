"""Matrix products of one small network's features on CPUs, compiled by Numba.

Arrays are flat, and rows of numbers are named by start and step, so that one pair of kernels does
for 1×1 and 3×3 convolutions and fully connected layers, forward and backward. A row is some
neighbouring pixels of a channel, the B examples of each pixel innermost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Sums may be reordered, so that they are vectorised; NaN and infinity keep their meaning.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}

_INNER: dict[str, Any] = {
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

kernel: Any = numba.njit(**_OPTIONS, **_INNER)
"""Decorator of functions that only other kernels call.

Such a function is inlined into its callers. Otherwise Numba would compile it several times, each
time with sums in another order, and a process would take one version when it compiles and another
one when it reads the cache: the first run on a machine wouldn't be the same as the next."""

entry_kernel: Any = numba.njit(**_OPTIONS, inline="always")
"""The same for long functions, which Python calls too: fewer of them are compiled."""

_LOGGER = logging.getLogger(__name__)


def cached_kernel(function: Callable) -> Any:
    """Decorate a function that is kept on disk, with all that it calls.

    Where there is no place to keep it, every process compiles it, and says so.
    """
    try:
        return numba.njit(**_OPTIONS, cache=True)(function)
    except RuntimeError:  # the package is read-only, and so is the user's cache
        _say_that_it_is_not_cached()
        return numba.njit(**_OPTIONS)(function)


@cache  # once in a process
def _say_that_it_is_not_cached() -> None:
    _LOGGER.warning(
        "compiled layers can't be kept on disk, so every process compiles them, half a minute or "
        "so; NUMBA_CACHE_DIR may name a folder that can be written"
    )


Array = Any
"""A NumPy array, in types that Numba infers."""


_TILE = 256
"""Numbers of a row that are worked on together, so that those of all channels stay in the cache."""


@kernel
def add_products(
    weight: Array,
    w: int,
    across: int,
    along: int,
    x: Array,
    x0: int,
    x_step: int,
    inputs: int,
    out: Array,
    out0: int,
    out_step: int,
    outputs: int,
    length: int,
) -> None:
    """out[o] += Σᵢ weight[o, i] · x[i] for rows of numbers, in blocks of 2 by 4 rows.

    Args:
        weight: flat; ``[o, i]`` is at ``w + o · across + i · along``.
        x, out: flat; a row starts ``x_step`` (``out_step``) behind the one before, the first one
            at ``x0`` (``out0``).
        inputs, outputs: numbers of rows.
        length: of every row.
    """
    for start in range(0, length, _TILE):
        n = min(_TILE, length - start)
        for o in range(0, outputs - 1, 2):
            w0, to = w + o * across, out0 + o * out_step + start
            w1 = w0 + across
            first, second = out[to : to + n], out[to + out_step : to + out_step + n]
            for i in range(0, inputs - 3, 4):
                a, j = x0 + i * x_step + start, i * along
                b, c, d = a + x_step, a + 2 * x_step, a + 3 * x_step
                xa, xb, xc, xd = x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n]
                a0, a1 = weight[w0 + j], weight[w1 + j]
                b0, b1 = weight[w0 + j + along], weight[w1 + j + along]
                c0, c1 = weight[w0 + j + 2 * along], weight[w1 + j + 2 * along]
                d0, d1 = weight[w0 + j + 3 * along], weight[w1 + j + 3 * along]
                for k in range(n):
                    first[k] += a0 * xa[k] + b0 * xb[k] + c0 * xc[k] + d0 * xd[k]
                    second[k] += a1 * xa[k] + b1 * xb[k] + c1 * xc[k] + d1 * xd[k]
        # What the blocks leave over: the last inputs of all outputs, all inputs of the last one.
        for o in range(outputs):
            alone = outputs % 2 == 1 and o == outputs - 1
            to = out0 + o * out_step + start
            first = out[to : to + n]
            for i in range(0 if alone else inputs - inputs % 4, inputs):
                a, a0 = x0 + i * x_step + start, weight[w + o * across + i * along]
                xa = x[a : a + n]
                for k in range(n):
                    first[k] += a0 * xa[k]


@kernel
def add_dots(
    grad_weight: Array,
    w: int,
    across: int,
    along: int,
    x: Array,
    x0: int,
    x_step: int,
    inputs: int,
    grad: Array,
    grad0: int,
    grad_step: int,
    outputs: int,
    length: int,
) -> None:
    """grad_weight[o, i] += ⟨grad[o], x[i]⟩: the gradient of :func:`add_products`' weight."""
    zero = x.dtype.type(0)
    for start in range(0, length, _TILE):
        n = min(_TILE, length - start)
        for o in range(0, outputs - 1, 2):
            w0, to = w + o * across, grad0 + o * grad_step + start
            w1 = w0 + across
            first, second = grad[to : to + n], grad[to + grad_step : to + grad_step + n]
            for i in range(0, inputs - 3, 4):
                a, j = x0 + i * x_step + start, i * along
                b, c, d = a + x_step, a + 2 * x_step, a + 3 * x_step
                xa, xb, xc, xd = x[a : a + n], x[b : b + n], x[c : c + n], x[d : d + n]
                a0, a1, b0, b1, c0, c1, d0, d1 = zero, zero, zero, zero, zero, zero, zero, zero
                for k in range(n):
                    a0 += first[k] * xa[k]
                    b0 += first[k] * xb[k]
                    c0 += first[k] * xc[k]
                    d0 += first[k] * xd[k]
                    a1 += second[k] * xa[k]
                    b1 += second[k] * xb[k]
                    c1 += second[k] * xc[k]
                    d1 += second[k] * xd[k]
                grad_weight[w0 + j] += a0
                grad_weight[w1 + j] += a1
                grad_weight[w0 + j + along] += b0
                grad_weight[w1 + j + along] += b1
                grad_weight[w0 + j + 2 * along] += c0
                grad_weight[w1 + j + 2 * along] += c1
                grad_weight[w0 + j + 3 * along] += d0
                grad_weight[w1 + j + 3 * along] += d1
        for o in range(outputs):
            alone = outputs % 2 == 1 and o == outputs - 1
            to = grad0 + o * grad_step + start
            first = grad[to : to + n]
            for i in range(0 if alone else inputs - inputs % 4, inputs):
                a, dot = x0 + i * x_step + start, zero
                xa = x[a : a + n]
                for k in range(n):
                    dot += first[k] * xa[k]
                grad_weight[w + o * across + i * along] += dot


@kernel
def runs(
    size: int, stride: int, padding: int, flat: bool, height: int, width: int, to: tuple
) -> Array:
    """Products that make up a convolution with zero padding, in runs of neighbouring pixels.

    Args:
        size: of the kernel, a square, or a row where it is flat.
        stride: 1; or 2, of features sorted by :func:`envs.batched.pooling.split_phases`.
        padding: zeros around the map, only left and right of it for a flat kernel.
        flat: is the kernel one row high?
        height, width: of the map; for stride 2, of one of its four parts.
        to: height and width of the result.

    Returns:
        int64 ``[n, 4]``: first output pixel, first input pixel, tap, number of pixels.
    """
    taps, above = (size, 0) if flat else (size * size, padding)
    found = np.empty((taps * to[0], 4), np.int64)
    if size == 1 and padding == 0:
        found[0] = 0
        found[0, 3] = to[0] * to[1]
        return found[:1]
    count = 0
    for tap in range(taps):
        down, right = tap // size - above, tap % size - padding
        phase = 0
        if stride == 2:
            phase = (down % 2) * 2 + right % 2
            down, right = (down - down % 2) // 2, (right - right % 2) // 2
        left, stop = max(0, -right), min(to[1], width - right)
        for i in range(max(0, -down), min(to[0], height - down)):
            found[count, 0] = i * to[1] + left
            found[count, 1] = (phase * height + i + down) * width + left + right
            found[count, 2] = tap
            found[count, 3] = stop - left
            count += stop > left
    return found[:count]
