"""``esper-rl report``: write a page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from esper_rl.cli.parsing import number_of_episodes
from esper_rl.runs import RunFolder
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.outputs import check_output

HELP = "write a page about a run"
DESCRIPTION = (
    "Write one HTML page about a run, which needs no network: what was trained and with what, the "
    "result, learning curves, entropies, ops, value, memory and credit, and what the greedy policy "
    "grows in three episodes, told slot by slot."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    parser.add_argument(
        "--episodes",
        type=number_of_episodes,
        default=16,
        help="episodes that are played, of which three are shown (default %(default)s)",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (default report.html in the run)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    from esper_rl.report.run_report import report_run  # loads Matplotlib

    own = RunFolder.open(arguments.run, begun=True).report
    output = arguments.output or own
    check_output("--output", output, ".html", own=own)
    write_atomically(output, report_run(arguments.run, arguments.episodes).encode(errors="replace"))
    print(f"The report is in {output}")
