"""The picture of a training run."""

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

_GREY = "#555555"


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
    # Slow to import, needed once in a run.
    from esper_rl.figures import (
        COLOURS,
        STYLES,
        draw_curve,
        legend_below,
        new_figure,
        spread_of,
        unframe,
    )

    known = read_columns(metrics, _SHOWN) if metrics.exists() else {name: [] for name in _SHOWN}
    columns = {name: np.array(values) for name, values in known.items()}
    figure = new_figure(7, 8)
    returns, accuracy, entropy = figure.subplots(3, 1, sharex=True)
    for axes in (returns, accuracy, entropy):
        unframe(axes)

    def draw(axes: Axes, name: str, colour: str, **options: str) -> None:
        band = spread_of(columns, name)
        draw_curve(axes, columns["steps"], columns[name], colour, band=band, **options)

    explained = "training: mean over an iteration's episodes, ± one standard deviation"
    draw(returns, "return", COLOURS[0], label=explained)
    returns.set_ylabel("discounted return of an episode")
    draw(accuracy, "final_accuracy", COLOURS[0])
    accuracy.set_ylabel("final validation accuracy (%)")
    for axes, measure in ((returns, "return"), (accuracy, "final_accuracy")):
        for style, (name, means) in zip(STYLES[1:], players.items(), strict=False):
            axes.axhline(means[measure], color=_GREY, linestyle=style, label=name)
    draw(entropy, "head_entropy/op", COLOURS[1], label="op")
    draw(entropy, "head_entropy/blueprint", COLOURS[2], label="blueprint", style="--")
    entropy.set_ylabel("entropy of the policy (nats)")
    entropy.set_ylim(bottom=0)
    entropy.legend(frameon=False)
    legend_below(returns, ncols=2)
    entropy.set_xlabel("environment steps (host epochs over all rows)")
    state = "" if len(columns["steps"]) else ": no iteration finished yet"
    returns.set_title(f"Learning curve of {printable(metrics.parent.name)}{state}")
    figure.savefig(picture, dpi=120)
