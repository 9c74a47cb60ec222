"""Pictures of docs/study.md: how V1 and V2 learn, and what each change of V2 makes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.study.settings import FOLDER, read_results, read_runs, settings
from benchmarks.study.speed import FILE as SPEED
from benchmarks.study.statistics import LEAST, difference, earned, on_scale, scores
from esper_rl.figures import count_steps, legend_below
from esper_rl.report.comparison import interquartile_mean

COLORS = {"v1": "#D55E00", "v2": "#0072B2"}
STYLES = {"v1": "--", "v2": "-"}


def seconds_per_step(task: str, policy: str) -> float | None:
    """Of a quiet machine (the part ``speed``); None where it wasn't measured.

    The world's are the mean of both policies': they differ by what seeds happened to live.
    """
    measured = read_results(SPEED)
    if task not in measured:
        return None
    world = mean(taken["world"] for taken in measured[task].values())
    taken = measured[task][policy]
    return (world + taken["policy"] + taken["update"]) / taken["steps"]


def draw_curves() -> None:
    """Return in training against steps, and against minutes of a quiet machine."""
    tasks = [task for task in settings()["hosts"] if read_runs("policies", task, "v2")]
    if not tasks:
        return
    rows = 2 if SPEED.exists() else 1
    figure, axes = plt.subplots(
        rows, len(tasks), figsize=(3.2 * len(tasks), 2.8 * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, task in enumerate(tasks):
        for policy in COLORS:
            curves = [run["curve"] for run in read_runs("policies", task, policy).values()]
            if not curves:
                continue
            steps, returns = np.array(curves[0]["steps"]), [curve["return"] for curve in curves]
            _band(axes[0, column], steps, returns, policy)
            seconds = seconds_per_step(task, policy)
            if seconds is not None:
                _band(axes[1, column], steps * seconds / 60, returns, policy)
        axes[0, column].set_title(task, fontsize="medium")
        count_steps(axes[0, column])
        if rows > 1:
            axes[1, column].set_xlabel("minutes on two quiet cores")
    for axis in axes[:, 0]:
        axis.set_ylabel("discounted return")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    legend_below(axes[0, 0], ncols=2)
    figure.savefig(FOLDER / "curves.png", dpi=130)
    plt.close(figure)


def _band(axis: Axes, x: np.ndarray, curves: Sequence[Sequence[float]], policy: str) -> None:
    """Interquartile mean over training seeds, and their quartiles."""
    values = np.array(curves)
    middle = interquartile_mean(values, axis=0)
    axis.plot(x, middle, STYLES[policy], label=policy.upper(), color=COLORS[policy])
    low, high = np.quantile(values, (0.25, 0.75), axis=0)
    axis.fill_between(x, low, high, alpha=0.2, color=COLORS[policy], linewidth=0)


def draw_changes(part: str) -> None:
    """Sampled return of each variant less V2's, on the scale from waiting to the best."""
    content = settings()["parts"][part]
    names = list(content["variants"])
    figure, axis = plt.subplots(figsize=(8, 0.45 * len(names) + 1.4), layout="constrained")
    for number, (task, seeds) in enumerate(content["seeds"].items()):
        own = scores("policies", task, "v2", earned("sampled"))[:seeds]
        others = [scores(part, task, name, earned("sampled")) for name in names]
        known = [row for row, other in enumerate(others) if len(own) and len(other)]
        apart = [on_scale(task, difference(others[row], own)) for row in known]
        found = np.array([each for each in apart if each is not None])  # value, low, high
        if not len(found):
            continue
        around = np.abs(found[:, 1:].T - found[:, 0])
        places = [row + 0.2 * number for row in known]
        axis.errorbar(found[:, 0], places, xerr=around, fmt="os^"[number], label=task, capsize=2)
    if axis.has_data():
        axis.axvline(0, color="black", linewidth=1)
        axis.axvspan(-LEAST, LEAST, color="gray", alpha=0.15)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel("sampled return less V2's; 1 is from waiting to the best that is known")
        legend_below(axis, ncols=len(content["seeds"]))
        figure.savefig(FOLDER / f"{part}.png", dpi=130)
    plt.close(figure)


def draw_all() -> None:
    draw_curves()
    for part in ("changes", "options"):
        draw_changes(part)
