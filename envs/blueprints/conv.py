"""The blueprints of convolutional hosts: features are ``[n, C, H, W, B]``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.layers import (
    conv3x3,
    depthwise_conv3x3,
    global_average,
    group_norm,
    linear,
    pointwise_conv,
)
from envs.batched.parameters import ParameterLayout, bias, norm, weight, zeros
from envs.blueprints.base import Blueprint


def _norm_relu(
    params: dict[str, Tensor], name: str, h: Tensor, residual: Tensor | None = None
) -> Tensor:
    scale, shift = params[f"{name}_scale"], params[f"{name}_shift"]
    return group_norm(h, scale, shift, relu=True, residual=residual)


class Norm:
    """Group norm mixed in by a tanh-bounded learned scale per channel; starts as the identity."""

    def layout(self, channels: int) -> ParameterLayout:
        return ParameterLayout([zeros("mix", channels), *norm("norm", channels)])

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        mix = params["mix"].tanh()[:, :, None, None, None]
        return h + mix * (group_norm(h, params["norm_scale"], params["norm_shift"]) - h)


class SqueezeExcitation:
    """Channel attention (Hu et al. 2018), reduction 4.

    The sigmoid is doubled and its layer starts at 0, so every channel's factor starts at 1.
    """

    def layout(self, channels: int) -> ParameterLayout:
        squeezed = max(channels // 4, 1)
        return ParameterLayout(
            [
                weight("squeeze", squeezed, channels),
                bias("squeeze_bias", squeezed, channels),
                zeros("excite", channels, squeezed),
                zeros("excite_bias", channels),
            ]
        )

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        squeezed = F.relu(linear(global_average(h), params["squeeze"], params["squeeze_bias"]))
        factor = 2 * torch.sigmoid(linear(squeezed, params["excite"], params["excite_bias"]))
        return h * factor[:, :, None, None, :]


class ResidualConv:
    """Residual 3×3 conv – group norm – ReLU, ``depth`` times; not the identity at creation."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def layout(self, channels: int) -> ParameterLayout:
        entries = []
        for i in range(self.depth):
            entries += [weight(f"conv{i}", channels, channels, 3, 3), *norm(f"norm{i}", channels)]
        return ParameterLayout(entries)

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        out = h
        for i in range(self.depth):
            residual = h if i == self.depth - 1 else None
            out = _norm_relu(params, f"norm{i}", conv3x3(out, params[f"conv{i}"]), residual)
        return out


class PointwiseConv:
    """Residual group norm – ReLU – 1×1 conv whose kernel starts at 0: the identity.

    The convolution comes last: with a zero kernel in front of norm and ReLU, the norm's output
    is 0, where ReLU passes no gradient, and the seed would never learn.
    """

    def layout(self, channels: int) -> ParameterLayout:
        return ParameterLayout([*norm("norm", channels), zeros("conv", channels, channels)])

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        return h + pointwise_conv(_norm_relu(params, "norm", h), params["conv"])


class DepthwiseConv:
    """Residual depthwise 3×3 – 1×1 – group norm – ReLU; not the identity at creation."""

    def layout(self, channels: int) -> ParameterLayout:
        return ParameterLayout(
            [
                weight("depthwise", channels, 1, 3, 3),
                weight("pointwise", channels, channels),
                *norm("norm", channels),
            ]
        )

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        out = depthwise_conv3x3(h, params["depthwise"].squeeze(2))
        return _norm_relu(params, "norm", pointwise_conv(out, params["pointwise"]), residual=h)


class Bottleneck:
    """Residual 1×1 down – 3×3 – 1×1 up (reduction 4, at least 8 channels); up starts at 0."""

    def layout(self, channels: int) -> ParameterLayout:
        narrow = max(channels // 4, 8)
        return ParameterLayout(
            [
                weight("down", narrow, channels),
                *norm("down_norm", narrow),
                weight("conv", narrow, narrow, 3, 3),
                *norm("conv_norm", narrow),
                zeros("up", channels, narrow),
            ]
        )

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        out = _norm_relu(params, "down_norm", pointwise_conv(h, params["down"]))
        out = _norm_relu(params, "conv_norm", conv3x3(out, params["conv"]))
        return h + pointwise_conv(out, params["up"])


CONV_BLUEPRINTS: dict[str, Blueprint] = {
    "conv_light": ResidualConv(depth=1),
    "attention": SqueezeExcitation(),
    "norm": Norm(),
    "depthwise": DepthwiseConv(),
    "bottleneck": Bottleneck(),
    "conv_small": PointwiseConv(),
    "conv_heavy": ResidualConv(depth=2),
}
"""The seven blueprints that convolutional hosts offer, by name."""
