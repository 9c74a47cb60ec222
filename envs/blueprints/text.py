"""The blueprints of transformer hosts: features are ``[n, C, 1, T, B]``, and all is causal."""

from __future__ import annotations

from functools import partial

from envs.batched.layers import Linear, PointwiseConv, ReLU
from envs.batched.programs import Mix, Program, Residual
from envs.batched.sequences import CausalAttention, LayerNorm
from envs.blueprints.base import Blueprint

WINDOW = 8
"""Positions that ``flex_attention`` sees, a position itself included."""


def mixed_norm(channels: int) -> Program:
    """Layer norm mixed in by a tanh-bounded learned scale per channel; starts as the identity."""
    return Mix("mix", channels, LayerNorm("norm", channels))


def attention(channels: int, window: int | None = None) -> Program:
    """Residual layer norm – causal self-attention, whose output starts at 0: the identity."""
    return Residual(LayerNorm("norm", channels), CausalAttention("attention", channels, window))


def low_rank(channels: int, rank: int) -> Program:
    """Residual adapter of low rank (Hu et al. 2022), whose way up starts at 0: the identity."""
    return Residual(
        PointwiseConv("down", channels, rank),
        PointwiseConv("up", rank, channels, zero=True),
    )


def feed_forward(channels: int, expansion: int) -> Program:
    """Residual layer norm – linear – ReLU – linear, whose last layer starts at 0: the identity."""
    return Residual(
        LayerNorm("norm", channels),
        Linear("up", channels, expansion * channels),
        ReLU(),
        Linear("down", expansion * channels, channels, zero=True),
    )


TEXT_BLUEPRINTS: dict[str, Blueprint] = {
    "attention": attention,
    "norm": mixed_norm,
    "lora": partial(low_rank, rank=8),
    "lora_large": partial(low_rank, rank=32),
    "mlp_small": partial(feed_forward, expansion=2),
    "mlp": partial(feed_forward, expansion=4),
    "flex_attention": partial(attention, window=WINDOW),
}
"""The seven blueprints that transformer hosts offer, by name."""
