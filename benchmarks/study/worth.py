"""Is a learned grower worth its training? Tables of what grows on each task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import itemgetter

import numpy as np

from benchmarks.study.mixture import MODES
from benchmarks.study.scratch import size
from benchmarks.study.settings import GROWERS, compose, grower_jobs, growers_of, read_runs, settings
from benchmarks.study.statistics import (
    difference,
    earned,
    grower_returns,
    middle,
    on_scale,
    scores,
    since_waiting,
)
from benchmarks.study.tables import Rows, shown, table
from benchmarks.study.worlds import MNIST1D
from benchmarks.transfer import signals
from esper_rl.report.comparison import Interval

PLAYED = {"returns": ".2f", "test_accuracy": ".1f", "seed_params": ".0f"}
"""What is shown of episodes, and how."""


def players_of(task: str) -> Iterator[tuple[str, str, str, str]]:
    """Whoever grows a task's networks: in words, then part, variant and player of the results."""
    yield from ((name, GROWERS, name, name) for name in growers_of(task))
    for policy in ("v1", "v2"):
        yield from ((f"{policy.upper()}, {mode}", "policies", policy, mode) for mode in MODES)


def growers() -> str:
    """Growers that aren't trained, beside the policies."""
    rows: Rows = []
    for task in settings()["hosts"]:
        for who, part, variant, player in players_of(task):
            measured = [scores(part, task, variant, earned(player, name)) for name in PLAYED]
            if len(measured[0]):
                cells = zip(measured, PLAYED.values(), strict=True)
                rows.append((f"`{task}`", who, *(shown(middle(x), form) for x, form in cells)))
    return table(("task", "who grows", "return", "test accuracy, %", "seeds' parameters"), rows)


def complete(task: str) -> bool:
    """Has the task all runs of both policies, and of the growers?"""
    seeds = settings()["parts"]["policies"]["seeds"][task]
    policies = (read_runs("policies", task, policy) for policy in ("v1", "v2"))
    every = all(len(runs) == seeds for runs in policies)
    return every and all(job.is_measured for job in grower_jobs([task]))


def in_short() -> str:
    """The growers that matter on every task that is complete, on the scale."""
    players = {
        "draws legal acts": (GROWERS, "random", "random"),
        "a heuristic": (GROWERS, "heuristic", "heuristic"),
        "a schedule that a search finds": (GROWERS, "best schedule", "best schedule"),
        "V1": ("policies", "v1", "sampled"),
        "V2": ("policies", "v2", "sampled"),
        "V2, greedy": ("policies", "v2", "greedy"),
    }
    tasks = [task for task in settings()["hosts"] if complete(task)]
    rows: Rows = []
    for name, (part, variant, player) in players.items():
        found = {task: middle(scores(part, task, variant, earned(player))) for task in tasks}
        cells = (shown(since_waiting(task, each)) for task, each in found.items())
        rows.append((name, *cells))
    return table(("who grows", *(f"`{task}`" for task in tasks)), rows)


PUBLISHED = {"linear": (410, 32), "perceptron": (15_210, 68), "convolutional": (5_210, 94)}
"""On MNIST-1D, parameters and accuracy in percent (Greydanus and Kobak 2024)."""


def published() -> str:
    """Networks that grew on MNIST-1D, beside published ones: accuracy at parameters."""
    host = size(signals())
    rows: Rows = [
        (f"{name}, published", f"{parameters:,}", f"{accuracy}")
        for name, (parameters, accuracy) in PUBLISHED.items()
    ]
    for name, part, variant, player in players_of(MNIST1D):
        seeds, accuracy = (
            scores(part, MNIST1D, variant, earned(player, measure))
            for measure in ("seed_params", "test_accuracy")
        )
        if len(seeds):
            cells = shown(middle(host + seeds), ",.0f"), shown(middle(accuracy), ".1f")
            rows.append((f"host, {name}", *cells))
    return table(("network", "parameters", "test accuracy, %"), rows)


KINDS = {
    "rules": ("wait", "random", "fixed schedule", "heuristic"),
    "schedules": ("periodic", "hill climbing", "best schedule", "each variant's own"),
    "triggers": ("gradient norm", "natural score"),
}
"""Growers without a policy; of each kind the best one counts."""


def break_even() -> str:
    """After how many networks V2 has earned what its training cost, beside other growers.

    A network that is grown as well as is known, instead of waiting, is taken to be worth the
    training of one network. A policy that earns g of that more than another grower, and was chosen
    by n networks more, has paid for itself after n / g networks.
    """
    rows: Rows = []
    for task in settings()["hosts"]:
        config, learned = compose(task, (), 0), scores("policies", task, "v2", earned("sampled"))
        for kind, names in KINDS.items():
            found = {name: grower_returns(task, name) for name in names}
            known = {name: returns for name, returns in found.items() if len(returns)}
            if not known or not len(learned):
                continue
            best = max(known, key=lambda name: middle(known[name]).value)
            apart = on_scale(task, ahead(learned, known[best]))
            steps = scores(GROWERS, task, best, itemgetter("steps")).mean()
            networks = (config.total_steps - steps) / config.episode_steps
            cells = (best, f"{networks:,.0f}", shown(apart), paid_after(networks, apart))
            rows.append((f"`{task}`", kind, *cells))
    head = (
        "task", "kind", "the best of them", "networks more for V2's choice",
        "V2 earns more, on the scale", "has paid for itself after networks",
    )  # fmt: skip
    return table(head, rows)


def ahead(learned: np.ndarray, other: np.ndarray) -> Interval:
    """What policies earn more; a player that draws nothing is known exactly."""
    if len(other) == 1:
        return middle(learned - other)
    return difference(learned, other)


def paid_after(networks: float, gain: Interval | None) -> str:
    """In words, with the interval of the gain."""
    if gain is None or math.isnan(gain.low):
        return ""
    if gain.high <= 0:
        return "never"
    ends = (gain.high, gain.low)
    least, most = (f"{networks / each:,.0f}" if each > 0 else "never" for each in ends)
    between = f"[{least}, {most}]"
    return f"{networks / gain.value:,.0f} {between}" if gain.value > 0 else between
