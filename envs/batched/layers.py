"""Layers of many small convolutional networks at once.

Features are ``[n, C, H, W, B]``: n networks, and the B examples of a minibatch **innermost**.
A 1×1 convolution is then one batched matrix product with a long inner dimension, a row of
networks is a contiguous block, and every elementwise kernel runs along contiguous memory; on
CPUs this is faster than grouped convolutions in either memory format. Weights have a leading n.
No operation mixes networks, so a NaN in one never reaches another.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.batched.parameters import NORM_EPSILON

_KERNEL_DEVICE = "cpu"
"""Device type on which the kernels of envs.batched.kernels run."""


@cache
def _kernels() -> ModuleType:
    """The kernels; Numba, which compiles them, is loaded by the first layer that runs."""
    from envs.batched import kernels

    return kernels


def _run(name: str, *args: Any) -> None:
    """Call the kernel of that name with the memory of contiguous tensors."""
    kernel = getattr(_kernels(), name)
    kernel(*(arg.numpy(force=True) if isinstance(arg, Tensor) else arg for arg in args))


def _statistics_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Room for mean and 1/σ of every example: ``[n, B]`` each."""
    mean, rstd = x.new_empty(2, x.shape[0], x.shape[-1]).unbind()
    return mean, rstd


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, relu: bool, residual: Tensor | None
    ) -> Tensor:
        x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
        residual = None if residual is None else residual.contiguous()
        out = torch.empty_like(x)
        mean, rstd = _statistics_of(x)
        _run("norm_forward", x, scale, shift, residual, relu, out, mean, rstd)
        ctx.save_for_backward(x, scale, shift, mean, rstd)
        ctx.relu = relu
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None, Tensor | None]:
        x, scale, shift = ctx.saved_tensors[:3]
        grad = grad.contiguous()
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_scale, grad_shift = torch.empty_like(scale), torch.empty_like(shift)
        inputs, outputs = (grad, *ctx.saved_tensors), (grad_x, grad_scale, grad_shift)
        _run("norm_backward", *inputs, ctx.relu, *outputs)
        return grad_x, grad_scale, grad_shift, None, grad if ctx.needs_input_grad[4] else None


class _GroupNormPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
        n, channels, height, width, batch = x.shape
        out = x.new_empty(n, channels, height // 2, width // 2, batch)
        chosen = torch.empty_like(out, dtype=torch.uint8)
        mean, rstd = _statistics_of(x)
        _run("norm_pool_forward", x, scale, shift, out, chosen, mean, rstd)
        ctx.save_for_backward(x, scale, shift, mean, rstd, chosen)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, scale, shift, mean, rstd, chosen = ctx.saved_tensors
        grad_normed = torch.empty_like(x)
        _run("unpool", grad.contiguous(), chosen, grad_normed)
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_scale, grad_shift = torch.empty_like(scale), torch.empty_like(shift)
        inputs = (grad_normed, x, scale, shift, mean, rstd)
        _run("norm_backward", *inputs, False, grad_x, grad_scale, grad_shift)
        return grad_x, grad_scale, grad_shift


def _plain_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """For devices without a kernel."""
    variance, mean = torch.var_mean(x, (1, 2, 3), correction=0, keepdim=True)
    normed = (x - mean) * (variance + NORM_EPSILON).rsqrt()
    return torch.addcmul(shift[:, :, None, None, None], normed, scale[:, :, None, None, None])


def group_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Group normalisation with one group (Wu & He 2018), and what often follows it.

    Args:
        x: features ``[n, C, H, W, B]``.
        scale: ``[n, C]``.
        shift: ``[n, C]``.
        relu: ReLU of it.
        residual: added at the end, shaped like ``x``.
    """
    if x.device.type == _KERNEL_DEVICE:
        return _GroupNorm.apply(x, scale, shift, relu, residual)
    out = _plain_norm(x, scale, shift)
    out = F.relu(out) if relu else out
    return out if residual is None else out + residual


def group_norm_pool_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """ReLU of 2×2 max pooling of :func:`group_norm`; height and width must be even."""
    if x.device.type == _KERNEL_DEVICE:
        return _GroupNormPoolReLU.apply(x, scale, shift)
    out = _plain_norm(x, scale, shift).movedim(-1, 1)
    return F.relu(F.max_pool3d(out, (1, 2, 2))).movedim(1, -1)


class _DenseConv3x3(torch.autograd.Function):
    """As one fully connected layer, whose matrix is mostly zeros: the fastest on tiny maps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        n, out_channels, in_channels = kernel.shape[:3]
        height, width = x.shape[2:4]
        pixels = height * width
        matrix = kernel.new_empty(n, out_channels, pixels, in_channels, pixels)
        _run("dense_matrix", kernel.flatten(3).contiguous(), height, width, matrix)
        ctx.save_for_backward(x, matrix, kernel)
        out = torch.matmul(matrix.flatten(3).flatten(1, 2), x.flatten(1, 3))
        return out.view(n, out_channels, height, width, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, matrix, kernel = ctx.saved_tensors
        grad = grad.flatten(1, 3)
        grad_matrix = torch.matmul(grad, x.flatten(1, 3).transpose(1, 2)).view(matrix.shape)
        grad_kernel = kernel.new_empty(*kernel.shape[:3], 9)
        _run("dense_matrix_backward", grad_matrix, *x.shape[2:4], grad_kernel)
        grad_x = None
        if ctx.needs_input_grad[0]:
            transposed = matrix.flatten(3).flatten(1, 2).transpose(1, 2)
            grad_x = torch.bmm(transposed, grad).view(x.shape)
        return grad_x, grad_kernel.view(kernel.shape)


_DENSE_PIXELS = 16
"""Largest map for which :class:`_DenseConv3x3` wins."""


class _DepthwiseConv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        x, kernel = x.contiguous(), kernel.contiguous()
        out = torch.empty_like(x)
        _run("depthwise_forward", x, kernel, out)
        ctx.save_for_backward(x, kernel)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, kernel = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_kernel = torch.empty_like(kernel)
        _run("depthwise_backward", grad.contiguous(), x, kernel, grad_x, grad_kernel)
        return grad_x, grad_kernel


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


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        x, kernel = x.contiguous(), kernel.contiguous()
        scale, shift = scale.contiguous(), shift.contiguous()
        out = x.new_empty(*kernel.shape, x.shape[1] // 2 - 1, x.shape[2])
        mean, rstd = x.new_empty(2, len(kernel), x.shape[2]).unbind()
        _run("stem_forward", x, kernel, scale, shift, out, mean, rstd)
        ctx.save_for_backward(x, kernel, scale, shift, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        gradients = [torch.empty_like(weight) for weight in ctx.saved_tensors[1:4]]
        _run("stem_backward", grad.contiguous(), *ctx.saved_tensors, *gradients)
        grad_kernel, grad_scale, grad_shift = gradients
        return None, grad_kernel, grad_scale, grad_shift


def pointwise_stem(x: Tensor, kernel: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """1×1 convolution of one-channel images, :func:`group_norm_pool_relu`, in closed form.

    Channel c of the convolution is k_c · pixel, so the norm only needs the image's mean and
    variance, and the pooled value is an increasing or decreasing function of the pixel: it is
    reached at the window's largest or smallest pixel. A quarter of the work, exactly the same
    function (and gradient) of the same parameters.

    Args:
        x: ``[n or 1, 2·P + 2, B]``: largest and smallest pixel of each of the P windows, mean
            and variance of the image. They get no gradient.
        kernel: ``[n, C]``.
        scale: ``[n, C]``.
        shift: ``[n, C]``.

    Returns:
        ``[n, C, P, B]``.
    """
    if x.device.type == _KERNEL_DEVICE:
        return _Stem.apply(x, kernel, scale, shift)
    windows = x.shape[1] // 2 - 1
    largest, smallest, mean, variance = x.split([windows, windows, 1, 1], dim=1)
    kernel, scale, shift = kernel.unsqueeze(2), scale.unsqueeze(2), shift.unsqueeze(2)
    kernel_mean = kernel.mean(1, keepdim=True)
    kernel_variance = (kernel - kernel_mean).square().mean(1, keepdim=True)
    # Variance of k·x over channels and pixels, k and x independent: both terms are ≥ 0.
    spread = kernel.square().mean(1, keepdim=True) * variance + kernel_variance * mean.square()
    rstd = (spread + NORM_EPSILON).rsqrt()  # [n, 1, B]
    gain = kernel * scale  # [n, C, 1]
    offset = torch.addcmul(shift, scale, kernel_mean * mean * rstd, value=-1)
    extreme = torch.where(gain.unsqueeze(3) >= 0, largest.unsqueeze(1), smallest.unsqueeze(1))
    return F.relu(torch.addcmul(offset.unsqueeze(2), extreme, (gain * rstd).unsqueeze(2)))


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
    dense = x.device.type == _KERNEL_DEVICE and x.shape[2] * x.shape[3] <= _DENSE_PIXELS
    return (_DenseConv3x3 if dense else _PatchConv3x3).apply(x, kernel)


def depthwise_conv3x3(x: Tensor, kernel: Tensor) -> Tensor:
    """3×3 convolution of every channel alone, zero padding 1.

    Args:
        x: features ``[n, C, H, W, B]``.
        kernel: ``[n, C, 3, 3]``.
    """
    if x.device.type == _KERNEL_DEVICE:
        return _DepthwiseConv3x3.apply(x, kernel)
    # Every channel is a network of its own.
    return conv3x3(x.flatten(0, 1)[:, None], kernel.flatten(0, 1)[:, None, None]).view(x.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A fully connected layer: ``[n, in, B]`` to ``[n, out, B]``, weight ``[n, out, in]``."""
    return torch.baddbmm(bias.unsqueeze(2), weight, x)


def global_average(x: Tensor) -> Tensor:
    """Mean over the pixels: ``[n, C, H, W, B]`` to ``[n, C, B]``."""
    return x.mean((2, 3))


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
