"""``esper-rl report``: write a page about a run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from esper_rl.cli.parsing import number_of_episodes
from esper_rl.runs import RunFolder
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.metrics import count_rows
from esper_rl.runs.outputs import check_output
from esper_rl.training.loading import read_config

RELOAD_SECONDS = 10
"""Between two looks of a browser at the page of a run that goes on."""

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
    parser.add_argument(
        "--live",
        action="store_true",
        help="write it again after every iteration until the run is over; a browser that shows it "
        "follows. Episodes are played at the end",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    from esper_rl.report.run_report import report_run  # loads Matplotlib

    own = RunFolder.open(arguments.run, begun=True).report
    output = arguments.output or own
    check_output("--output", output, ".html", own=own)

    def write(episodes: int, reload_seconds: int | None = None) -> None:
        page = report_run(arguments.run, episodes, reload_seconds)
        write_atomically(output, page.encode(errors="replace"))

    if arguments.live:
        run = RunFolder(arguments.run)
        print(f"{output} follows the run; Ctrl-C ends this", file=sys.stderr, flush=True)
        for _ in _iterations(run, read_config(run).iterations):
            write(episodes=0, reload_seconds=RELOAD_SECONDS)
    write(arguments.episodes)
    print(f"The report is in {output}")


def _iterations(run: RunFolder, until: int) -> Iterator[int]:
    """The numbers of iterations that are over, whenever there are more, before the last one."""
    shown = -1
    while (done := count_rows(run.metrics)) < until:
        if done > shown:
            yield done
            shown = done
        time.sleep(1)
