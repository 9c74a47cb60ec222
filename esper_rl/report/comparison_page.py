"""A comparison as a table for a terminal, as Markdown, as JSON, and as a page with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from itertools import combinations, cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from esper_rl import figures
from esper_rl.report import page
from esper_rl.report.comparison import (
    FEW_SEEDS,
    Design,
    Interval,
    interquartile_mean,
    interval_of,
    performance_profile,
    probability_of_improvement,
)
from esper_rl.report.tables import align


def summarise(designs: Sequence[Design]) -> dict[str, Any]:
    """Compute what a comparison says.

    Returns:
        ``"designs"``: of each by name its number of ``"seeds"``, the ``"interquartile_mean"`` and
        the ``"mean"`` with their intervals, and the ``"scores"``; ``"improvement"``: for every
        pair of designs the probability that a run of the first scores more than one of the second.
    """
    return {
        "designs": {
            design.name: {
                "seeds": len(design.runs),
                "interquartile_mean": interval_of(interquartile_mean, design.scores),
                "mean": interval_of(np.mean, design.scores),
                "scores": {str(run.path): run.score for run in design.runs},
            }
            for design in designs
        },
        "improvement": [
            {
                "better": a.name,
                "than": b.name,
                "probability": interval_of(probability_of_improvement, a.scores, b.scores),
            }
            for a, b in combinations(designs, 2)
        ],
    }


def title_of(measure: str, player: str, designs: Sequence[Design]) -> str:
    """A comparison's title: what is compared, of how many runs."""
    runs = [run for design in designs for run in design.runs]
    task = runs[0].settings.get("env.task", "an unknown task")
    return f"{measure} of {player} on {task}: {len(runs)} runs of {len(designs)} designs"


def caution(summary: Mapping[str, Any]) -> str:
    """A warning where there are too few training seeds, otherwise an empty string."""
    few = [name for name, design in summary["designs"].items() if design["seeds"] < FEW_SEEDS]
    if not few:
        return ""
    return (
        f"Fewer than {FEW_SEEDS} training seeds ({'; '.join(few)}): this proves nothing. "
        "Train more of them."
    )


def tables(summary: Mapping[str, Any]) -> list[list[list[str]]]:
    """Rows of cells, titles first: the designs, then the pairs of them, if there are any."""
    columns = ("interquartile_mean", "mean")
    digits = {
        key: _digits([found[key].value for found in summary["designs"].values()]) for key in columns
    }
    designs = [["design", "seeds", "interquartile mean", "mean"]] + [
        [name, str(found["seeds"]), *(_cell(found[key], digits[key]) for key in columns)]
        for name, found in summary["designs"].items()
    ]
    pairs = [["a run of", "scores more than one of", "with probability"]] + [
        [pair["better"], pair["than"], _cell(pair["probability"])]
        for pair in summary["improvement"]
    ]
    return [designs, pairs] if len(pairs) > 1 else [designs]


def _digits(values: Sequence[float]) -> int:
    """Decimals by which values can be told apart, two at least."""
    most = 4
    gaps = np.diff(np.unique(np.round(values, most)))
    return int(np.clip(np.ceil(-np.log10(round(gaps.min(initial=1.0), most))), 2, most))


def _cell(interval: Interval, digits: int = 2) -> str:
    value, *ends = (f"{number:.{digits}f}" for number in interval)
    return value if interval.low != interval.low else f"{value} [{', '.join(ends)}]"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    return "\n".join(align(rows, str.ljust))


def as_markdown(title: str, summary: Mapping[str, Any]) -> str:
    """All tables in Markdown."""

    def table(rows: Sequence[Sequence[str]]) -> str:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])

    return "\n\n".join([f"# {title}", caution(summary), *map(table, tables(summary))]) + "\n"


def as_page(title: str, summary: Mapping[str, Any], designs: Sequence[Design]) -> str:
    """One HTML page that needs no network."""
    first, *others = map(page.as_table, tables(summary))
    pictures = page.as_row(
        draw(summary, designs), "Intervals, performance profiles and learning curves of the designs"
    )
    scores = {run: score for d in summary["designs"].values() for run, score in d["scores"].items()}
    runs = page.as_table([["run", "score"], *([run, f"{s:.4f}"] for run, s in scores.items())])
    return page.as_page(
        title,
        [
            f"<p>Compared on {datetime.now():%Y-%m-%d %H:%M}.</p>",
            f"<p><strong>{escape(caution(summary))}</strong></p>",
            first,
            "<p>In brackets: 95 % intervals, bootstrapped over training seeds.</p>",
            pictures,
            "<p>Left: points are interquartile means, thick lines their intervals, thin marks the "
            "runs. Middle: the share of a design's runs that score more than the number below. "
            "Right: interquartile means over the seeds, and 95 % bands.</p>",
            *others,
            f"<details><summary>All runs</summary>{runs}</details>",
        ],
    )


def draw(summary: Mapping[str, Any], designs: Sequence[Design]) -> list[Figure]:
    """Interquartile means, performance profiles, learning curves with 95 % bands."""
    drawn = [figures.new_figure(4, 4.2) for _ in range(3)]
    means, profiles, curves = (figure.add_subplot() for figure in drawn)
    every = np.concatenate([design.scores for design in designs])
    margin = 0.05 * (np.ptp(every) or 1.0)
    levels = np.linspace(every.min() - margin, every.max() + margin, 200)
    for i, (design, style) in enumerate(zip(designs, cycle(figures.STYLES), strict=False)):
        colour = figures.COLOURS[i % len(figures.COLOURS)]
        value, low, high = summary["designs"][design.name]["interquartile_mean"]
        means.plot(design.scores, [i] * len(design.runs), "|", color=colour, alpha=0.5)
        if low == low:
            means.plot([low, high], [i, i], color=colour, linewidth=6, alpha=0.4)
        means.plot(value, i, "o", color=colour)
        line = {"color": colour, "linestyle": style, "label": design.name}
        profiles.step(levels, performance_profile(design.scores, levels), **line)
        _draw_curve(curves, design, line)
    means.set_yticks(range(len(designs)), [_wrapped(design.name) for design in designs])
    for i, label in enumerate(means.get_yticklabels()):
        label.set_color(figures.COLOURS[i % len(figures.COLOURS)])
    means.set_ylim(len(designs) - 0.5, -0.5)
    means.set_title("interquartile mean, and every run")
    profiles.set_title("share of runs that score more")
    profiles.set_ylim(-0.02, 1.02)
    curves.set_title("return in training")
    figures.count_steps(curves)
    for axes in (means, profiles):
        axes.set_xlabel("score")
        axes.locator_params(axis="x", nbins=4)  # numbers of many digits don't touch
    for axes in (means, profiles, curves):
        figures.unframe(axes)
    for axes in (profiles, curves):
        figures.legend_below(axes, ncols=1)
    return drawn


def _draw_curve(axes: Axes, design: Design, line: Mapping[str, Any]) -> None:
    """Interquartile mean over the seeds, as far as all of them have come."""
    known = [run.curve[np.isfinite(run.curve[:, 1])] for run in design.runs]
    known = [curve for curve in known if len(curve)]
    if not known:
        return
    last = min(curve[-1, 0] for curve in known)
    steps = max(known, key=len)[:, 0]
    steps = steps[(steps <= last) & (steps >= max(curve[0, 0] for curve in known))]
    returns = np.array([np.interp(steps, *curve.T) for curve in known])  # [seeds, steps]
    axes.plot(steps, interquartile_mean(returns, axis=0), **line)
    if len(known) > 1:
        chosen = np.random.default_rng(0).integers(len(known), size=(999, len(known)))
        resampled = interquartile_mean(returns[chosen], axis=1)
        axes.fill_between(
            steps,
            *np.percentile(resampled, (2.5, 97.5), axis=0),
            color=line["color"],
            alpha=0.15,
            lw=0,
        )


def _wrapped(name: str) -> str:
    return name.replace(" ", "\n")
