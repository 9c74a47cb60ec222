"""Pictures of a training run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esper_rl.runs.atomic_write import printable
from esper_rl.runs.metrics import read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOGGER = logging.getLogger(__name__)

# Okabe and Ito's palette, told apart with every kind of colour vision.
_BLUE, _ORANGE, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_GREY, _LINES = "#555555", ("--", ":", "-.", (0, (1, 4)))


_SHOWN = (
    "steps",
    "return",
    "return_std",
    "final_accuracy",
    "final_accuracy_std",
    "head_entropy/op",
    "head_entropy/blueprint",
)


def plot_learning_curve(
    metrics: Path, picture: Path, players: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Draw discounted return, final accuracy and entropies against environment steps.

    The bands are one standard deviation over an iteration's episodes. Nothing depends on the
    picture: if it can't be drawn or written, a warning says why.

    Args:
        metrics: the CSV file of a run, one line an iteration; it need not exist yet.
        picture: the PNG file to write.
        players: mean ``return`` and ``final_accuracy`` of others, by name, to draw beside it.
    """
    try:
        _plot(metrics, picture, players or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOGGER.warning("%s can't be drawn: %s", picture, error)


def _plot(metrics: Path, picture: Path, players: Mapping[str, Mapping[str, float]]) -> None:
    from esper_rl.report.page import new_figure, unframe  # slow to import, needed once in a run

    known = read_columns(metrics, _SHOWN) if metrics.exists() else {name: [] for name in _SHOWN}
    columns = {name: np.array(values) for name, values in known.items()}
    figure = new_figure(7, 8)
    returns, accuracy, entropy = figure.subplots(3, 1, sharex=True)
    for axes in (returns, accuracy, entropy):
        unframe(axes)
    _draw(returns, columns, "return", _BLUE)
    returns.set_ylabel("discounted return of an episode")
    _draw(accuracy, columns, "final_accuracy", _ORANGE)
    accuracy.set_ylabel("final validation accuracy (%)")
    for axes, measure in ((returns, "return"), (accuracy, "final_accuracy")):
        for style, (name, means) in zip(_LINES, players.items(), strict=False):
            axes.axhline(means[measure], color=_GREY, linestyle=style, label=name)
    _draw(entropy, columns, "head_entropy/op", _GREEN, label="op")
    _draw(entropy, columns, "head_entropy/blueprint", _PURPLE, label="blueprint", style="--")
    entropy.set_ylabel("entropy of the policy (nats)")
    entropy.set_ylim(bottom=0)
    entropy.legend(frameon=False)
    if players:
        returns.legend(frameon=False)
    entropy.set_xlabel("environment steps (host epochs over all rows)")
    state = "" if len(columns["steps"]) else ": no iteration finished yet"
    returns.set_title(f"Learning curve of {printable(metrics.parent.name)}{state}")
    figure.savefig(picture, dpi=120)


def _draw(
    axes: Axes,
    columns: Mapping[str, np.ndarray],
    name: str,
    colour: str,
    label: str | None = None,
    style: str = "-",
) -> None:
    """A metric, and its spread if that is known."""
    band = spread_of(columns, name)
    draw_curve(axes, columns["steps"], columns[name], colour, label=label, style=style, band=band)


def spread_of(columns: Mapping[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """One standard deviation below a metric and above it; None where its spread isn't known."""
    if f"{name}_std" not in columns:
        return None
    return columns[name] - columns[f"{name}_std"], columns[name] + columns[f"{name}_std"]


def draw_curve(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    colour: str,
    *,
    label: str | None = None,
    style: str = "-",
    band: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """One line, its band if it has one; iterations whose value is nan have no point."""
    known = np.isfinite(values)
    if band is not None:
        low, high = (edge[known] for edge in band)
        axes.fill_between(steps[known], low, high, color=colour, alpha=0.15, lw=0)
    marker = "o" if known.sum() < 60 else ""
    axes.plot(
        steps[known], values[known], style, color=colour, marker=marker, markersize=3, label=label
    )
