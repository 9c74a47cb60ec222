"""Numbers of the study: scores over training seeds, on one scale, and what counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.seeds import Run
from benchmarks.study.settings import GROWERS, read_runs
from envs.tasks.scaffold import BEST_PLAN, WAIT_RETURN
from esper_rl.report.comparison import (
    Interval,
    interquartile_mean,
    interval_of,
    probability_of_improvement,
)

LEAST = 0.05
"""Of the scale from waiting to the best that is known: a smaller difference doesn't matter."""

Measure = Callable[[Run], float | None]
"""Of a run; None where it has no such number."""

LATE = 0.2
"""Last part of a training in which what it has come to is looked at."""


def scores(part: str, task: str, variant: str, measure: Measure) -> np.ndarray:
    """One number a training seed, those that there are."""
    values = (measure(run) for run in read_runs(part, task, variant).values())
    return np.array([value for value in values if value is not None])


def earned(player: str, measure: str = "returns") -> Measure:
    """What a player's episodes come to in the mean."""
    return lambda run: run["players"].get(player, {}).get(measure)


def mean_of_training(name: str) -> Measure:
    """A metric's mean over the whole training."""
    return lambda run: _mean(run["curve"].get(name, []))


def late(name: str) -> Measure:
    """A metric's mean over the last part of the training, where it was measured there."""

    def measure(run: Run) -> float | None:
        values = run["curve"].get(name, [])
        return _mean(values[-max(1, round(LATE * len(values))) :])

    return measure


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def middle(values: np.ndarray) -> Interval:
    """Interquartile mean over training seeds, and its interval."""
    return interval_of(interquartile_mean, values)


def difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """Of interquartile means, with its interval: the first one's less the second one's."""
    return interval_of(_difference, one, other)


def _difference(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    return interquartile_mean(one, axis) - interquartile_mean(other, axis)


def improvement(one: np.ndarray, other: np.ndarray) -> Interval:
    """Probability that a run of the first design scores more than one of the second."""
    return interval_of(probability_of_improvement, one, other)


def together(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Interval:
    """Mean over tasks of differences, each task resampled by itself (stratified)."""

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        halves = zip(samples[::2], samples[1::2], strict=True)
        return np.mean([_difference(one, other, axis) for one, other in halves], 0)

    return interval_of(statistic, *(each for pair in pairs for each in pair))


def gap(task: str) -> float | None:
    """Return between waiting and the best schedule or plan that is known; None while it is open."""
    if task == "scaffold":
        return BEST_PLAN.discounted_return - WAIT_RETURN
    waits = waiting(task)
    if waits is None:
        return None
    if task == "digits_varied":
        best = grower_returns(task, "each variant's own")
    else:
        best = np.concatenate([grower_returns(task, name) for name in SCHEDULES])
    return float(best.max() - waits) if len(best) else None


def waiting(task: str) -> float | None:
    """Return of always waiting; None while it is open."""
    if task == "scaffold":
        return WAIT_RETURN
    found = grower_returns(task, "wait")
    return float(found[0]) if len(found) else None


def grower_returns(task: str, name: str) -> np.ndarray:
    """What a grower without a policy earns, one number for each time that it was chosen."""
    return scores(GROWERS, task, name, earned(name))


SCHEDULES = ("fixed schedule", "periodic", "hill climbing", "best schedule")
"""Growers that are schedules: what a policy that sees nothing could know."""


def on_scale(task: str, interval: Interval) -> Interval | None:
    """A difference of returns as a part of what lies between waiting and the best."""
    whole = gap(task)
    return None if whole is None else Interval(*(each / whole for each in interval))


def since_waiting(task: str, interval: Interval) -> Interval | None:
    """Returns as parts of what lies between waiting and the best."""
    waits = waiting(task)
    if waits is None:
        return None
    return on_scale(task, Interval(*(each - waits for each in interval)))


def verdict(found: Interval | None) -> str:
    """The word for V2 less V1 on the scale (docs/study.md, "What counts")."""
    if found is None or np.isnan(found.low):
        return ""
    if found.high < -LEAST:
        return "fails"
    if found.low > 0:
        return "exceeds"
    return "matches" if found.low > -LEAST else "undecided"


def matters(found: Interval | None) -> str:
    """Does a difference on the scale count?"""
    if found is None or np.isnan(found.low):
        return ""
    apart = found.low > 0 or found.high < 0
    return "yes" if apart and abs(found.value) >= LEAST else "no"
