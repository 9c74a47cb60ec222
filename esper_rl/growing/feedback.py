"""Shortcut learning: what a policy does when it isn't told what became of its last action."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
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


class WithoutFeedback(TensorDictModuleBase):
    """A policy that is shown another observation than there is.

    Args:
        policy: what plays; it finds its own observation again afterwards.
        hide: makes the other observation, one of :data:`HIDDEN`.
    """

    def __init__(self, policy: TensorDictModuleBase, hide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.policy, self.hide = policy, hide
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict["observation"]
        tensordict.set("observation", self.hide(observation))
        return self.policy(tensordict).set("observation", observation)
