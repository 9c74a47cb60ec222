"""Plans: what to do in which step, where the best way to play a task is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Plan = Mapping[int, Mapping[str, int]]
"""An episode's actions: heads by step; steps that are left out are WAIT, heads 0."""


@dataclass(frozen=True)
class BestPlan:
    """The best way to play a task whose episodes differ in one thing, which a feature tells.

    Attributes:
        plan: for episodes in which the feature is above 0 at step ``decided_at``.
        otherwise: for the others; up to that step both are the same.
        decided_at: the step.
        feature: one of :func:`envs.feature_names`.
        discounted_return: mean over episodes, for the task's own prices.
    """

    plan: Plan
    otherwise: Plan
    decided_at: int
    feature: str
    discounted_return: float
