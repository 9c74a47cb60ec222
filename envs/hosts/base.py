"""What a host is: a network in segments, with a slot after every segment but the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from envs.blueprints.base import Blueprint
from envs.parameters import ParameterLayout


class Segment(Protocol):
    """A stretch of the host between two slots, for many rows at once."""

    layout: ParameterLayout

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Features of n rows after the segment; every parameter has a leading n."""
        ...


class Host(Protocol):
    """A network being grown, batched over rows.

    The first segment takes examples as :meth:`prepare` made them, ``[n or 1, features, B]``; the
    last one gives logits ``[n, classes, B]``.
    """

    segments: Sequence[Segment]
    slot_channels: Sequence[int]
    blueprints: Mapping[str, Blueprint]
    activation_size: int
    """Numbers in the largest activation of one example: how many rows fit the cache."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """What the first segment needs of raw inputs ``[M, …]``: float32 ``[M, features]``."""
        ...

    def pool(self, h: Tensor) -> Tensor:
        """Features at a slot averaged over positions: ``[n, C, B]`` (what GATE looks at)."""
        ...
