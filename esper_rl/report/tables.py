"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

_COLUMNS = {
    "returns": ("discounted return", 2),
    "final_accuracy": ("final accuracy %", 1),
    "seed_params": ("seed parameters", 0),
    "fossilized": ("fossilized seeds", 2),
}


Summary = Mapping[str, Mapping[str, float]]
"""Of every measure its ``mean`` and ``ci95``."""


def _cell(mean: float, ci95: float, digits: int) -> str:
    """Mean and interval; of one episode there is none."""
    interval = "" if ci95 != ci95 else f" ± {ci95:,.{digits}f}"
    return f"{mean:,.{digits}f}{interval}"


def format_evaluations(summaries: Mapping[str, Summary], episodes: int) -> str:
    """Write a line a policy: mean and half width of the 95 % confidence interval of each measure.

    Args:
        summaries: by policy, what :meth:`esper_rl.evaluation.Evaluation.summary` gives.
        episodes: how many each of them is over.
    """
    rows = [["policy", *(title for title, _ in _COLUMNS.values())]]
    for name, summary in summaries.items():
        cells = [_cell(**summary[key], digits=digits) for key, (_, digits) in _COLUMNS.items()]
        rows.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    rule = "-" * len(lines[0])
    note = f"mean ± 95 % confidence interval over {episodes} episodes"
    return "\n".join([lines[0], rule, *lines[1:], rule, note])
