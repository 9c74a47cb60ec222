"""Controls: does a policy use what it sees, or would the same actions do on any host?"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from envs.observation import feature_columns, feature_names
from esper_rl.errors import ConfigError
from esper_rl.evaluation.arena import Arena, Player, evaluate
from esper_rl.growing.feedback import from_row_before


def learned(arena: Arena) -> TensorDictModuleBase:
    """The policy of the run."""
    return arena.actor_critic.actor


def blindfolded(what: str, hide: Callable[[Tensor], Tensor]) -> Player:
    """The greedy policy, shown another observation than there is.

    Args:
        what: what is taken from it, for its name.
        hide: makes the other observation ``[N, features]``.
    """
    return Player(
        f"greedy, {what}", lambda arena: Blindfolded(learned(arena), hide), "greedy", hinders=True
    )


def shuffled(patterns: Sequence[str], num_slots: int) -> Player:
    """The greedy policy, which sees some columns of the row before its own.

    Args:
        patterns: names of :func:`envs.feature_names`; ``*`` stands for anything, as in
            ``slot*_contribution_norm``.
        num_slots: S of the run.

    Raises:
        ConfigError: for a pattern that no name matches.

    Examples:
        >>> shuffled(["slot*_alpha", "accuracy_norm"], num_slots=3).name
        'greedy, shuffled: slot*_alpha accuracy_norm'
    """
    columns = columns_of(patterns, num_slots)
    what = f"shuffled: {' '.join(patterns)}"
    return blindfolded(what, partial(from_row_before, columns=columns))


def columns_of(patterns: Sequence[str], num_slots: int) -> list[int]:
    """Columns of the observation whose names match.

    Raises:
        ConfigError: for a pattern that no name matches.

    Examples:
        >>> columns_of(["slot*_alpha"], num_slots=2)
        [36, 65]
    """
    known = feature_names(num_slots)
    columns: list[int] = []
    for pattern in patterns:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise ConfigError(
                f"--shuffle must match names of observations, such as {known[3]!r} or "
                f"'slot*_alpha', got {pattern!r}"
            )
        columns += feature_columns(*names, num_slots=num_slots)
    return columns


def _other_hosts_actions(arena: Arena) -> TensorDictModuleBase:
    arena.start_over()
    recorder = Recorder(learned(arena))
    evaluate(recorder, arena.world, arena.episodes, "greedy")
    return Replay(recorder.actions)


OPEN_LOOP = Player("greedy, actions of another host", _other_hosts_actions, hinders=True)
"""The actions that the greedy policy takes on one host, played on another one."""


class Blindfolded(TensorDictModuleBase):
    """A policy that is shown another observation than there is.

    Args:
        policy: what plays; it finds its own observation again afterwards.
        hide: makes the other observation ``[N, features]``.
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
