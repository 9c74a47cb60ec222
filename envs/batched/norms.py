"""Group normalisation and what follows it for one small network on CPUs, compiled by Numba.

In PyTorch's own operations a normalisation reads and writes its features about ten times; here
each is two or three passes over a block that stays in the cache. Features are ``[C·P, B]``: the P
pixels of C channels, B examples innermost. Gradients with respect to inputs and parameters are
added to what is there.
"""

from __future__ import annotations

import numpy as np

from envs.batched.products import Array, kernel


@kernel
def statistics(x: Array, epsilon: float, mean: Array, rstd: Array) -> None:
    """Mean and 1/σ over channels and pixels: ``[C·P, B]`` to ``[B]`` each."""
    count, batch = x.shape
    mean[:] = 0
    rstd[:] = 0
    for m in range(count):
        for b in range(batch):
            mean[b] += x[m, b]
    for b in range(batch):
        mean[b] /= count
    for m in range(count):
        for b in range(batch):
            centred = x[m, b] - mean[b]
            rstd[b] += centred * centred
    for b in range(batch):
        rstd[b] = 1 / np.sqrt(rstd[b] / count + x.dtype.type(epsilon))


@kernel
def norm_forward(
    x: Array,
    params: Array,
    channels: int,
    shift: int,
    relu: bool,
    epsilon: float,
    out: Array,
    mean: Array,
    rstd: Array,
) -> None:
    """``out`` is the norm of ``x``, or ReLU of it; also its statistics ``[B]``.

    Args:
        params: flat; the first ``channels`` are the scale, those from ``shift`` on the shift.
    """
    rows, batch = x.shape
    pixels = rows // channels
    statistics(x, epsilon, mean, rstd)
    for c in range(channels):
        gain, offset = params[c], params[shift + c]
        for m in range(c * pixels, (c + 1) * pixels):
            for b in range(batch):
                value = (x[m, b] - mean[b]) * rstd[b] * gain + offset
                out[m, b] = x.dtype.type(0) if relu and value < 0 else value  # NaN passes


@kernel
def norm_backward(
    grad: Array,
    x: Array,
    params: Array,
    channels: int,
    shift: int,
    mean: Array,
    rstd: Array,
    relu: bool,
    grad_x: Array,
    grad_params: Array,
) -> None:
    """Gradients of :func:`norm_forward`; ``grad`` is overwritten.

    dx = rstd · (scale·g − mean(scale·g) − x̂ · mean(scale·g·x̂)), means over C and P.
    """
    rows, batch = x.shape
    pixels = rows // channels
    zero = x.dtype.type(0)
    mean_sum, mean_dot = np.zeros(batch, x.dtype), np.zeros(batch, x.dtype)
    for c in range(channels):
        gain, offset = params[c], params[shift + c]
        total, dot = zero, zero
        for m in range(c * pixels, (c + 1) * pixels):
            for b in range(batch):
                normed = (x[m, b] - mean[b]) * rstd[b]
                g = grad[m, b]
                if relu and normed * gain + offset <= 0:
                    g = zero
                total += g
                dot += g * normed
                g *= gain
                mean_sum[b] += g
                mean_dot[b] += g * normed
                grad[m, b] = g
        grad_params[c] += dot
        grad_params[shift + c] += total
    for b in range(batch):
        mean_sum[b] /= rows
        mean_dot[b] /= rows
    for m in range(rows):
        for b in range(batch):
            normed = (x[m, b] - mean[b]) * rstd[b]
            grad_x[m, b] += rstd[b] * (grad[m, b] - mean_sum[b] - normed * mean_dot[b])


@kernel
def pool_forward(
    x: Array,
    params: Array,
    channels: int,
    width: int,
    epsilon: float,
    out: Array,
    chosen: Array,
    mean: Array,
    rstd: Array,
) -> None:
    """ReLU of 2×2 max pooling of the norm; ``chosen`` says which of the four pixels it took.

    4 stands for none of them: ReLU was 0. ``out`` and ``chosen`` have a quarter of the rows.
    """
    rows, batch = out.shape
    pixels, half = rows // channels, width // 2
    statistics(x, epsilon, mean, rstd)
    for m in range(rows):
        c, p = m // pixels, m % pixels
        gain, offset = params[c], params[channels + c]
        corner = 4 * c * pixels + 2 * (p // half) * width + 2 * (p % half)
        for b in range(batch):
            best = (x[corner, b] - mean[b]) * rstd[b] * gain + offset
            index = x.dtype.type(0)
            # The first of equal pixels, as in torch.
            value = (x[corner + 1, b] - mean[b]) * rstd[b] * gain + offset
            if value > best:
                best, index = value, x.dtype.type(1)
            value = (x[corner + width, b] - mean[b]) * rstd[b] * gain + offset
            if value > best:
                best, index = value, x.dtype.type(2)
            value = (x[corner + width + 1, b] - mean[b]) * rstd[b] * gain + offset
            if value > best:
                best, index = value, x.dtype.type(3)
            if best <= 0:
                best, index = x.dtype.type(0), x.dtype.type(4)
            out[m, b] = best
            chosen[m, b] = index


@kernel
def unpool(grad: Array, chosen: Array, width: int, out: Array) -> None:
    """``grad`` of the pooled pixels, at those that :func:`pool_forward` took, else 0."""
    rows, batch = out.shape
    half = width // 2
    for m in range(rows):
        i, j = m // width, m % width  # rows of all channels' maps follow each other
        pixel, pooled = 2 * (i % 2) + j % 2, i // 2 * half + j // 2
        for b in range(batch):
            taken = chosen[pooled, b] == pixel
            out[m, b] = grad[pooled, b] if taken else grad.dtype.type(0)


@kernel
def _moments(values: Array) -> tuple[float, float, float]:
    """Mean, mean square and variance."""
    mean, square, variance = values.dtype.type(0), values.dtype.type(0), values.dtype.type(0)
    for value in values:
        mean += value / len(values)
        square += value * value / len(values)
    for value in values:
        variance += (value - mean) * (value - mean) / len(values)
    return mean, square, variance


@kernel
def stem_forward(
    x: Array, params: Array, channels: int, epsilon: float, out: Array, mean: Array, rstd: Array
) -> None:
    """1×1 convolution of one channel, norm, 2×2 max pooling and ReLU, in closed form.

    ``x`` is ``[2·P + 2, B]``: largest and smallest pixel of the P windows, then mean and variance
    of the image; ``params``, flat, are weight, scale and shift. Channel c of the convolution is
    w_c · pixel: its statistics follow from the image's, and norm, pooling and ReLU are monotonic
    in the pixel. Weight and image are independent, so that the variance is
    mean(w²)·var + var(w)·mean², both terms ≥ 0.
    """
    rows, batch = out.shape
    windows = rows // channels
    weight = params[:channels]
    average, variance = x[2 * windows], x[2 * windows + 1]
    weight_mean, weight_square, weight_variance = _moments(weight)
    for b in range(batch):
        mean[b] = weight_mean * average[b]
        spread = weight_square * variance[b] + weight_variance * average[b] * average[b]
        rstd[b] = 1 / np.sqrt(spread + x.dtype.type(epsilon))
    for c in range(channels):
        tap, gain, offset = weight[c], params[channels + c], params[2 * channels + c]
        start = 0 if tap * gain >= 0 else windows
        for p in range(windows):
            for b in range(batch):
                value = (tap * x[start + p, b] - mean[b]) * rstd[b] * gain + offset
                out[c * windows + p, b] = x.dtype.type(0) if value < 0 else value


@kernel
def stem_backward(
    grad: Array,
    x: Array,
    params: Array,
    channels: int,
    mean: Array,
    rstd: Array,
    grad_params: Array,
) -> None:
    """Gradients of :func:`stem_forward`; the images get none."""
    rows, batch = grad.shape
    windows = rows // channels
    weight = params[:channels]
    zero = x.dtype.type(0)
    average, variance = x[2 * windows], x[2 * windows + 1]
    weight_mean = _moments(weight)[0]
    through_mean, through_square, through_variance = zero, zero, zero
    for c in range(channels):
        tap, gain, offset = weight[c], params[channels + c], params[2 * channels + c]
        start = 0 if tap * gain >= 0 else windows
        total, dot, moved = zero, zero, zero
        for p in range(windows):
            for b in range(batch):
                pixel = x[start + p, b]
                normed = (tap * pixel - mean[b]) * rstd[b]
                g = grad[c * windows + p, b]
                if normed * gain + offset <= 0:
                    g = zero
                total += g
                dot += g * normed
                moved += g * rstd[b] * pixel
                through_mean += gain * g * rstd[b] * average[b]
                # d(1/σ) = −½/σ³ · d(spread), and normed already holds one 1/σ
                slope = gain * g * normed * rstd[b] * rstd[b]
                through_square += slope * variance[b]
                through_variance += slope * average[b] * average[b]
        grad_params[2 * channels + c] += total
        grad_params[channels + c] += dot
        grad_params[c] += gain * moved
    for c in range(channels):
        tap = weight[c]
        through_rstd = tap * through_square + (tap - weight_mean) * through_variance
        grad_params[c] -= (through_mean + through_rstd) / channels
