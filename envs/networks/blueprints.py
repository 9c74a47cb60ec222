"""The built-in blueprints: functions that make a seed for a slot of so many channels.

Those of convolutional hosts take and give ``[B, C, H, W]``; those of transformers ``[B, T, C]``,
where a position sees nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from envs.networks.layers import (
    CausalAttention,
    MixedNorm,
    Residual,
    SqueezeExcitation,
    conv,
    zero,
)

Blueprint = Callable[[int], nn.Module]
"""Makes a seed for a slot of so many channels: features to features of the same shape."""

WINDOW = 8
"""Positions that ``flex_attention`` sees, a position itself included."""


# -- convolutional ----------------------------------------------------------------------------


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(1, channels), nn.ReLU()]


def mixed_group_norm(channels: int) -> nn.Module:
    """Group norm mixed in by a tanh-bounded learned scale per channel; starts as the identity."""
    return MixedNorm(nn.GroupNorm(1, channels), channels)


def residual_conv(channels: int, depth: int) -> nn.Module:
    """Residual 3×3 conv – group norm – ReLU, ``depth`` times; not the identity at creation."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [conv(channels, channels, 3), *_norm_relu(channels)]
    return Residual(*layers)


def pointwise_conv(channels: int) -> nn.Module:
    """Residual group norm – ReLU – 1×1 conv whose kernel starts at 0: the identity.

    The convolution comes last: with a zero kernel in front of norm and ReLU, the norm's output
    is 0, where ReLU passes no gradient, and the seed would never learn.
    """
    return Residual(*_norm_relu(channels), zero(conv(channels, channels, 1)))


def depthwise_conv(channels: int) -> nn.Module:
    """Residual depthwise 3×3 – 1×1 – group norm – ReLU; not the identity at creation."""
    return Residual(
        conv(channels, channels, 3, groups=channels),
        conv(channels, channels, 1),
        *_norm_relu(channels),
    )


def bottleneck(channels: int) -> nn.Module:
    """Residual 1×1 down – 3×3 – 1×1 up (reduction 4, at least 8 channels); up starts at 0."""
    narrow = max(channels // 4, 8)
    return Residual(
        conv(channels, narrow, 1),
        *_norm_relu(narrow),
        conv(narrow, narrow, 3),
        *_norm_relu(narrow),
        zero(conv(narrow, channels, 1)),
    )


CONV_BLUEPRINTS: dict[str, Blueprint] = {
    "conv_light": partial(residual_conv, depth=1),
    "attention": SqueezeExcitation,
    "norm": mixed_group_norm,
    "depthwise": depthwise_conv,
    "bottleneck": bottleneck,
    "conv_small": pointwise_conv,
    "conv_heavy": partial(residual_conv, depth=2),
}
"""The seven blueprints that convolutional hosts offer, by name."""


# -- transformers -----------------------------------------------------------------------------


def mixed_layer_norm(channels: int) -> nn.Module:
    """Layer norm mixed in by a tanh-bounded learned scale per channel; starts as the identity."""
    return MixedNorm(nn.LayerNorm(channels), channels, channels_last=True)


def attention(channels: int, window: int | None = None) -> nn.Module:
    """Residual layer norm – causal self-attention, whose output starts at 0: the identity."""
    return Residual(nn.LayerNorm(channels), CausalAttention(channels, window))


def low_rank(channels: int, rank: int) -> nn.Module:
    """Residual adapter of low rank (Hu et al. 2022), whose way up starts at 0: the identity."""
    return Residual(
        nn.Linear(channels, rank, bias=False), zero(nn.Linear(rank, channels, bias=False))
    )


def feed_forward(channels: int, expansion: int) -> nn.Module:
    """Residual layer norm – linear – ReLU – linear, whose last layer starts at 0: the identity."""
    wide = expansion * channels
    return Residual(
        nn.LayerNorm(channels),
        nn.Linear(channels, wide),
        nn.ReLU(),
        zero(nn.Linear(wide, channels)),
    )


TEXT_BLUEPRINTS: dict[str, Blueprint] = {
    "attention": attention,
    "norm": mixed_layer_norm,
    "lora": partial(low_rank, rank=8),
    "lora_large": partial(low_rank, rank=32),
    "mlp_small": partial(feed_forward, expansion=2),
    "mlp": partial(feed_forward, expansion=4),
    "flex_attention": partial(attention, window=WINDOW),
}
"""The seven blueprints that transformer hosts offer, by name."""

DENSE_BLUEPRINTS: dict[str, Blueprint] = {
    name: TEXT_BLUEPRINTS[name] for name in ("norm", "lora", "lora_large", "mlp_small", "mlp")
}
"""The five of these that hosts offer whose features are ``[B, C]``: those without positions."""
