"""The blueprints of transformer hosts: features are ``[n, C, 1, T, B]``, and all is causal."""

from __future__ import annotations

from envs.batched.layers import Linear, PointwiseConv, ReLU
from envs.batched.programs import Mix, Program, Residual
from envs.batched.sequences import CausalAttention, LayerNorm
from envs.blueprints.base import Blueprint

WINDOW = 8
"""Positions that ``flex_attention`` sees, a position itself included."""


def mixed_norm(channels: int) -> Program:
    """Layer norm mixed in by a tanh-bounded learned scale per channel; starts as the identity."""
    return Mix("mix", channels, LayerNorm("norm", channels))


def attention(window: int | None = None) -> Blueprint:
    """Residual layer norm – causal self-attention, whose output starts at 0: the identity."""

    def program(channels: int) -> Program:
        return Residual(LayerNorm("norm", channels), CausalAttention("attention", channels, window))

    return program


def low_rank(rank: int) -> Blueprint:
    """Residual adapter of low rank (Hu et al. 2022), whose way up starts at 0: the identity."""

    def program(channels: int) -> Program:
        return Residual(
            PointwiseConv("down", channels, rank),
            PointwiseConv("up", rank, channels, zero=True),
        )

    return program


def feed_forward(expansion: int) -> Blueprint:
    """Residual layer norm – linear – ReLU – linear, whose last layer starts at 0: the identity."""

    def program(channels: int) -> Program:
        return Residual(
            LayerNorm("norm", channels),
            Linear("up", channels, expansion * channels),
            ReLU(),
            Linear("down", expansion * channels, channels, zero=True),
        )

    return program


TEXT_BLUEPRINTS: dict[str, Blueprint] = {
    "attention": attention(),
    "norm": mixed_norm,
    "lora": low_rank(8),
    "lora_large": low_rank(32),
    "mlp_small": feed_forward(2),
    "mlp": feed_forward(4),
    "flex_attention": attention(WINDOW),
}
"""The seven blueprints that transformer hosts offer, by name."""
