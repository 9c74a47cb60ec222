"""``esper-rl compare``: compare designs over training seeds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from esper_rl.cli.parsing import JSON_HELP
from esper_rl.evaluation.episodes import MEASURES, without_nan
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.outputs import check_output
from esper_rl.training.loading import all_settings

HELP = "compare designs over training seeds"
DESCRIPTION = (
    "Compare runs by their evaluations: those that differ in nothing but the seed are one design. "
    "Interquartile means, probabilities of improvement, performance profiles and learning curves "
    "with 95 % intervals over training seeds (Agarwal et al. 2021)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="folders of runs, or folders above them"
    )
    parser.add_argument(
        "--player", default="greedy", help="whose evaluation counts (default %(default)s)"
    )
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        default="returns",
        help="what is compared (default %(default)s)",
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="write a page, too: FILE.html or FILE.md"
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def run(arguments: argparse.Namespace) -> None:
    """Compare the runs that the words name."""
    if arguments.output is not None:
        check_output("--output", arguments.output, ".html", ".md")
    print_comparison(
        arguments.runs,
        arguments.player,
        arguments.measure,
        as_json=arguments.json,
        output=arguments.output,
    )


def print_comparison(
    runs: Sequence[Path], player: str, measure: str, *, as_json: bool, output: Path | None = None
) -> None:
    from esper_rl.report import comparison_page as page  # loads SciPy
    from esper_rl.report.comparison import read_designs

    designs = read_designs(runs, player, measure, all_settings)
    summary, title = page.summarise(designs), page.title_of(measure, player, designs)
    if as_json:
        print(json.dumps(without_nan(summary), indent=2))
    else:
        print(title, *map(page.as_text, page.tables(summary)), sep="\n\n")
        print("\nin brackets: 95 % intervals, bootstrapped over training seeds")
    if page.caution(summary):
        print(f"esper-rl: {page.caution(summary)}", file=sys.stderr)
    if output is not None:
        if output.suffix == ".html":
            text = page.as_page(title, summary, designs)
        else:
            text = page.as_markdown(title, summary)
        write_atomically(output, text.encode(errors="replace"))
