"""Layers of many networks, in PyTorch and as instructions: see :mod:`envs.batched.programs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.instructions import DRAWN, Activation, Assembler, Buffer, Opcode
from envs.batched.parameters import NORM_EPSILON, Parameter, bias, norm, weight, zeros
from envs.batched.programs import Params

# -- layers with weights ----------------------------------------------------------------------


@dataclass(frozen=True)
class PointwiseConv:
    """1×1 convolution without bias, ``[n, inputs, H, W, B]`` to ``[n, outputs, H, W, B]``.

    Args:
        name: of its weight ``[outputs, inputs]``.
        inputs, outputs: channels.
        zero: start at 0 instead of torch's usual init.
    """

    name: str
    inputs: int
    outputs: int
    zero: bool = False

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [(zeros if self.zero else weight)(self.name, self.outputs, self.inputs)]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return torch.bmm(params[self.name], x.flatten(2)).unflatten(2, x.shape[2:])

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        return _emit_conv(code, x, self, size=1)


@dataclass(frozen=True)
class Linear:
    """A fully connected layer, ``[n, inputs, …, B]`` to ``[n, outputs, …, B]``.

    Every pixel or position goes through it by itself.

    Args:
        name: of its weight ``[outputs, inputs]``; the bias is ``{name}_bias``.
        inputs, outputs: numbers of an example.
        zero: start at 0 instead of torch's usual init.
    """

    name: str
    inputs: int
    outputs: int
    zero: bool = False

    @property
    def parameters(self) -> Sequence[Parameter]:
        if self.zero:
            shapes = {self.name: (self.outputs, self.inputs), f"{self.name}_bias": (self.outputs,)}
            return [zeros(name, *shape) for name, shape in shapes.items()]
        return [
            weight(self.name, self.outputs, self.inputs),
            bias(f"{self.name}_bias", self.outputs, self.inputs),
        ]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        bias = params[f"{self.name}_bias"].unsqueeze(2)
        return torch.baddbmm(bias, params[self.name], x.flatten(2)).unflatten(2, x.shape[2:])

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start = code.columns(self.parameters)
        out = code.buffer(self.outputs, x.height, x.width)
        return code.line(Opcode.CONV, x, out, parameters=start, flag=1)


@dataclass(frozen=True)
class Conv3x3:
    """3×3 convolution without bias, zero padding 1.

    Args:
        name: of its weight ``[outputs, inputs, 3, 3]``.
        inputs, outputs: channels.
    """

    name: str
    inputs: int
    outputs: int

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [weight(self.name, self.outputs, self.inputs, 3, 3)]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        patches = _patches(x).flatten(3).flatten(1, 2)
        return torch.bmm(params[self.name].flatten(2), patches).unflatten(2, x.shape[2:])

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        return _emit_conv(code, x, self, size=3)


@dataclass(frozen=True)
class DrawnConv:
    """1×1 or 3×3 convolution without bias: every network has both kernels and uses one of them.

    Which one is decided by the sign of a number that is drawn like a weight and never learns.

    Args:
        name: its parameters are ``{name}_coin [1]``, above 0 for 3×3, ``{name}_1x1
            [outputs, inputs]`` and ``{name}_3x3 [outputs, inputs, 3, 3]``.
        inputs, outputs: channels.
    """

    name: str
    inputs: int
    outputs: int

    @property
    def _kernels(self) -> tuple[PointwiseConv, Conv3x3]:
        return (
            PointwiseConv(f"{self.name}_1x1", self.inputs, self.outputs),
            Conv3x3(f"{self.name}_3x3", self.inputs, self.outputs),
        )

    @property
    def parameters(self) -> Sequence[Parameter]:
        small, large = self._kernels
        coin = Parameter(f"{self.name}_coin", (1,), bound=1.0)
        return [coin, *small.parameters, *large.parameters]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        wide = (params[f"{self.name}_coin"] > 0)[:, :, None, None, None]
        small, large = self._kernels
        return torch.where(wide, large(params, x), small(params, x))

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        return _emit_conv(code, x, self, size=DRAWN)


def _emit_conv(
    code: Assembler, x: Buffer, layer: PointwiseConv | Conv3x3 | DrawnConv, size: int
) -> Buffer:
    start = code.columns(layer.parameters)
    out = code.buffer(layer.outputs, x.height, x.width)
    return code.line(Opcode.CONV, x, out, parameters=start, size=size, padding=size // 2)


@dataclass(frozen=True)
class DepthwiseConv3x3:
    """3×3 convolution of every channel alone, without bias, zero padding 1.

    Args:
        name: of its weight ``[channels, 1, 3, 3]``.
        channels: of input and output.
    """

    name: str
    channels: int

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [weight(self.name, self.channels, 1, 3, 3)]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        taps = params[self.name].flatten(2)[..., None, None, None]
        return (taps * _patches(x)).sum(2)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start = code.columns(self.parameters)
        out = code.buffer(self.channels, x.height, x.width)
        return code.line(Opcode.DEPTHWISE, x, out, parameters=start, size=3, padding=1)


def _patches(x: Tensor) -> Tensor:
    """The 3×3 neighbourhood of every pixel: ``[n, C, H, W, B]`` to ``[n, C, 9, H, W, B]``."""
    height, width = x.shape[2:4]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.stack(shifted, dim=2)


def normalise(params: Params, name: str, x: Tensor, over: tuple[int, ...]) -> Tensor:
    """Mean 0 and variance 1 over some dimensions of ``[n, C, H, W, B]``, then scale and shift."""
    scale, shift = (params[f"{name}_{part}"][:, :, None, None, None] for part in ("scale", "shift"))
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    return torch.addcmul(shift, (x - mean) * (variance + NORM_EPSILON).rsqrt(), scale)


@dataclass(frozen=True)
class Norm:
    """Group normalisation with one group (Wu & He 2018), and what often follows it.

    Args:
        name: of its parameters ``{name}_scale`` and ``{name}_shift``, ``[channels]`` each.
        channels: of input and output.
        relu: ReLU of it.
        pool: ReLU of 2×2 max pooling of it, which is the same as pooling after ReLU for less
            work; height and width must be even.
    """

    name: str
    channels: int
    relu: bool = False
    pool: bool = False

    @property
    def parameters(self) -> Sequence[Parameter]:
        return norm(self.name, self.channels)

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        out = normalise(params, self.name, x, over=(1, 2, 3))
        if self.pool:
            out = F.max_pool3d(out.movedim(-1, 1), (1, 2, 2)).movedim(1, -1)
        return F.relu(out) if self.relu or self.pool else out

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start = code.columns(self.parameters)
        if not self.pool:
            out = code.buffer(x.channels, x.height, x.width)
            flag = int(self.relu)
            return code.line(
                Opcode.NORM, x, out, scratch=code.buffer(2), parameters=start, flag=flag,
                stride=x.channels,
            )  # fmt: skip
        out = code.buffer(x.channels, x.height // 2, x.width // 2)
        # Statistics, which pixel was taken, and room for the gradient before the pooling.
        kept = code.buffer(2 + out.size + x.size)
        return code.line(Opcode.NORM_POOL, x, out, scratch=kept, parameters=start)


@dataclass(frozen=True)
class PointwiseStem:
    """1×1 convolution of one-channel images, norm with pooling, in closed form.

    Channel c of the convolution is w_c · pixel, so the norm only needs the image's mean and
    variance, and the pooled value is an increasing or decreasing function of the pixel: it is
    reached at the window's largest or smallest pixel. A quarter of the work, exactly the same
    function (and gradient) of the same parameters.

    Takes ``[n, 2·P + 2, B]``: largest and smallest pixel of each of the P windows, mean and
    variance of the image. They get no gradient.

    Args:
        channels: of the output.
        height, width: of the output; their product is P.
    """

    channels: int
    height: int
    width: int

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [weight("conv", self.channels, 1), *norm("norm", self.channels)]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        windows = self.height * self.width
        largest, smallest, mean, variance = x.split([windows, windows, 1, 1], dim=1)
        taps = params["conv"]  # [n, C, 1]
        scale, shift = params["norm_scale"].unsqueeze(2), params["norm_shift"].unsqueeze(2)
        taps_mean = taps.mean(1, keepdim=True)
        taps_variance = (taps - taps_mean).square().mean(1, keepdim=True)
        # Variance of w·x over channels and pixels, w and x independent: both terms are ≥ 0.
        spread = taps.square().mean(1, keepdim=True) * variance + taps_variance * mean.square()
        rstd = (spread + NORM_EPSILON).rsqrt()  # [n, 1, B]
        gain = taps * scale
        offset = torch.addcmul(shift, scale, taps_mean * mean * rstd, value=-1)
        extreme = torch.where(gain.unsqueeze(3) >= 0, largest.unsqueeze(1), smallest.unsqueeze(1))
        out = F.relu(torch.addcmul(offset.unsqueeze(2), extreme, (gain * rstd).unsqueeze(2)))
        return out.unflatten(2, (self.height, self.width))

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start = code.columns(self.parameters)
        out = code.buffer(self.channels, self.height, self.width)
        return code.line(Opcode.STEM, x, out, scratch=code.buffer(2), parameters=start)


# -- layers without weights -------------------------------------------------------------------


class _Plain:
    """A layer without parameters."""

    parameters: Sequence[Parameter] = ()


@dataclass(frozen=True)
class Reshape(_Plain):
    """Flat examples ``[n, C·H·W, B]`` as images ``[n, C, H, W, B]``.

    Args:
        channels, height, width: of the images.
    """

    channels: int
    height: int
    width: int

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.channels, self.height, self.width))

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        return Buffer(x.start, self.channels, self.height, self.width)


class GlobalAverage(_Plain):
    """Mean over the pixels: ``[n, C, H, W, B]`` to ``[n, C, B]``."""

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        return code.line(Opcode.AVERAGE, x, code.buffer(x.channels))


class ReLU(_Plain):
    """max(x, 0)."""

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return F.relu(x)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        out = code.buffer(x.channels, x.height, x.width)
        return code.line(Opcode.ACTIVATE, x, out, size=Activation.RELU, flag=1)


@dataclass(frozen=True)
class Sigmoid(_Plain):
    """σ(x), times an integer."""

    times: int = 1

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return self.times * torch.sigmoid(x)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        out = code.buffer(x.channels, x.height, x.width)
        return code.line(Opcode.ACTIVATE, x, out, size=Activation.SIGMOID, flag=self.times)
