"""Tables of docs/study.md as text, and those of the parts that aren't trainings of policies."""

from __future__ import annotations

import math
from operator import itemgetter

from benchmarks.study.mixture import MODES
from benchmarks.study.scratch import FILE as SCRATCH
from benchmarks.study.settings import ADVANTAGES, MIXTURE, read_results, settings
from benchmarks.study.speed import FILE as SPEED
from benchmarks.study.statistics import earned, grower_returns, middle, scores
from esper_rl.report.comparison import Interval

Rows = list[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(found: Interval | None, form: str = ".2f") -> str:
    """A number, and its interval if there is one."""
    if found is None:
        return "–"
    if math.isnan(found.low):
        return f"{found.value:{form}}"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def advantages() -> str:
    """How far advantages are from the truth, by what a rollout's values are of."""
    names = (
        "bias", "root mean square error of the mean", "variance", "true advantages", "correlation",
    )  # fmt: skip
    rows: Rows = []
    for variant in settings()[ADVANTAGES]["variants"]:
        found = [scores(ADVANTAGES, "scaffold", variant, itemgetter(name)) for name in names]
        if len(found[0]):
            cells = (shown(middle(each), ".3f") for each in found)
            rows.append((variant, str(len(found[0])), *cells))
    return table(("value", "seeds", *names), rows)


def mixture() -> str:
    """One policy for the hosts of several tasks, beside each task's own."""
    rows: Rows = []
    for task in settings()[MIXTURE]["tasks"]:
        for mode in MODES:
            one = scores(MIXTURE, MIXTURE, "one for all", earned(f"{task}, {mode}"))
            own = scores("policies", task, "v2", earned(mode))
            wait = grower_returns(task, "wait")
            if len(one):
                cells = (shown(middle(each)) if len(each) else "–" for each in (one, own, wait))
                rows.append((f"`{task}`", mode, *cells))
    return table(("task", "mode", "one for all", "its own policies", "waiting"), rows)


def scratch() -> str:
    """Grown networks, the same from scratch at equal costs, and hosts of equal size.

    Learning rates are times the task's own.
    """
    rows: Rows = []
    for task, architectures in read_results(SCRATCH).items():
        for architecture, found in architectures.items():
            for way, run in found.items():
                cells = (
                    f"{run['epochs']}", f"{run['parameters']:,}", f"{run.get('lr', 1):g}",
                    f"{run['test_accuracy']:.1f}", f"{run['seconds']:.0f}",
                )  # fmt: skip
                rows.append((f"`{task}`", architecture, way, *cells))
    head = (
        "task", "architecture", "trained", "epochs", "parameters", "learning rate",
        "test accuracy, %", "seconds",
    )  # fmt: skip
    return table(head, rows)


def speed() -> str:
    """Seconds of an iteration of V1 and V2, by part."""
    parts = ("world", "policy", "update")
    rows: Rows = []
    for task, found in read_results(SPEED).items():
        whole = {policy: sum(taken[part] for part in parts) for policy, taken in found.items()}
        without = {policy: whole[policy] - taken["world"] for policy, taken in found.items()}
        for policy, taken in found.items():
            times = whole[policy] / whole["v1"], without[policy] / without["v1"]
            numbers = (*(taken[part] for part in parts), whole[policy], *times)
            rows.append((f"`{task}`", policy.upper(), *(f"{each:.2f}" for each in numbers)))
    return table(("task", "policy", *parts, "all", "times V1's", "without the world"), rows)
