"""RMS norm of one small network's features on CPUs, compiled by Numba (Zhang & Sennrich 2019).

Features are ``[C, P·B]``: C channels of P pixels or positions, B examples innermost. Each pixel is
normalised by itself.
"""

from __future__ import annotations

import numpy as np

from envs.batched.products import Array, kernel


@kernel
def rms_norm(
    wanted: bool | None, x: Array, own: Array, epsilon: float, out: Array, rstd: Array
) -> None:
    """``out`` is scale · x / √(mean(x²) + ε), means over channels.

    Args:
        wanted: None where there is none, so that it isn't compiled.
        x: features.
        own: parameters from the first on, a scale for each channel.
        epsilon: ε.
        out: shaped like ``x``, written.
        rstd: ``[P·B]``, written.
    """
    if wanted is not None:
        rstd[:] = 0
        for c in range(len(x)):
            for i in range(x.shape[1]):
                rstd[i] += x[c, i] * x[c, i]
        for i in range(x.shape[1]):
            rstd[i] = 1 / np.sqrt(rstd[i] / len(x) + epsilon)
        for c in range(len(x)):
            for i in range(x.shape[1]):
                out[c, i] = x[c, i] * rstd[i] * own[c]


@kernel
def rms_norm_backward(
    wanted: bool | None,
    grad: Array,
    x: Array,
    own: Array,
    rstd: Array,
    grad_x: Array,
    grad_own: Array,
) -> None:
    """Gradients of :func:`rms_norm`, added: dx = rstd · (scale·g − x̂ · mean(scale·g·x̂))."""
    if wanted is not None:
        dots = np.zeros(x.shape[1], x.dtype)
        for c in range(len(x)):
            total = x.dtype.type(0)
            for i in range(x.shape[1]):
                product = grad[c, i] * x[c, i] * rstd[i]
                total += product
                dots[i] += product * own[c]
            grad_own[c] += total
        for c in range(len(x)):
            for i in range(x.shape[1]):
                shared = x[c, i] * rstd[i] * dots[i] / len(x)
                grad_x[c, i] += rstd[i] * (grad[c, i] * own[c] - shared)
