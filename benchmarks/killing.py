"""Killing a training run over and over, for the benchmark and the tests."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from esper_rl import load_policy
from esper_rl.cli import main

RUN = (
    "env.num_envs=4",
    "env.max_epochs=7",
    "env.batches_per_epoch=1",
    "env.minibatch_size=8",
    "env.validation_size=20",
    "policy.hidden_size=32",
    "ppo.epochs=1",
    "steps_per_iteration=20",
    "total_steps=400",
    "eval_episodes=0",
    "save_seconds=0",
    "threads=1",
)
"""Twenty iterations of some tenths of a second; episodes end in the middle of them."""


def numbers(run: Path) -> list[dict[str, str]]:
    """Lines of a run's metrics as they were written, without timings."""
    with (run / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in line.items() if "second" not in name}
            for line in csv.DictReader(file)
        ]


def same_weights(a: Path, b: Path) -> bool:
    """Are the policies of two runs bitwise the same?"""
    first, second = (load_policy(run).network.state_dict() for run in (a, b))
    return all(first[name].equal(second[name]) for name in first)


def run_quietly(log: Path, *words: str) -> NoReturn:
    """Run ``esper-rl`` with these words in a process that was forked, which is to be killed.

    Args:
        log: file to which it writes what it prints.
        words: of the command line.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.setpgid(0, 0)  # so that the processes which collect can be killed with it
    tqdm.set_lock(threading.RLock())  # its own: forked ones share one, which a killed one may hold
    sys.exit(main(words))


def starts_at_once() -> ForkServerContext:
    """Processes that are forked from one that has loaded all that a run needs."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["benchmarks.warm"])
    first = server.Process(target=int)  # which waits until everything is loaded
    first.start()
    first.join()
    return server


def kill_until_over(
    server: ForkServerContext,
    run: Path,
    overrides: Sequence[str],
    mean_seconds: float,
    chance: random.Random,
    workers: Callable[[], Sequence[int]] = list,
) -> Iterator[None]:
    """Begin a run, kill it and go on with it until it ends by itself; yields at every kill.

    The processes that collect for the run are killed with it, as when the power fails. A run that
    isn't over after 200 kills, many times as many as any needs that gets on, hangs: an error.

    Args:
        server: of :func:`starts_at_once`.
        run: its folder, new.
        overrides: its configuration.
        mean_seconds: from a start to a kill, exponentially distributed.
        chance: draws them, and what is killed.
        workers: gives the numbers of other processes that collect for it; where there are any, one
            of them is killed half of the time. Then the run must end with a word.
    """
    words, log = ["train", *overrides, f"run_dir={run}"], run.with_name(f"{run.name}.log")
    for _ in range(200):
        process = server.Process(target=run_quietly, args=(log, *words))
        process.start()
        process.join(chance.expovariate(1 / mean_seconds))
        others = workers()
        if others and chance.random() < 0.5:
            expected = 1
            with suppress(ProcessLookupError):
                os.kill(chance.choice(others), signal.SIGKILL)
        else:
            expected = -signal.SIGKILL
            process.kill()
            with suppress(ProcessLookupError):  # those that collect, which would end a while later
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            return
        if process.exitcode != expected or (expected == 1 and "--resume" not in log.read_text()):
            raise AssertionError(f"{run} ended by itself, {process.exitcode}: {log.read_text()}")
        yield
        if run.exists():
            words = ["train", "--resume", str(run)]
    raise AssertionError(f"{run} doesn't end, however often it goes on: {log.read_text()}")
