"""Studies over training seeds: each run in a process of its own, on disk as soon as it is over."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.metrics import read_columns

Run = dict[str, Any]
"""What was measured of a training run, by name."""


RESULTS = Path(__file__).parent / "results"


def study_parser(
    description: str | None, seeds: int, *, settings: bool = True
) -> argparse.ArgumentParser:
    """A command line with ``--seeds``, by default so many, and ``--name``, see :func:`open_study`.

    Args:
        description: of the study.
        seeds: training seeds where nothing is said.
        settings: add ``--set``, settings of the runs.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, default=seeds, help=f"how many, from 0 (default {seeds})"
    )
    if settings:
        parser.add_argument(
            "--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings"
        )
    parser.add_argument("--name", help="of other settings, in the names of their results' files")
    return parser


def open_study(
    parser: argparse.ArgumentParser, study: str, *options: str
) -> tuple[argparse.Namespace, Path, dict[str, Any]]:
    """Parse a command line and find the study's results: a file for each name of other settings.

    Args:
        parser: of :func:`study_parser`; ends the program on a bad command line.
        study: name of the study.
        options: that make its results others, which asks for a ``--name``.

    Returns:
        The arguments, the file, and what it holds, nothing where it isn't there yet.
    """
    args = parser.parse_args()
    others = [each for each in options if getattr(args, each) != parser.get_default(each)]
    if bool(others) != bool(args.name):
        named = " or ".join(f"--{each}" for each in options)
        parser.error(f"{named} and --name go together: other settings have files of their own")
    path = RESULTS / (f"{study}_{args.name}.json" if args.name else f"{study}.json")
    return args, path, json.loads(path.read_text()) if path.exists() else {}


def train_seed(seed: int, settings: Sequence[str], run: Path) -> Run:
    """Train as a user does, without an evaluation: how long it took, and the learning curve."""
    words = ["train", f"seed={seed}", f"run_dir={run}", "eval_episodes=0", *settings]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "esper_rl", *words], check=True, capture_output=True)
    minutes = (time.perf_counter() - start) / 60
    return {"minutes": minutes, "learning_curve": read_columns(run / "metrics.csv")["return"]}


def measure_missing(
    runs: dict[str, Run], seeds: int, measure: Callable[[int], Run], save: Callable[[], None]
) -> None:
    """Measure the seeds that are not in ``runs`` yet, and save after each."""
    missing = [seed for seed in range(seeds) if str(seed) not in runs]
    for seed in tqdm(missing, "runs", unit="run", disable=not missing):
        runs[str(seed)] = measure(seed)
        save()


def write_json(path: Path, content: object) -> None:
    """Write results; the file is never there by half."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
