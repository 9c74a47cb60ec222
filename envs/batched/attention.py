"""Self-attention of one small network on CPUs, compiled by Numba.

Features are ``[C, T·B]``, the B examples of a position beside each other. So the positions that lie
d before others are the same columns, d·B further left: everything is loops over neighbouring
numbers, and nothing is computed for positions that aren't seen. Positions after one are at negative
distances; they are seen if attention is full, not causal.
"""

from __future__ import annotations

import numpy as np

from envs.batched.instructions import FIRST_BIAS, MOST_DISTANCES
from envs.batched.products import Array, kernel

_LOG_2 = float(np.log(2.0))
_FACTORS = tuple(1.0 / np.cumprod([1.0, *range(1, 13)]))
"""Of the exponential's series."""


@kernel
def exponentials(x: Array) -> None:
    """x = exp(x) in place for x ≤ 0, in operations that are vectorised; 0 below 1e-37 or so.

    exp(x) is 2ᵏ · exp(r) with |r| ≤ ln 2 / 2, and 2ᵏ a product by the binary digits of −k.
    """
    number = x.dtype.type
    for i in range(len(x)):
        y = number(-87) if x[i] < -87 else x[i]  # NaN passes
        k = np.floor(y * number(1 / _LOG_2) + number(0.5))
        r, left, power = y - k * number(_LOG_2), -k, number(1)
        series = number(_FACTORS[12])
        for n in range(11, -1, -1):
            series = series * r + number(_FACTORS[n])
        for digit in range(6, -1, -1):
            value = number(1 << digit)
            power = power * number(0.5 ** (1 << digit)) if left >= value else power
            left = left - value if left >= value else left
        x[i] = series * power


@kernel
def attend(
    wanted: bool | None,
    x: Array,
    distance: Array,
    heads: int,
    window: int,
    learned: bool,
    full: bool,
    batch: int,
    out: Array,
    weights: Array,
) -> None:
    """Attention between its projections (:class:`~envs.networks.layers.RelativeAttention`).

    Args:
        wanted: None where no program has attention: then nothing of this is compiled.
        x: queries, keys and values, ``[3·C, T·B]``.
        distance: flat ``[heads, distances]``, the learned terms of the scores.
        window: positions that one sees, itself included; 0 for all.
        learned: add these terms.
        full: see all positions, not only those before.
        batch: B.
        out: ``[C, T·B]``, written.
        weights: flat ``[heads, distances that are seen, T·B]``, written.
    """
    if wanted is None:
        return
    size, columns = len(out) // heads, x.shape[1]
    seen = _seen(window, columns // batch)
    lowest = 1 - seen if full else 0
    distances = window if window > 0 else MOST_DISTANCES
    number = x.dtype.type
    scale, zero = number(1 / np.sqrt(size)), number(0)
    most, mass = np.empty(columns, x.dtype), np.empty(columns, x.dtype)
    for h in range(heads):
        queries, keys, values = _parts(x, h * size)
        most[:] = -np.inf
        mass[:] = 0
        for d in range(lowest, seen):
            own, other, weight = _pairs(weights, h * (seen - lowest), d, lowest, columns, batch)
            bias = zero
            if learned:
                first = number(FIRST_BIAS) if window > 0 and d == h + 1 else zero
                bias = distance[h * distances + min(d, distances - 1)] + first
            weight[:] = 0
            for c in range(size):
                query, key = queries[c, own:], keys[c, other:]
                for i in range(len(weight)):
                    weight[i] += query[i] * key[i]
            largest = most[own:]
            for i in range(len(weight)):
                weight[i] = weight[i] * scale + bias
                largest[i] = weight[i] if weight[i] > largest[i] else largest[i]
        for d in range(lowest, seen):
            own, _, weight = _pairs(weights, h * (seen - lowest), d, lowest, columns, batch)
            largest, total = most[own:], mass[own:]
            for i in range(len(weight)):
                weight[i] -= largest[i]
            exponentials(weight)
            for i in range(len(weight)):
                total[i] += weight[i]
        for c in range(size):
            out[h * size + c] = 0
        for d in range(lowest, seen):
            own, other, weight = _pairs(weights, h * (seen - lowest), d, lowest, columns, batch)
            total = mass[own:]
            for i in range(len(weight)):
                weight[i] /= total[i]
            for c in range(size):
                value, given = values[c, other:], out[h * size + c, own:]
                for i in range(len(weight)):
                    given[i] += weight[i] * value[i]


@kernel
def attend_backward(
    wanted: bool | None,
    grad: Array,
    x: Array,
    heads: int,
    window: int,
    learned: bool,
    full: bool,
    batch: int,
    weights: Array,
    grad_weights: Array,
    grad_x: Array,
    grad_distance: Array,
) -> None:
    """Gradients of :func:`attend`, added; ``grad_weights`` is room shaped like ``weights``.

    Of scores s with weights w and their gradients g it is w · (g − Σ w·g).
    """
    if wanted is None:
        return
    size, columns = len(grad) // heads, x.shape[1]
    seen = _seen(window, columns // batch)
    lowest = 1 - seen if full else 0
    distances = window if window > 0 else MOST_DISTANCES
    number = x.dtype.type
    scale, zero = number(1 / np.sqrt(size)), number(0)
    dot = np.empty(columns, x.dtype)
    for h in range(heads):
        queries, keys, values = _parts(x, h * size)
        to_queries, to_keys, to_values = _parts(grad_x, h * size)
        dot[:] = 0
        first = h * (seen - lowest)
        for d in range(lowest, seen):
            own, other, weight = _pairs(weights, first, d, lowest, columns, batch)
            _, _, to_weight = _pairs(grad_weights, first, d, lowest, columns, batch)
            to_weight[:] = 0
            for c in range(size):
                given, value = grad[h * size + c, own:], values[c, other:]
                to_value = to_values[c, other:]
                for i in range(len(weight)):
                    to_weight[i] += given[i] * value[i]
                    to_value[i] += weight[i] * given[i]
            product = dot[own:]
            for i in range(len(weight)):
                product[i] += weight[i] * to_weight[i]
        for d in range(lowest, seen):
            own, other, weight = _pairs(weights, first, d, lowest, columns, batch)
            _, _, to_score = _pairs(grad_weights, first, d, lowest, columns, batch)
            total, product = zero, dot[own:]
            for i in range(len(weight)):
                to_score[i] = weight[i] * (to_score[i] - product[i])
                total += to_score[i]
                to_score[i] *= scale
            if learned:
                grad_distance[h * distances + min(d, distances - 1)] += total
            for c in range(size):
                query, key = queries[c, own:], keys[c, other:]
                to_query, to_key = to_queries[c, own:], to_keys[c, other:]
                for i in range(len(weight)):
                    to_query[i] += to_score[i] * key[i]
                    to_key[i] += to_score[i] * query[i]


@kernel
def _parts(x: Array, first: int) -> tuple[Array, Array, Array]:
    """Queries, keys and values from a channel on."""
    channels = len(x) // 3
    return x[first:], x[channels + first :], x[2 * channels + first :]


@kernel
def _seen(window: int, length: int) -> int:
    """Distances at which something is seen."""
    return min(window, length) if window > 0 else length


@kernel
def _pairs(
    flat: Array, first: int, d: int, lowest: int, columns: int, batch: int
) -> tuple[int, int, Array]:
    """Pairs of positions at a distance, that which sees d behind that which is seen.

    Returns:
        First column of those that see, and of those that are seen, and the pairs' weights, a part
        of the row of this distance among those from row ``first`` on.
    """
    own, other = max(d, 0) * batch, max(-d, 0) * batch
    start = (first + d - lowest) * columns
    return own, other, flat[start + own : start + columns - other]
