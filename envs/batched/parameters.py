"""Parameters of many networks of one shape, as rows of one matrix.

A network's parameters lie flat in one row of a ``[N, P]`` tensor. So optimizer steps, gradient
norms, resets and copies of single rows are plain matrix operations, whatever the network is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from envs.batched.randomness import uniform

NORM_EPSILON = 1e-5
"""Added to the variance in normalisation layers, as in torch."""


@dataclass(frozen=True)
class Parameter:
    """One named tensor of a network: ``value + bound · U(−1, 1)`` at creation."""

    name: str
    shape: tuple[int, ...]
    bound: float = 0.0
    value: float = 0.0


def weight(name: str, *shape: int) -> Parameter:
    """A layer's weight ``[out, in, …]`` with torch's usual init, U(−1/√fan_in, 1/√fan_in)."""
    return Parameter(name, shape, bound=1.0 / math.sqrt(math.prod(shape[1:])))


def bias(name: str, size: int, fan_in: int) -> Parameter:
    """A layer's bias with torch's usual init, U(−1/√fan_in, 1/√fan_in)."""
    return Parameter(name, (size,), bound=1.0 / math.sqrt(fan_in))


def zeros(name: str, *shape: int) -> Parameter:
    """A tensor that starts at 0."""
    return Parameter(name, shape)


def norm(name: str, channels: int) -> tuple[Parameter, Parameter]:
    """Scale (1) and shift (0) of a normalisation layer."""
    return Parameter(f"{name}_scale", (channels,), value=1.0), zeros(f"{name}_shift", channels)


class ParameterLayout:
    """Positions of named tensors in a flat row of parameters.

    Args:
        entries: the tensors, in order.

    Attributes:
        entries: as given.
        sizes, starts: numbers of each, and position of its first one.
        size: numbers in all.

    Examples:
        >>> layout = ParameterLayout([weight("w", 2, 3), zeros("b", 2)])
        >>> layout.size, layout.unflatten(torch.zeros(5, 8))["w"].shape
        (8, torch.Size([5, 2, 3]))
    """

    def __init__(self, entries: Sequence[Parameter]) -> None:
        self.entries = tuple(entries)
        self.sizes = [math.prod(entry.shape) for entry in self.entries]
        *self.starts, self.size = accumulate(self.sizes, initial=0)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """The named tensors ``[n, *shape]`` in flat rows ``[n, size]``, without a copy."""
        parts = flat.split(self.sizes, dim=1)
        return {
            entry.name: part.reshape(len(part), *entry.shape)
            for entry, part in zip(self.entries, parts, strict=True)
        }

    def draw(self, key: Tensor) -> Tensor:
        """Fresh parameters for int64 keys ``[n]``: float32 ``[n, size]``."""
        device = key.device
        counts = torch.tensor(self.sizes, device=device)
        bound, value = torch.tensor(
            [[entry.bound, entry.value] for entry in self.entries],
            dtype=torch.float32,
            device=device,
        ).T
        noise = uniform(key, self.size)
        return noise * bound.repeat_interleave(counts) + value.repeat_interleave(counts)
