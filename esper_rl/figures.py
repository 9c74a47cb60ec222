"""Parts of pictures: figures, lines and their colours."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

# Okabe and Ito's palette, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""For lines."""

STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
"""Of lines, so that no colour is needed to tell them apart."""


def new_figure(width: float, height: float) -> Figure:
    """A figure of inches that leaves pyplot's global state to the caller."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def count_steps(axes: Axes) -> None:
    """Let environment steps run from left to right, such as 20k."""
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def unframe(axes: Axes) -> None:
    """Leave out what frames axes at the top and the right, and show a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def legend_below(axes: Axes, ncols: int) -> None:
    """Names of the lines below the axes, where they hide none."""
    names = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(*names, loc="outside lower center", frameon=False, fontsize="small", ncols=ncols)


def as_png(figure: Figure) -> bytes:
    """The pixels of a figure, 130 to the inch."""
    file = BytesIO()
    figure.savefig(file, dpi=130, format="png")
    return file.getvalue()


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
    style: Any = "-",
    band: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """One line, its band if it has one; iterations whose value is nan have no point."""
    known = np.isfinite(values)
    if band is not None:
        low, high = (edge[known] for edge in band)
        axes.fill_between(steps[known], low, high, color=colour, alpha=0.15, lw=0)
    marker = "o" if known.sum() < 60 else ""
    axes.plot(
        steps[known],
        values[known],
        linestyle=style,
        color=colour,
        marker=marker,
        markersize=3,
        label=label,
    )
