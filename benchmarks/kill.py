"""Kills a training run over and over, and looks whether anything was lost.

    python -m benchmarks.kill [--kills 1000] [--jobs 1]
    RAY_AUTH_MODE=disabled python -m benchmarks.kill --ray --kills 50

A small run is killed (SIGKILL) at a random moment with all its processes, goes on with
``--resume``, is killed again, and so on until it is over; then it is compared with the same run
that nothing has ended: metrics (but for timings) and final weights, bitwise. A lost step is one
that is missing in the metrics, or there twice; a failure is a run that ended by itself before it
was over. This is repeated until there were enough kills. One run of eight collects in two
processes, which take longer to start than all the rest.

With ``--ray`` two workers of a cluster on this machine collect, and half of the time one of them is
killed instead of the run, which then must end with a word and go on with ``--resume``; what it is
compared with is the run of two processes.

The counts are in benchmarks/results/kill.json, or kill_ray.json, after every run; it starts again
from them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.killing import (
    RUN,
    kill_until_over,
    numbers,
    run_quietly,
    same_weights,
    starts_at_once,
)
from benchmarks.seeds import RESULTS, write_json

MEAN_SECONDS = {1: 1.5, 2: 15.0}
"""From start to kill, exponentially distributed, by the number of processes that collect, which
take longer to start: while it starts, trains, saves."""


def workers_on_ray() -> list[int]:
    """Numbers of the processes of Ray's workers that collect, of clusters of this process."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if (folder / "cmdline").read_bytes().startswith(b"ray::Collector"):
                found.append(folder.name)

    def is_mine(process: str) -> bool:
        while process in parents:
            if process == str(os.getpid()):
                return True
            process = parents[process]
        return False

    return [int(process) for process in found if is_mine(process)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other (default 1)")
    parser.add_argument("--ray", action="store_true", help="with workers of Ray")
    args = parser.parse_args()
    path = RESULTS / ("kill_ray.json" if args.ray else "kill.json")
    counts = dict.fromkeys(
        ("kills", "kills_with_two_processes", "runs", "lost_steps", "differing_runs", "failures"), 0
    )
    if path.exists():
        counts |= json.loads(path.read_text())
    server, folder = starts_at_once(), Path(tempfile.mkdtemp())
    whole = {workers: folder / f"whole-{workers}" for workers in MEAN_SECONDS}
    for workers, run in whole.items():
        words = ("train", *RUN, f"workers={workers}", f"run_dir={run}")
        process = server.Process(target=run_quietly, args=(folder / f"whole-{workers}.log", *words))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("the run that nothing ends has failed")
    on_ray: tuple[str, ...] = ()
    if args.ray:
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        address = ray.get_runtime_context().gcs_address
        on_ray = ("collector=ray", f"ray.address={address}")
    bar = tqdm(total=args.kills, initial=counts["kills"], unit="kill")

    def play(number: int) -> dict[str, int] | None:
        """What one run adds to the counts; None when there were enough kills."""
        if bar.n >= args.kills:
            return None
        workers, kills = 2 if args.ray or number % 8 == 1 else 1, 0
        run, overrides = folder / f"run-{number}", (*RUN, f"workers={workers}", *on_ray)
        chance, victims = random.Random(number), workers_on_ray if args.ray else list
        for _ in kill_until_over(server, run, overrides, MEAN_SECONDS[workers], chance, victims):
            kills += 1
            bar.update()
        lines, expected = numbers(run), numbers(whole[workers])
        steps = [line["steps"] for line in lines]
        lost = len({line["steps"] for line in expected} ^ set(steps)) + len(steps) - len(set(steps))
        same = lines == expected and same_weights(run, whole[workers])
        if not same:
            print(f"{run} isn't {whole[workers]}", flush=True)
        return {
            "kills": kills,
            "kills_with_two_processes": kills if workers == 2 else 0,
            "runs": 1,
            "lost_steps": 20 * lost,
            "differing_runs": not same,
        }

    first = counts["runs"]
    pool = ThreadPoolExecutor(args.jobs)
    try:
        jobs = [pool.submit(play, number) for number in range(first, first + args.kills)]
        for job in as_completed(jobs):
            try:
                found = job.result() or {}
            except AssertionError as error:
                print(error, flush=True)
                found = {"failures": 1}
            for name, number in found.items():
                counts[name] += number
            write_json(path, counts)
    finally:  # whatever goes wrong is seen now, not after all that is still to do
        pool.shutdown(cancel_futures=True)
    if not counts["differing_runs"] + counts["failures"]:
        shutil.rmtree(folder)
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    torch.set_num_threads(1)
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
