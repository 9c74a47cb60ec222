"""Interface of a blueprint: the plan of a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from envs.batched.parameters import ParameterLayout


class Segment(Protocol):
    """A stretch of a network, for many rows at once; most are an
    :class:`envs.batched.layers.Program`.

    Attributes:
        layout: its parameters, and their state at creation.
    """

    layout: ParameterLayout

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Features of n rows after the segment; every parameter has a leading n."""
        ...


Blueprint = Callable[[int], nn.Module | Segment]
"""Makes a seed for a slot of so many channels: features to features of the same shape, for
an ordinary module ``[B, C, …]`` (``[B, T, C]`` where the host says so)."""
