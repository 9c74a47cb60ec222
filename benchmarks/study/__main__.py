"""Is V2 better than V1, and is a learned grower worth its training?

    python -m benchmarks.study PART [--only TASK ...] [--minutes 110]

Trains the runs of a part that aren't there yet, two beside each other, and begins none after so
many minutes: the same words go on. docs/study.md is the protocol, settings.yaml has its numbers;
results are in benchmarks/results/study/, a file for each task and variant.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.study.runs import train_missing
from benchmarks.study.settings import TUNING, Job, jobs_of, settings, tuning_jobs


def _jobs(part: str, tasks: list[str] | None) -> Iterator[Job]:
    if part == TUNING:
        yield from (job for job in tuning_jobs() if tasks is None or job.task in tasks)
        return
    for task in settings()["parts"][part]["seeds"]:
        if tasks is None or task in tasks:
            yield from jobs_of(part, task)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts, tasks = settings()["parts"], list(settings()["hosts"])
    parser.add_argument("part", choices=[TUNING, *parts])
    parser.add_argument("--only", nargs="+", metavar="TASK", choices=tasks, help="these tasks")
    parser.add_argument(
        "--minutes", type=float, default=110, help="begin no run after them (default 110)"
    )
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other (default 2)")
    args = parser.parse_args()
    missing = train_missing(_jobs(args.part, args.only), args.at_once, args.minutes)
    print(f"{missing} runs are left" if missing else "all runs are there")


if __name__ == "__main__":
    main()
