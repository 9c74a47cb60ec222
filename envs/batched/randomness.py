"""Random numbers that depend on keys alone, never on who else draws.

A row's host, its seeds and its shuffles must be the same whatever the number of rows, so every
draw is a hash of (seed, row, episode, purpose, …) instead of the next number of one shared
generator. The hash is SplitMix64 (Steele, Lea & Flood 2014), on int64 tensors, which wrap around.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_A = _signed(0xBF58476D1CE4E5B9)
_MIX_B = _signed(0x94D049BB133111EB)


class Stream(IntEnum):
    """Purposes of a draw; streams of different purpose share no numbers."""

    HOST = 0
    SEED = 1
    SHUFFLE = 2
    POLICY = 3


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_A
    x = (x ^ _shift_right(x, 27)) * _MIX_B
    return x ^ _shift_right(x, 31)


def fold(key: Tensor, *values: Tensor | int) -> Tensor:
    """A new key from a key and more numbers, elementwise.

    Args:
        key: int64, any shape.
        *values: int64 tensors that broadcast with ``key``, or integers.

    Examples:
        >>> rows = torch.arange(3)
        >>> fold(rows, 7).shape
        torch.Size([3])
    """
    for value in values:
        key = _mix(key * _GOLDEN + value)
    return _mix(key)


def random_bits(key: Tensor, count: int) -> Tensor:
    """``count`` non-negative 31-bit integers for every key.

    Args:
        key: int64 ``[n]``.
        count: how many numbers a key.

    Returns:
        int32 ``[n, count]``.
    """
    counter = torch.arange(1, count + 1, device=key.device) * _GOLDEN
    return _shift_right(_mix(key[:, None] + counter), 33).int()


def uniform(key: Tensor, count: int) -> Tensor:
    """Uniform numbers in [−1, 1): float32 ``[n, count]`` for keys ``[n]``."""
    return random_bits(key, count).bitwise_right_shift(7).float().mul_(2.0**-23).sub_(1.0)


def normal(key: Tensor, count: int) -> Tensor:
    """Normal numbers of mean 0 and variance 1: float32 ``[n, count]`` for keys ``[n]``.

    By Box and Muller (1958), from two of :func:`random_bits` each.
    """
    radius, angle = (random_bits(fold(key, 1 + i), count).double() for i in range(2))
    far = ((radius + 0.5) * 2.0**-31).log_().mul_(-2.0).sqrt_()
    return (far * (angle * (math.tau * 2.0**-31)).cos_()).float()


def shuffled(key: Tensor, size: int, count: int) -> Tensor:
    """The first ``count`` entries of a random permutation of ``range(size)`` for every key.

    Returns:
        int64 ``[n, count]``, without repetition along a row.
    """
    return random_bits(key, size).argsort(dim=1)[:, :count]
