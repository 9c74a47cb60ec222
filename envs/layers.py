"""Layers of many small convolutional networks at once.

Features are ``[n, C, H, W, B]``: n networks, and the B examples of a minibatch **innermost**.
A 1×1 convolution is then one batched matrix product with a long inner dimension, a row of
networks is a contiguous block, and every elementwise kernel runs along contiguous memory; on
CPUs this is faster than grouped convolutions in either memory format. Weights have a leading n.
No operation mixes networks, so a NaN in one never reaches another.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-5
"""Added to the variance in normalisation layers, as in torch."""


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` less its mean over C, H, W as ``[n, C, H·W, B]``, and 1/σ as ``[n, 1, 1, B]``."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    share = 1 / flat.shape[1]
    centred = torch.sub(flat, flat.sum(1, keepdim=True), alpha=share)
    rstd = centred.square().sum(1, keepdim=True).mul_(share).add_(EPSILON).rsqrt_()
    return centred.view(*x.shape[:2], -1, x.shape[-1]), rstd.unsqueeze(2)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
        centred, rstd = _centred(x)
        out = torch.addcmul(shift[:, :, None, None], centred, scale[:, :, None, None] * rstd)
        if relu:
            out.clamp_(min=0)
        ctx.save_for_backward(centred, rstd, scale, out if relu else None)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        centred, rstd, scale, out = ctx.saved_tensors
        shape = grad.shape
        grad = grad.reshape(centred.shape)
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        grad_sum = grad.sum(2)
        grad_dot = (grad * centred).sum(2).mul_(rstd[:, :, 0])
        grad_x = None
        if ctx.needs_input_grad[0]:
            # dx = rstd · (scale·g − mean(scale·g) − x̂ · mean(scale·g·x̂)), means over C, H, W
            column = scale.unsqueeze(2)
            share = -1 / (centred.shape[1] * centred.shape[2])
            mean_sum = (column * grad_sum).sum(1)[:, None, None].mul_(share)
            mean_dot = (column * grad_dot).sum(1)[:, None, None].mul_(share).mul_(rstd)
            grad_x = torch.addcmul(mean_sum, centred, mean_dot)
            grad_x = grad_x.addcmul_(grad, column.unsqueeze(3)).mul_(rstd).view(shape)
        return grad_x, grad_dot.sum(2), grad_sum.sum(2), None


def _group_norm(x: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    if torch.is_grad_enabled():
        return _GroupNorm.apply(x, scale, shift, relu)
    out, rstd = _centred(x)
    gain = scale[:, :, None, None] * rstd
    torch.addcmul(shift[:, :, None, None], out, gain, out=out)
    return (out.clamp_(min=0) if relu else out).view(x.shape)


def group_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Group normalisation with one group (Wu & He 2018).

    Args:
        x: features ``[n, C, H, W, B]``.
        scale: ``[n, C]``.
        shift: ``[n, C]``.
    """
    return _group_norm(x, scale, shift, relu=False)


def group_norm_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """ReLU of :func:`group_norm`, in fewer passes over memory."""
    return _group_norm(x, scale, shift, relu=True)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        top_left, top_right, low_left, low_right = _windows(x)
        out = torch.maximum(torch.maximum(top_left, top_right), torch.maximum(low_left, low_right))
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, out = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        # The first of equal pixels takes the gradient, as in torch.
        for pixel, target in zip(_windows(x), _windows(grad_x), strict=True):
            torch.mul(grad, pixel == out, out=target)
            grad = grad - target
        return grad_x


def _windows(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four pixels of every 2×2 window, row by row, as views ``[n, C, H/2, W/2, B]``."""
    top, low = x[:, :, 0::2], x[:, :, 1::2]
    return top[:, :, :, 0::2], top[:, :, :, 1::2], low[:, :, :, 0::2], low[:, :, :, 1::2]


def max_pool(x: Tensor) -> Tensor:
    """2×2 max pooling of ``[n, C, H, W, B]``; height and width must be even."""
    return _MaxPool.apply(x)


class _DenseConv3x3(torch.autograd.Function):
    """As one fully connected layer, whose matrix is mostly zeros: the fastest on tiny maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        out_channels, in_channels = kernel.shape[1:3]
        height, width = x.shape[2:4]
        pixels = height * width
        matrix = kernel.flatten(3) @ _taps(height, width, kernel.dtype, kernel.device)
        matrix = matrix.unflatten(3, (pixels, pixels)).transpose(2, 3)
        matrix = matrix.reshape(-1, out_channels * pixels, in_channels * pixels)
        ctx.save_for_backward(x, matrix, kernel)
        out = torch.matmul(matrix, x.flatten(1, 3))
        return out.unflatten(1, (out_channels, height, width))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, matrix, kernel = ctx.saved_tensors
        out_channels, in_channels = kernel.shape[1:3]
        pixels = x.shape[2] * x.shape[3]
        grad = grad.reshape(len(matrix), out_channels * pixels, -1)
        grad_matrix = torch.matmul(grad, x.flatten(1, 3).transpose(1, 2))
        grad_matrix = grad_matrix.view(-1, out_channels, pixels, in_channels, pixels)
        taps = _taps(*x.shape[2:4], kernel.dtype, kernel.device)
        grad_kernel = grad_matrix.transpose(2, 3).flatten(3) @ taps.T
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(matrix.transpose(1, 2), grad).view(x.shape)
        return grad_x, grad_kernel.view(kernel.shape)


_DENSE_PIXELS = 16
"""Largest map for which :class:`_DenseConv3x3` wins."""


@cache
def _taps(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 where a tap of a 3×3 kernel joins an output pixel to an input pixel: ``[9, pixels²]``."""
    row = torch.arange(height, device=device).repeat_interleave(width)
    column = torch.arange(width, device=device).repeat(height)
    down, right = row - row[:, None], column - column[:, None]  # [output pixel, input pixel]
    taps = [(down == i) & (right == j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return torch.stack(taps).flatten(1).to(dtype)


class _PatchConv3x3(torch.autograd.Function):
    """As a product of the kernel with all 3×3 neighbourhoods."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        patches = _patches(x)
        ctx.save_for_backward(patches, kernel)
        return torch.matmul(kernel.flatten(2), patches).unflatten(2, x.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        patches, kernel = ctx.saved_tensors
        grad_kernel = torch.matmul(grad.flatten(2), patches.transpose(1, 2)).view(kernel.shape)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # The gradient is the convolution of ``grad`` with the turned kernel.
            turned = kernel.flip(3, 4).transpose(1, 2).flatten(2)
            grad_x = torch.bmm(turned, _patches(grad)).unflatten(2, grad.shape[2:])
        return grad_x, grad_kernel


def _patches(x: Tensor) -> Tensor:
    """The 3×3 neighbourhood of every pixel: ``[n, C, H, W, B]`` to ``[n, C·9, H·W·B]``."""
    n, channels, height, width, batch = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [n, C, 3, 3, B, H, W]
    return windows.permute(0, 1, 2, 3, 5, 6, 4).reshape(n, channels * 9, height * width * batch)


def pointwise_conv(x: Tensor, kernel: Tensor) -> Tensor:
    """1×1 convolution.

    Args:
        x: features ``[n, C_in, H, W, B]``.
        kernel: ``[n, C_out, C_in]``.
    """
    return torch.bmm(kernel, x.flatten(2)).unflatten(2, x.shape[2:])


def conv3x3(x: Tensor, kernel: Tensor) -> Tensor:
    """3×3 convolution with zero padding 1.

    Args:
        x: features ``[n, C_in, H, W, B]``; n may be 1 where all networks share their input.
        kernel: ``[n, C_out, C_in, 3, 3]``.
    """
    small = x.shape[2] * x.shape[3] <= _DENSE_PIXELS
    return (_DenseConv3x3 if small else _PatchConv3x3).apply(x, kernel)


def depthwise_conv3x3(x: Tensor, kernel: Tensor) -> Tensor:
    """3×3 convolution of every channel alone, zero padding 1.

    Args:
        x: features ``[n, C, H, W, B]``.
        kernel: ``[n, C, 3, 3]``.
    """
    # Every channel is a network of its own.
    return conv3x3(x.flatten(0, 1)[:, None], kernel.flatten(0, 1)[:, None, None]).view(x.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A fully connected layer: ``[n, in, B]`` to ``[n, out, B]``, weight ``[n, out, in]``."""
    return torch.baddbmm(bias.unsqueeze(2), weight, x)


def global_average(x: Tensor) -> Tensor:
    """Mean over the pixels: ``[n, C, H, W, B]`` to ``[n, C, B]``."""
    return x.mean((2, 3))


class _Incubate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, seed: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def incubate(features: Tensor, seed: Tensor) -> Tensor:
    """``features``, bitwise, while ``seed`` gets the gradient that it would get in their place.

    The seed must have been computed on detached features, so that nothing of it reaches the
    host. Unlike ``features + (seed - seed.detach())`` this holds for a seed full of inf too.
    """
    return _Incubate.apply(features, seed)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return torch.empty_like(grad).index_copy_(0, order, grad), None


def permute_rows(x: Tensor, order: Tensor) -> Tensor:
    """``x[order]`` for a permutation ``order`` of the rows, with a cheap gradient."""
    return _Permute.apply(x, order)
