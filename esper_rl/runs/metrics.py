"""The numbers of a run, one line an iteration."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from esper_rl.runs.atomic_write import errors_name, write_atomically


def append_row(file: Path, row: Mapping[str, float]) -> None:
    """Add one iteration's numbers to a CSV file, which gets its header from the first one.

    The file is closed again at once, so whatever ends the run loses no iteration.
    """
    new = not file.exists()
    with errors_name(file), file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def read_columns(file: Path, names: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Some numbers of all iterations, by name; all of them by default.

    Raises:
        OSError: when there is no file.
        KeyError, TypeError, ValueError: when a number is missing, or isn't one.
    """
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        try:
            lines = list(reader)
        except csv.Error as error:
            raise ValueError(str(error)) from error
    wanted = reader.fieldnames or () if names is None else names
    return {name: [float(line[name]) for line in lines] for name in wanted}


def read_latest(file: Path, name: str) -> tuple[int, float]:
    """Number of whole lines below the header, and the last one's number of a column.

    A line that is being written doesn't count. Without any it is 0, and nan.

    Raises:
        ValueError: when there is no such column.
    """
    header, *lines = _whole_lines(file) or [""]
    if not lines:
        return 0, math.nan
    column = header.rstrip().split(",").index(name)
    return len(lines), float(lines[-1].split(",")[column])


def count_rows(file: Path) -> int:
    """Number of whole lines below the header, 0 if there is no file."""
    return max(0, len(_whole_lines(file)) - 1)


def keep_rows(file: Path, count: int) -> int:
    """Drop what comes behind the first ``count`` lines below the header.

    Returns:
        The number of lines that are there now; fewer if there were fewer.
    """
    lines = _whole_lines(file)[: count + 1]
    if lines:
        write_atomically(file, "".join(lines).encode())
    return max(0, len(lines) - 1)


def _whole_lines(file: Path) -> list[str]:
    """Lines of as many numbers as the header has names, up to the first one that is damaged."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8", errors="replace") as opened:
        lines = opened.readlines()
    header = next(csv.reader(lines[:1]), [])
    whole = lines[:1] if lines and lines[0].endswith("\n") else []
    for line in lines[1:] if whole else []:
        if not line.endswith("\n") or not _are_numbers(line.rstrip().split(","), len(header)):
            break
        whole.append(line)
    return whole


def _are_numbers(fields: Sequence[str], count: int) -> bool:
    try:
        return len([float(field) for field in fields]) == count
    except ValueError:
        return False
