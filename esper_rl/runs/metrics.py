"""The numbers of a run, one line an iteration."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def append_row(file: Path, row: Mapping[str, float]) -> None:
    """Add one iteration's numbers to a CSV file, which gets its header from the first one.

    The file is closed again at once, so whatever ends the run loses no iteration.
    """
    new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
