"""A seed's effect on the features at its slot, on CPUs, compiled by Numba."""

from __future__ import annotations

from envs.batched.modes import Mode
from envs.batched.products import Array, kernel

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
