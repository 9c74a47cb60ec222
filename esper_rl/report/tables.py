"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from esper_rl.evaluation import Evaluation

_COLUMNS = {
    "returns": ("return", 2),
    "final_accuracy": ("final accuracy %", 1),
    "seed_params": ("seed parameters", 0),
    "fossilized": ("fossilized seeds", 2),
}


def format_evaluations(evaluations: Mapping[str, Evaluation]) -> str:
    """One line a policy: mean and half width of the 95 % confidence interval of every measure."""
    episodes = len(next(iter(evaluations.values())).returns)
    rows = [["policy", *(title for title, _ in _COLUMNS.values())]]
    for name, evaluation in evaluations.items():
        summary = evaluation.summary()
        cells = [
            f"{summary[key]['mean']:,.{digits}f} ± {summary[key]['ci95']:,.{digits}f}"
            for key, (_, digits) in _COLUMNS.items()
        ]
        rows.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    rule = "-" * len(lines[0])
    note = f"mean ± 95 % confidence interval over {episodes} episodes"
    return "\n".join([lines[0], rule, *lines[1:], rule, note])
