"""Weights of the reward that change while an agent learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from envs.actions import Op
from envs.checks import check_choice, check_integer, check_number
from envs.reward import RewardConfig
from envs.typed import check_types

_FIXED = ("mode", "gamma", "intervention")
"""Fields that aren't a weight of their own: the discount is the agent's."""

SCHEDULED = (
    *(each.name for each in fields(RewardConfig) if each.name not in _FIXED),
    *(f"intervention.{op.name}" for op in Op),
)
"""Names of the weights that may change."""


@dataclass(frozen=True)
class Ramp:
    """One weight: constant, then linear, then what the reward says it is.

    Attributes:
        key: one of :data:`SCHEDULED`, ``"rent"`` or ``"intervention.GERMINATE"`` for example.
        start: the weight until ``begin``.
        begin, end: shares of the agent's steps, 0 ≤ begin ≤ end ≤ 1, between which it moves.

    Raises:
        TypeError: if a number isn't one.
        ValueError: if one is out of range, or the key unknown.
    """

    key: str
    start: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_types(self, "a schedule's ")
        check_choice("key of a schedule", self.key, SCHEDULED)
        check_number(f"start of {self.key}'s schedule", self.start, least=0)
        check_number(f"end of {self.key}'s schedule", self.end, least=0, most=1)
        check_number(f"begin of {self.key}'s schedule", self.begin, least=0, most=self.end)

    def weight(self, progress: float, final: float) -> float:
        """The weight after a share of the steps, where it ends at ``final``."""
        if progress >= self.end:
            return final
        if progress <= self.begin:
            return self.start
        moved = (progress - self.begin) / (self.end - self.begin)
        return self.start + moved * (final - self.start)


@dataclass(frozen=True)
class RewardSchedule:
    """The reward of an environment in which an agent learns, by the steps that it has taken.

    An environment counts its own steps, so all copies of it, in whatever process, have the same
    prices after as many steps, and its ``state_dict`` carries them on.

    Attributes:
        final: the weights at the end, and of all that isn't in ``ramps``.
        ramps: weights that change, each at most once.
        steps: that a row takes while the agent learns.
        every: steps between two changes; the length of an episode keeps potentials what they are
            (Ng et al. 1999).

    Raises:
        TypeError: if a number isn't an integer.
        ValueError: if one is below 1, or a weight has two ramps.

    Examples:
        >>> ramp = Ramp("rent", start=0.0, begin=0.25, end=0.75)
        >>> schedule = RewardSchedule(RewardConfig(rent=0.1), [ramp], steps=100)
        >>> [schedule.at(step).rent for step in (0, 25, 50, 75, 100)]
        [0.0, 0.0, 0.05, 0.1, 0.1]
    """

    final: RewardConfig
    ramps: Sequence[Ramp]
    steps: int
    every: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_integer("steps", self.steps)
        check_integer("every", self.every)
        object.__setattr__(self, "ramps", tuple(self.ramps))
        keys = [ramp.key for ramp in self.ramps]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(
                    f"a schedule must have each key once, got {key!r} {keys.count(key)} times"
                )

    def prices(self, step: int) -> dict[str, float]:
        """The weights that change, after so many steps, by key."""
        progress = step // self.every * self.every / self.steps
        return {ramp.key: ramp.weight(progress, self._final(ramp.key)) for ramp in self.ramps}

    def at(self, step: int) -> RewardConfig:
        """All weights after so many steps."""
        prices: dict[str, Any] = self.prices(step)
        keys = {op: f"intervention.{op.name}" for op in Op}
        costs = {op: prices.pop(key) for op, key in keys.items() if key in prices}
        return replace(self.final, intervention={**self.final.intervention, **costs}, **prices)

    def _final(self, key: str) -> float:
        _, _, op = key.partition(".")
        return self.final.intervention.get(Op[op], 0.0) if op else getattr(self.final, key)
