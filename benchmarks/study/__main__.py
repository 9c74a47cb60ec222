"""Is V2 better than V1, and is a learned grower worth its training?

    python -m benchmarks.study PART [--only TASK ...] [--minutes 110]

Measures the runs of a part that aren't there yet, two beside each other, and begins none after so
many minutes: the same words go on. The part "page" makes pictures, and tables of docs/study.md,
which is the protocol; settings.yaml has its numbers, benchmarks/results/study/ a file for each task
and variant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.seeds import Run
from benchmarks.study.advantages import measure_advantages
from benchmarks.study.growers import grow
from benchmarks.study.mixture import train_on_all
from benchmarks.study.page import write_pages
from benchmarks.study.pictures import draw_all
from benchmarks.study.runs import measure_missing, train_and_play
from benchmarks.study.scratch import measure_scratch
from benchmarks.study.settings import (
    ADVANTAGES,
    GROWERS,
    MIXTURE,
    TUNING,
    Job,
    advantage_jobs,
    grower_jobs,
    jobs_of,
    mixture_jobs,
    settings,
    tuning_jobs,
)
from benchmarks.study.speed import measure_speed


def make_page() -> None:
    """Draw the pictures, and write the tables, of all results that there are."""
    draw_all()
    write_pages()


OTHERS: dict[str, Callable[[list[str]], None]] = {
    "scratch": measure_scratch,
    "speed": measure_speed,
    "page": lambda tasks: make_page(),
}
"""Parts that aren't made of runs, by name: each takes the tasks."""

JOBS: dict[str, tuple[Callable[[list[str]], Iterator[Job]], Callable[[Job], Run]]] = {
    TUNING: (tuning_jobs, train_and_play),
    GROWERS: (grower_jobs, grow),
    MIXTURE: (mixture_jobs, train_on_all),
    ADVANTAGES: (advantage_jobs, measure_advantages),
    **{part: (partial(jobs_of, part), train_and_play) for part in settings()["parts"]},
}
"""By part: its runs on some tasks, and what measures one."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = list(settings()["hosts"])
    parser.add_argument("part", choices=[*JOBS, *OTHERS])
    parser.add_argument(
        "--only", nargs="+", metavar="TASK", choices=tasks, default=tasks, help="these tasks"
    )
    parser.add_argument(
        "--minutes", type=float, default=110, help="begin no run after them (default 110)"
    )
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other (default 2)")
    args = parser.parse_args()
    if args.part in OTHERS:
        OTHERS[args.part](args.only)
        return
    jobs, measure = JOBS[args.part]
    try:
        wanted = list(jobs(args.only))
    except LookupError as error:
        parser.error(str(error))
    missing = measure_missing(wanted, measure, args.at_once, args.minutes)
    print(f"{missing} runs are left" if missing else "all runs are there")


if __name__ == "__main__":
    main()
