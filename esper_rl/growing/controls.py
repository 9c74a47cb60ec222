"""Controls: does a policy use what it sees, or would the same actions do on any host?"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from envs.observation import feature_columns, feature_names
from esper_rl.errors import ConfigError
from esper_rl.growing.feedback import from_row_before


def shuffled(patterns: str, num_slots: int) -> Callable[[Tensor], Tensor]:
    """A function that gives each row some columns of the row before it.

    Args:
        patterns: names of :func:`envs.feature_names`, separated by spaces; ``*`` stands for
            anything, as in ``slot*_contribution_norm``.
        num_slots: S of the observation.

    Raises:
        ConfigError: for a pattern that no name matches.

    Examples:
        >>> shuffled("*", num_slots=3)(torch.arange(2.0)[:, None].expand(2, 112))[:, 0]
        tensor([1., 0.])
    """
    known = feature_names(num_slots)
    columns: list[int] = []
    for pattern in patterns.split():
        names = fnmatch.filter(known, pattern)
        if not names:
            raise ConfigError(
                f"--shuffle must match names of observations, such as {known[3]!r} or "
                f"'slot*_alpha', got {pattern!r}"
            )
        columns += feature_columns(*names, num_slots=num_slots)
    return partial(from_row_before, columns=columns)


class Recorder(TensorDictModuleBase):
    """A policy that remembers its actions.

    Args:
        policy: what plays.

    Attributes:
        actions: a TensorDict of heads ``[N]`` for each step.
    """

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys
        self.actions: list[TensorDictBase] = []

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        played = self.policy(tensordict)
        self.actions.append(played["action"].clone())
        return played


class Replay(TensorDictModuleBase):
    """Plays what was recorded, step by step, on another host: row i gets row i − 1's actions.

    Args:
        actions: of :class:`Recorder`.
    """

    in_keys = ("observation",)
    out_keys = ("action",)

    def __init__(self, actions: list[TensorDictBase]) -> None:
        super().__init__()
        self._steps: Iterator[TensorDictBase] = iter(actions)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = next(self._steps)
        rows = torch.arange(len(action)).roll(1)
        return tensordict.set("action", action[rows])
