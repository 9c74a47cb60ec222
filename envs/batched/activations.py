"""Activations of one small network's features on CPUs, compiled by Numba."""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import erfcx

from envs.batched.attention import exponentials
from envs.batched.instructions import Activation
from envs.batched.products import Array, kernel

_RELU, _SIGMOID, _TANH, _SILU, _GELU, _ = map(int, Activation)
_SCALE, _CUBE = math.sqrt(2 / math.pi), 0.044715
_DENSITY = 1 / math.sqrt(2 * math.pi)

_FURTHEST = 9.0
"""Deviations beyond which the normal distribution has less than 1e-18 left."""

_LEAST = 1 / (1 + _FURTHEST / 2)


def _mills_ratio() -> np.ndarray:
    """Coefficients of ½ · erfcx(v / √2) for v ≥ 0 as a polynomial of :func:`_shares`' u."""
    fitted = Chebyshev.interpolate(
        lambda u: erfcx((2 / (_LEAST + (1 - _LEAST) * (u + 1) / 2) - 2) * math.sqrt(0.5)) / 2, 20
    )
    return fitted.convert(kind=Polynomial).coef[::-1].copy()


_MILLS_RATIO = _mills_ratio()
_TILE = 256


@kernel
def _shares(x: Array, density: Array, share: Array) -> None:
    """exp(−x²/2), and the share of a normal distribution below x, in vectorised operations.

    The share beyond |x| is exp(−x²/2) · ½ erfcx(|x| / √2), the second factor a polynomial of
    u = 2 (t − least) / (1 − least) − 1 with t = 1 / (1 + |x| / 2). NaN passes.
    """
    number = x.dtype.type
    half, one, two = number(0.5), number(1), number(2)
    furthest, least = number(_FURTHEST), number(_LEAST)
    for i in range(len(x)):
        v = furthest if abs(x[i]) > furthest else abs(x[i])
        density[i] = -half * v * v
        t = one / (one + half * v)
        share[i] = two * (t - least) / (one - least) - one
    exponentials(density[: len(x)])
    ratio = np.full(len(x), number(_MILLS_RATIO[0]), x.dtype)
    for n in range(1, len(_MILLS_RATIO), 2):  # outside, since a loop with another in it is slow
        first, second = number(_MILLS_RATIO[n]), number(_MILLS_RATIO[n + 1])
        for i in range(len(x)):
            ratio[i] = (ratio[i] * share[i] + first) * share[i] + second
    for i in range(len(x)):
        beyond = ratio[i] * density[i]
        share[i] = beyond if x[i] < 0 else one - beyond


@kernel
def activate(further: bool | None, x: Array, out: Array, kind: int) -> None:
    """out = f(x) for features ``[rows, B]``.

    NaN passes. ``further`` is None where all are RELU or SIGMOID: no others are compiled.
    """
    rows, batch = x.shape
    if kind == _RELU:
        for m in range(rows):
            for b in range(batch):
                out[m, b] = x.dtype.type(0) if x[m, b] < 0 else x[m, b]
    elif kind == _SIGMOID:
        for m in range(rows):
            for b in range(batch):
                out[m, b] = 1 / (1 + np.exp(-x[m, b]))
    elif further is not None and kind == _GELU:
        values, to = x.ravel(), out[:rows].ravel()
        density, share = np.empty(_TILE, x.dtype), np.empty(_TILE, x.dtype)
        for start in range(0, len(values), _TILE):
            own = values[start : start + _TILE]
            _shares(own, density, share)
            for i in range(len(own)):
                to[start + i] = own[i] * share[i]
    elif further is not None:
        for m in range(rows):
            for b in range(batch):
                v = x[m, b]
                if kind == _TANH:
                    out[m, b] = np.tanh(v)
                elif kind == _SILU:
                    out[m, b] = v / (1 + np.exp(-v))
                else:
                    out[m, b] = 0.5 * v * (1 + np.tanh(_SCALE * (v + _CUBE * v * v * v)))


@kernel
def activate_backward(
    further: bool | None, grad: Array, x: Array, kind: int, grad_x: Array
) -> None:
    """Gradients of :func:`activate`, added to ``grad_x``."""
    rows, batch = x.shape
    if kind == _RELU:
        for m in range(rows):
            for b in range(batch):
                if not x[m, b] <= 0:
                    grad_x[m, b] += grad[m, b]
    elif kind == _SIGMOID:
        for m in range(rows):
            for b in range(batch):
                share = 1 / (1 + np.exp(-x[m, b]))
                grad_x[m, b] += grad[m, b] * share * (1 - share)
    elif further is not None and kind == _GELU:
        values, given, to = x.ravel(), grad[:rows].ravel(), grad_x.ravel()
        density, share = np.empty(_TILE, x.dtype), np.empty(_TILE, x.dtype)
        slope = x.dtype.type(_DENSITY)
        for start in range(0, len(values), _TILE):
            own = values[start : start + _TILE]
            _shares(own, density, share)
            for i in range(len(own)):
                to[start + i] += given[start + i] * (share[i] + own[i] * density[i] * slope)
    elif further is not None:
        for m in range(rows):
            for b in range(batch):
                v, g = x[m, b], grad[m, b]
                if kind == _TANH:
                    t = np.tanh(v)
                    grad_x[m, b] += g * (1 - t * t)
                elif kind == _SILU:
                    share = 1 / (1 + np.exp(-v))
                    grad_x[m, b] += g * share * (1 + v * (1 - share))
                else:
                    t = np.tanh(_SCALE * (v + _CUBE * v * v * v))
                    inner = _SCALE * (1 + 3 * _CUBE * v * v)
                    grad_x[m, b] += g * 0.5 * (1 + t + v * (1 - t * t) * inner)
