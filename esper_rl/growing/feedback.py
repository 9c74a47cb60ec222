"""Shortcut learning: what a policy does when it isn't told what became of its last action."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from envs.observation import ACTION_FEEDBACK, feature_columns

COLUMNS = feature_columns(*ACTION_FEEDBACK)
"""Columns of the observation that tell what became of the last action."""


def zeroed(observation: Tensor) -> Tensor:
    """A copy of ``observation [N, ..., features]`` whose feedback columns are 0."""
    hidden = observation.clone()
    hidden[..., COLUMNS] = 0.0
    return hidden


def from_row_before(observation: Tensor, columns: list[int]) -> Tensor:
    """A copy of ``observation [N, ..., features]`` with some columns of the row before's."""
    other = observation.clone()
    other[..., columns] = observation.roll(1, dims=0)[..., columns]
    return other


def permuted(observation: Tensor) -> Tensor:
    """A copy of ``observation [N, ..., features]`` in which each row sees the one before's."""
    return from_row_before(observation, COLUMNS)


HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {"zeroed": zeroed, "permuted": permuted}
"""Ways to hide the feedback, by name."""
