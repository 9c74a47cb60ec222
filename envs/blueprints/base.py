"""Interface of a blueprint: the plan of a seed, for many rows at once."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from envs.batched.parameters import ParameterLayout


class Blueprint(Protocol):
    """A small module s that maps the features h at a slot to features of the same shape."""

    def layout(self, channels: int) -> ParameterLayout:
        """Its parameters, and their state at creation, at a slot of that many channels."""
        ...

    def __call__(self, params: dict[str, Tensor], h: Tensor) -> Tensor:
        """s(h) for n rows; every tensor has a leading n."""
        ...
