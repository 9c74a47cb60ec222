"""Batch norm of one small network's features on CPUs, compiled by Numba.

Features are ``[C·H·W, B]``, B examples innermost (Ioffe & Szegedy 2015).
"""

from __future__ import annotations

import numpy as np

from envs.batched.instructions import Field
from envs.batched.products import Array, kernel

_CHANNELS, _HEIGHT, _WIDTH = int(Field.INPUTS), int(Field.HEIGHT), int(Field.WIDTH)
_PARAMETERS, _STATISTICS = int(Field.PARAMETERS), int(Field.OTHER)
_RELU = int(Field.FLAG)


@kernel
def batch_norm(
    wanted: bool | None,
    line: Array,
    epsilon: float,
    momentum: float,
    params: Array,
    x: Array,
    out: Array,
    kept: Array,
    training: bool,
) -> None:
    """Normalise each channel, by its own statistics in training, otherwise by the running ones.

    Args:
        wanted: None where there is none, so that it isn't compiled.
        line: the instruction.
        epsilon: added to the variance.
        momentum: share of a minibatch in the running statistics.
        params: of the network; in training the running statistics change: mean and variance of
            each channel, then the number of minibatches.
        x: features, all that it reads.
        out: features from the first that it writes on.
        kept: from the first of its scratch on: mean and 1 / deviation of each channel, written.
    """
    if wanted is not None:
        channels, pixels, batch = line[_CHANNELS], line[_HEIGHT] * line[_WIDTH], x.shape[1]
        own, running = params[line[_PARAMETERS] :], params[line[_STATISTICS] :]
        number = x.dtype.type
        count = pixels * batch
        for c in range(channels):
            mean, variance = running[c], running[channels + c]
            if training:
                mean, variance = number(0), number(0)
                for m in range(c * pixels, (c + 1) * pixels):
                    for b in range(batch):
                        mean += x[m, b]
                mean /= count
                for m in range(c * pixels, (c + 1) * pixels):
                    for b in range(batch):
                        variance += (x[m, b] - mean) * (x[m, b] - mean)
                variance /= count
                share = number(momentum)
                unbiased = variance * count / max(count - 1, 1)
                running[c] += share * (mean - running[c])
                running[channels + c] += share * (unbiased - running[channels + c])
            rstd = number(1 / np.sqrt(variance + epsilon))
            kept[c, 0], kept[channels + c, 0] = mean, rstd
            gain, offset = own[c], own[channels + c]
            for m in range(c * pixels, (c + 1) * pixels):
                for b in range(batch):
                    value = (x[m, b] - mean) * rstd * gain + offset
                    out[m, b] = number(0) if line[_RELU] and value < 0 else value  # NaN passes
        if training:
            running[2 * channels] += 1


@kernel
def batch_norm_backward(
    wanted: bool | None,
    line: Array,
    params: Array,
    x: Array,
    kept: Array,
    grad: Array,
    grad_x: Array,
    grad_own: Array,
) -> None:
    """Gradients of :func:`batch_norm` in training, added.

    dx = scale · rstd · (g − mean(g) − x̂ · mean(g·x̂)), means over pixels and examples.
    """
    if wanted is not None:
        channels, pixels, batch = line[_CHANNELS], line[_HEIGHT] * line[_WIDTH], x.shape[1]
        own, zero = params[line[_PARAMETERS] :], x.dtype.type(0)
        for c in range(channels):
            mean, rstd = kept[c, 0], kept[channels + c, 0]
            gain, offset = own[c], own[channels + c]
            total, dot = zero, zero
            for m in range(c * pixels, (c + 1) * pixels):
                for b in range(batch):
                    normed = (x[m, b] - mean) * rstd
                    if line[_RELU] and normed * gain + offset <= 0:
                        grad[m, b] = zero
                    total += grad[m, b]
                    dot += grad[m, b] * normed
            grad_own[c] += dot
            grad_own[channels + c] += total
            total, dot = total / (pixels * batch), dot / (pixels * batch)
            for m in range(c * pixels, (c + 1) * pixels):
                for b in range(batch):
                    normed = (x[m, b] - mean) * rstd
                    grad_x[m, b] += gain * rstd * (grad[m, b] - total - normed * dot)
