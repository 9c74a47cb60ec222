"""Steps of optimizers on some parameters of one network on CPUs, compiled by Numba."""

from __future__ import annotations

import numpy as np

from envs.batched.optimizers import Rule
from envs.batched.products import Array, kernel

_SGD = int(Rule.SGD)


@kernel
def step(
    rule: int, numbers: Array, params: Array, buffers: Array, row: int, grad: Array, first: int,
    last: int, rate: float,
) -> float:  # fmt: skip
    """Change some parameters of a row; the norm of their gradient.

    Args:
        rule: a :class:`~envs.batched.optimizers.Rule`.
        numbers: of the optimizer, in the order in which it lists them.
        params: of the row, flat.
        buffers: of all rows, ``[buffers, N, columns]``.
        row: which one it is.
        grad: like ``params``.
        first, last: columns that are changed, the last excluded.
        rate: learning rate.
    """
    if rule == _SGD:
        return _sgd(numbers, params, buffers[0, row], grad, first, last, rate)
    return _adamw(
        numbers, params, buffers[0, row], buffers[1, row], buffers[2, row], grad, first, last, rate
    )


@kernel
def _sgd(
    numbers: Array, params: Array, velocity: Array, grad: Array, first: int, last: int, rate: float
) -> float:
    m, small = params.dtype.type(numbers[0]), params.dtype.type(rate)
    square = params.dtype.type(0)
    for i in range(first, last):
        g = grad[i]
        square += g * g
        velocity[i] = m * velocity[i] + g
        params[i] -= small * velocity[i]
    return np.sqrt(square)


@kernel
def _adamw(
    numbers: Array, params: Array, mean: Array, square: Array, steps: Array, grad: Array,
    first: int, last: int, rate: float,
) -> float:  # fmt: skip
    """Neighbours that have made as many steps go together, so that loops are vectorised."""
    number = params.dtype.type
    beta1, beta2 = numbers[0], numbers[1]
    rise1, rise2, decay2 = number(1 - beta1), number(1 - beta2), number(beta2)
    epsilon, kept = number(numbers[2]), number(1 - rate * numbers[3])
    total, start = number(0), first
    while start < last:
        stop = start + 1
        while stop < last and steps[stop] == steps[start]:
            stop += 1
        count = steps[start] + 1
        small = number(rate / (1 - beta1**count))
        correction = number(1 / (1 - beta2**count))
        for i in range(start, stop):
            g = grad[i]
            total += g * g
            steps[i] = count
            mean[i] += rise1 * (g - mean[i])
            square[i] = decay2 * square[i] + rise2 * g * g
            params[i] = kept * params[i] - small * mean[i] / (
                np.sqrt(square[i] * correction) + epsilon
            )
        start = stop
    return np.sqrt(total)
