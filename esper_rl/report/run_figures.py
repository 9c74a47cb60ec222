"""Pictures of what training watched, from a run's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from envs.actions import HEADS, Op
from esper_rl.figures import (
    COLOURS,
    STYLES,
    count_steps,
    draw_curve,
    legend_below,
    new_figure,
    spread_of,
    unframe,
)
from esper_rl.growing.monitors import (
    DRIFT_WARNING,
    ENTROPY_ALERT,
    ENTROPY_WARNING,
    EPISODE_PARTS,
    QUANTILES,
    WAIT_ALERT,
)

Columns = Mapping[str, np.ndarray]
"""Metrics by name, one number an iteration; those that a run doesn't have are missing."""

_COLOURS = (*COLOURS, "#999999")
_WARNING, _ALERT = "#E69F00", "#D55E00"

LEAST_EXPLAINED = -1.0
"""Explained variances below are drawn there: early ones may be -100, and would hide the rest."""


def _two(left: str, right: str) -> tuple[list[Figure], Axes, Axes]:
    """Figures of their own: a narrow screen shows one below the other."""
    figures = [new_figure(4.5, 3.4), new_figure(4.5, 3.4)]
    first, second = (figure.add_subplot() for figure in figures)
    for each, title in ((first, left), (second, right)):
        each.set_title(title, loc="left", fontsize="medium")
        count_steps(each)
        unframe(each)
    return figures, first, second


def _draw_lines(axes: Axes, columns: Columns, lines: Mapping[str, str]) -> None:
    """A line for each metric that there is; ``lines`` are labels by name."""
    for i, (name, label) in enumerate(lines.items()):
        if name not in columns:
            continue
        again, place = divmod(i, len(_COLOURS))  # the same colours in other styles
        style, colour = STYLES[(i + again) % len(STYLES)], _COLOURS[place]
        draw_curve(axes, columns["steps"], columns[name], colour, label=label, style=style)
    if len(axes.get_lines()) > 1:
        legend_below(axes, ncols=3 if len(lines) > 4 else 2)


def _draw_limit(axes: Axes, value: float, colour: str) -> None:
    axes.axhline(value, color=colour, linewidth=1, linestyle=(0, (1, 2)), zorder=0)


def draw_learning(columns: Columns, players: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    """Discounted return and final accuracy, with the spread over episodes and other players."""
    titles = "discounted return of an episode", "accuracy at the end of an episode (%)"
    figures, returns, accuracy = _two(*titles)
    for axes, name in ((returns, "return"), (accuracy, "final_accuracy")):
        band = spread_of(columns, name)
        draw_curve(axes, columns["steps"], columns[name], COLOURS[0], label="training", band=band)
        for player, style in zip(players, cycle(STYLES[1:]), strict=False):
            colour = COLOURS[1] if player == "greedy" else "#555555"
            axes.axhline(players[player][name], color=colour, linestyle=style, label=player)
        legend_below(axes, ncols=3)
    accuracy.set_ylim(0, 100)
    return figures


def draw_policy(columns: Columns) -> list[Figure]:
    """Entropies of the heads with alarm lines, and the ops that are chosen."""
    figures, entropy, ops = _two("entropy of the heads (share of the largest)", "share of each op")
    names = {f"relevant_normalized_entropy/{head}": head for head in HEADS}
    _draw_lines(entropy, columns, names)
    _draw_limit(entropy, ENTROPY_WARNING, _WARNING)
    _draw_limit(entropy, ENTROPY_ALERT, _ALERT)
    entropy.set_ylim(0, 1.05)
    known = [op for op in Op if f"op/{op.name}" in columns]
    if known:
        shares = [columns[f"op/{op.name}"] for op in known]
        ops.stackplot(columns["steps"], shares, labels=[op.name for op in known], colors=_COLOURS)
    if "wait_rate" in columns:
        label = "WAIT by choice"
        ops.plot(columns["steps"], columns["wait_rate"], color="#000000", label=label)
    if known:
        legend_below(ops, ncols=3)
    _draw_limit(ops, WAIT_ALERT, _ALERT)
    ops.set_ylim(0, 1)
    return figures


def draw_value(columns: Columns) -> list[Figure]:
    """Explained variance of both values, and the value loss by op."""
    figures, explained, losses = _two(
        "variance of the returns that the value explains", "the value's error by op (return²)"
    )
    lines = {
        "explained_variance": "V(s, op taken)",
        "explained_variance_soft": "V(s, π), the baseline",
    }
    shown = {name: np.maximum(columns[name], LEAST_EXPLAINED) for name in lines if name in columns}
    _draw_lines(explained, {"steps": columns["steps"], **shown}, lines)
    lowest = min((np.nanmin(values, initial=0.0) for values in shown.values()), default=0.0)
    explained.set_ylim(lowest - 0.05, 1.05)
    _draw_lines(losses, columns, {f"op_critic_loss/{op.name}": op.name for op in Op})
    losses.set_yscale("log")
    return figures


def draw_memory(columns: Columns) -> list[Figure]:
    """Norm of the cell state through the episode, and its drift with the alarm line."""
    figures, norms, drift = _two(
        "norm of the cell state, by part of an episode", "drift of the cell state's norm"
    )
    parts = range(1, EPISODE_PARTS + 1)
    lines = {f"cell_norm/fifth_{i}": f"part {i}" for i in parts}
    _draw_lines(norms, columns, lines)
    _draw_lines(drift, columns, {"cell_norm/drift": "last part / middle part"})
    _draw_limit(drift, DRIFT_WARNING, _WARNING)
    return figures


def draw_credit(columns: Columns) -> list[Figure]:
    """Hindsight credit of helpers, and how late it came: median and the middle 80 %."""
    figures, credit, delay = _two(
        "hindsight credit of a helper (return)", "epochs since the helper left"
    )
    low, middle, high = QUANTILES
    for axes, name in ((credit, "credit"), (delay, "delay")):
        names = [f"hindsight/{name}_p{percent}" for percent in (low, middle, high)]
        if columns.keys() >= set(names):
            bottom, median, top = (columns[each] for each in names)
            draw_curve(axes, columns["steps"], median, COLOURS[0], band=(bottom, top))
            axes.set_ylim(bottom=0)
        if not np.isfinite(columns.get(names[1], np.nan)).any():
            axes.text(0.5, 0.5, "none yet", transform=axes.transAxes, ha="center")
            axes.set(xticks=[], yticks=[])
    return figures


SECTIONS: Sequence[tuple[str, Callable[[Columns], list[Figure]], str]] = (
    (
        "The policy",
        draw_policy,
        "Entropy of each head over the steps at which it counts, as a share of the most that the "
        "legal choices allow. Under the upper dotted line a head hardly explores, under the lower "
        "one it has made up its mind. Beside it the ops that were chosen; a policy whose line, "
        "WAIT by choice (where another op is legal), is above the dotted one has stopped acting.",
    ),
    (
        "The value",
        draw_value,
        "Share of the returns' variance that the value foretells before an update: 1 is perfect, 0 "
        "is no better than the mean, and what is below -1 is drawn at -1. Beside it the mean "
        "squared error by the op that was taken.",
    ),
    (
        "The memory",
        draw_memory,
        "An LSTM's cell state that grows through the episode makes early and late steps look "
        "different. Drift is its norm in the last part over that in the middle one; above the "
        "dotted line it is a warning.",
    ),
    (
        "Credit for helpers",
        draw_credit,
        "Seeds that helped another one are paid when that one is fossilized, also when they are "
        "gone by then. Median and the middle 80 % of each iteration; empty where there was none.",
    ),
)
"""Title, pictures and explanation of a section."""
