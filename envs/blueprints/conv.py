"""The blueprints of convolutional hosts: features are ``[n, C, H, W, B]``."""

from __future__ import annotations

from functools import partial

from envs.batched.layers import (
    Conv3x3,
    DepthwiseConv3x3,
    GlobalAverage,
    Linear,
    Norm,
    PointwiseConv,
    ReLU,
    Sigmoid,
)
from envs.batched.programs import Layer, Mix, Program, Residual, ScaleChannels
from envs.blueprints.base import Blueprint


def mixed_norm(channels: int) -> Program:
    """Group norm mixed in by a tanh-bounded learned scale per channel; starts as the identity."""
    return Mix("mix", channels, Norm("norm", channels))


def squeeze_excitation(channels: int) -> Program:
    """Channel attention (Hu et al. 2018), reduction 4.

    The sigmoid is doubled and its layer starts at 0, so every channel's factor starts at 1.
    """
    squeezed = max(channels // 4, 1)
    return ScaleChannels(
        GlobalAverage(),
        Linear("squeeze", channels, squeezed),
        ReLU(),
        Linear("excite", squeezed, channels, zero=True),
        Sigmoid(times=2),
    )


def residual_conv(channels: int, depth: int) -> Program:
    """Residual 3×3 conv – group norm – ReLU, ``depth`` times; not the identity at creation."""
    layers: list[Layer] = []
    for i in range(depth):
        layers += [Conv3x3(f"conv{i}", channels, channels), Norm(f"norm{i}", channels, relu=True)]
    return Residual(*layers)


def pointwise_conv(channels: int) -> Program:
    """Residual group norm – ReLU – 1×1 conv whose kernel starts at 0: the identity.

    The convolution comes last: with a zero kernel in front of norm and ReLU, the norm's output
    is 0, where ReLU passes no gradient, and the seed would never learn.
    """
    return Residual(
        Norm("norm", channels, relu=True), PointwiseConv("conv", channels, channels, zero=True)
    )


def depthwise_conv(channels: int) -> Program:
    """Residual depthwise 3×3 – 1×1 – group norm – ReLU; not the identity at creation."""
    return Residual(
        DepthwiseConv3x3("depthwise", channels),
        PointwiseConv("pointwise", channels, channels),
        Norm("norm", channels, relu=True),
    )


def bottleneck(channels: int) -> Program:
    """Residual 1×1 down – 3×3 – 1×1 up (reduction 4, at least 8 channels); up starts at 0."""
    narrow = max(channels // 4, 8)
    return Residual(
        PointwiseConv("down", channels, narrow),
        Norm("down_norm", narrow, relu=True),
        Conv3x3("conv", narrow, narrow),
        Norm("conv_norm", narrow, relu=True),
        PointwiseConv("up", narrow, channels, zero=True),
    )


CONV_BLUEPRINTS: dict[str, Blueprint] = {
    "conv_light": partial(residual_conv, depth=1),
    "attention": squeeze_excitation,
    "norm": mixed_norm,
    "depthwise": depthwise_conv,
    "bottleneck": bottleneck,
    "conv_small": pointwise_conv,
    "conv_heavy": partial(residual_conv, depth=2),
}
"""The seven blueprints that convolutional hosts offer, by name."""
