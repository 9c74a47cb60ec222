"""Activations of one small network's features on CPUs, compiled by Numba."""

from __future__ import annotations

import math

import numpy as np

from envs.batched.instructions import Activation
from envs.batched.products import Array, kernel

_RELU, _SIGMOID, _TANH, _SILU, _GELU, _ = map(int, Activation)
_HALF, _SCALE, _CUBE = math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715


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
    elif further is not None:
        for m in range(rows):
            for b in range(batch):
                v = x[m, b]
                if kind == _TANH:
                    out[m, b] = np.tanh(v)
                elif kind == _SILU:
                    out[m, b] = v / (1 + np.exp(-v))
                elif kind == _GELU:
                    out[m, b] = 0.5 * v * (1 + math.erf(v * _HALF))
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
                elif kind == _GELU:
                    density = 0.5 * _SCALE * np.exp(-0.5 * v * v)
                    grad_x[m, b] += g * (0.5 * (1 + math.erf(v * _HALF)) + v * density)
                else:
                    t = np.tanh(_SCALE * (v + _CUBE * v * v * v))
                    inner = _SCALE * (1 + 3 * _CUBE * v * v)
                    grad_x[m, b] += g * 0.5 * (1 + t + v * (1 - t * t) * inner)
