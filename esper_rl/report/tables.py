"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill

from envs import ArrayTask
from envs.actions import BLUEPRINTS
from envs.tasks.base import Task
from esper_rl.evaluation.episodes import Summary

_COLUMNS = {
    "returns": ("discounted return", 2),
    "final_accuracy": ("final accuracy %", 1),
    "seed_params": ("seed parameters", 0),
    "fossilized": ("fossilized seeds", 2),
}


def _cell(mean: float, ci95: float | None, digits: int) -> str:
    """Mean and interval; of one episode there is none."""
    interval = "" if ci95 is None or ci95 != ci95 else f" ± {ci95:,.{digits}f}"
    return f"{mean:,.{digits}f}{interval}"


def format_evaluations(
    summaries: Mapping[str, Summary], episodes: int, width: int | None = None
) -> str:
    """Write a line a policy: mean and half width of the 95 % confidence interval of each measure.

    Args:
        summaries: by policy, what :meth:`esper_rl.evaluation.episodes.Evaluation.summary` gives.
        episodes: how many each of them is over.
        width: of the terminal, in columns. If a table is wider, each policy's name gets a line
            of its own; default: there is no limit.
    """
    rows = evaluation_rows(summaries)
    lines = align(rows)
    if width is not None and len(lines[0]) > width:
        # Titles of two words are two lines, and numbers stand below the names.
        titles = [title.partition(" ")[::2] for title, _ in _COLUMNS.values()]
        numbers = align(
            [["", *words] for words in zip(*titles, strict=True)]
            + [["", *row[1:]] for row in rows[1:]]
        )
        lines = numbers[:2]
        for name, line in zip(summaries, numbers[2:], strict=True):
            lines += [name, line]
        head = 2
    else:
        head = 1
    rule = "-" * max(map(len, lines))
    note = f"mean ± 95 % confidence interval over {episodes} episodes"
    if episodes == 1:
        note = "one episode; more of them have an interval"
    return "\n".join([*lines[:head], rule, *lines[head:], rule, note])


def evaluation_rows(summaries: Mapping[str, Summary]) -> list[list[str]]:
    """Cells of that table, titles first."""
    rows = [["policy", *(title for title, _ in _COLUMNS.values())]]
    for name, summary in summaries.items():
        cells = [_cell(**summary[key], digits=digits) for key, (_, digits) in _COLUMNS.items()]
        rows.append([name, *cells])
    return rows


def align(
    rows: Sequence[Sequence[str]], others: Callable[[str, int], str] = str.rjust
) -> list[str]:
    """Columns beside each other, the first one at its left edge.

    Args:
        rows: of cells.
        others: how the other columns stand, by default at their right edge.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(others, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def format_task(name: str, task: Task, width: int) -> str:
    """Describe a task in some lines: its data, host, slots and blueprints.

    Args:
        name: that it is asked for by.
        task: the task.
        width: of the terminal, in columns.
    """
    facts = [f"{task.num_slots} slots", f"{task.max_epochs} epochs an episode"]
    blueprints: Sequence[str] = BLUEPRINTS
    if isinstance(task, ArrayTask):
        examples = len(task.train.targets)
        facts += [
            f"{examples:,} training and {task.validation_size:,} validation examples",
            f"{task.batches_per_epoch} minibatches of {task.minibatch_size} an epoch",
            f"{task.topology} host of {task.host_size:,} parameters",
        ]
        blueprints = tuple(task.host.blueprints)
    grown = f"grows {', '.join(blueprints)}"
    return _indented(name, [task.description, "; ".join(facts), grown], width)


def format_problem(name: str, problem: str, width: int) -> str:
    """The same for a task that can't be made here."""
    return _indented(name, [problem], width)


def _indented(title: str, paragraphs: Sequence[str], width: int) -> str:
    lines = [fill(text, width, initial_indent="  ", subsequent_indent="  ") for text in paragraphs]
    return "\n".join([title, *lines])
