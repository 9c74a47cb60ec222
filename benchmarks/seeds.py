"""Studies over training seeds: each run in a process of its own, on disk as soon as it is over."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from esper_rl.runs.files import write_whole
from tests.support.runs import command, read_metrics

Run = dict[str, Any]
"""What was measured of a training run, by name."""


RESULTS = Path(__file__).parent / "results"


def study_parser(description: str | None, seeds: int) -> argparse.ArgumentParser:
    """A command line with ``--seeds``, by default so many, and ``--name``, of other settings."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, default=seeds, help=f"how many, from 0 (default {seeds})"
    )
    parser.add_argument("--name", help="of other settings, in the names of their results' files")
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, settings of the runs."""
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings")


def study_path(
    parser: argparse.ArgumentParser, study: str, name: str | None, option: str, given: bool
) -> Path:
    """Where a study's results lie: those of other settings in files that are named after them.

    Args:
        parser: tells of a bad command line.
        study: name of the study.
        name: of the settings, if there is one.
        option: that makes settings others.
        given: was it?
    """
    if given != bool(name):
        parser.error(f"{option} and --name go together: other settings have files of their own")
    return RESULTS / (f"{study}_{name}.json" if name else f"{study}.json")


def train_seed(seed: int, settings: Sequence[str], run: Path) -> Run:
    """Train as a user does, without an evaluation: how long it took, and the learning curve."""
    words = ["train", f"seed={seed}", f"run_dir={run}", "eval_episodes=0", *settings]
    start = time.perf_counter()
    subprocess.run(command(*words), check=True, capture_output=True)
    minutes = (time.perf_counter() - start) / 60
    return {"minutes": minutes, "learning_curve": [line["return"] for line in read_metrics(run)]}


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
    write_whole(path, text.encode())
