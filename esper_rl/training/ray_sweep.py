"""Sweeps on a cluster of Ray: each run is a task of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from time import perf_counter
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from envs.registration import register_tasks, registered_tasks
from esper_rl.config import TrainConfig
from esper_rl.errors import ConfigError
from esper_rl.runs import RunFolder
from esper_rl.runs.metrics import read_latest
from esper_rl.training import cluster
from esper_rl.training.cluster import ask_machines, inside, room_for

_MOST_DEATHS = 100
"""Of machines or processes that a run of a sweep survives."""

_SECONDS_A_LOOK = 2.0

Run = Callable[[TrainConfig], object]


def sweep_on_ray(
    configs: Mapping[str, TrainConfig],
    run: Run,
    folder: Path,
    at_once: int | None = None,
    *,
    quiet: bool = False,
) -> None:
    """Run each of several configurations as a task, on whatever machine has room for it.

    A run whose process or machine dies is begun again elsewhere: ``run`` is called with the same
    configuration, whose folder is there then. A run that fails by itself doesn't end the others.

    Args:
        configs: by the names of the runs, which are those of their folders.
        run: trains with a configuration, or goes on.
        folder: for the runs' folders, on a path that all machines share.
        at_once: most runs beside each other; default: as many as there is room for. One takes
            ``workers`` times ``ray.cpus`` cores, and ``ray.gpus`` GPUs.
        quiet: without the table of all runs on stderr.

    Raises:
        ConfigError: when the cluster can't be entered, has no room for one of the runs, or a
            machine doesn't see the folder; when a run would collect with Ray.
        Exception: the first failure of a run, when all are over.
    """
    first = next(iter(configs.values())).ray
    if any(config.collector == "ray" for config in configs.values()):
        raise ConfigError(
            "collector must be sync or async in a sweep on Ray, each of whose runs is on one "
            "machine, got 'ray'"
        )
    folder = folder.absolute()
    with inside(first.address):
        for name, config in configs.items():
            if not room_for(config.workers * config.ray.cpus, config.ray.gpus):
                raise ConfigError(
                    f"ray.cpus: no machine has room for run {name}, which takes "
                    f"{config.workers * config.ray.cpus:g} cores (workers={config.workers} times "
                    f"ray.cpus) and {config.ray.gpus:g} GPUs"
                )
        folder.mkdir(parents=True, exist_ok=True)
        _check_shared(folder)
        placed = {
            name: replace(config, run_dir=str(folder / name)) for name, config in configs.items()
        }
        _Tasks(placed, run, at_once or len(placed), quiet=quiet).finish()


def _check_shared(folder: Path) -> None:
    """Refuse a folder that isn't the same one on all machines."""
    token = folder / f".seen-{uuid4().hex}"
    token.touch()
    try:
        for machine, sees in ask_machines(token.is_file).items():
            if not sees:
                raise ConfigError(
                    f"hydra.sweep.dir must be on a path that all machines share, got "
                    f"{str(folder)!r}, which machine {machine} doesn't see"
                )
    finally:
        token.unlink()


class _Tasks:
    """Runs as tasks, some at once, until all are over."""

    def __init__(
        self, configs: Mapping[str, TrainConfig], run: Run, at_once: int, *, quiet: bool
    ) -> None:
        self.configs, self.run, self.at_once = configs, run, at_once
        self.waiting, self.going, self.over = list(configs), dict[Any, str](), dict[str, str]()
        self.failures: list[BaseException] = []
        self.table = None if quiet else _Table(configs)

    def finish(self) -> None:
        ray = cluster.ray
        try:
            while self.waiting or self.going:
                while self.waiting and len(self.going) < self.at_once:
                    name = self.waiting.pop(0)
                    self.going[self._begin(name)] = name
                for done in ray.wait(list(self.going), timeout=_SECONDS_A_LOOK)[0]:
                    self._end(self.going.pop(done), done)
                if self.table is not None:
                    self.table.show(self.going.values(), self.over)
        except BaseException:
            for task in self.going:
                ray.cancel(task)  # as Ctrl-C would: it keeps its policy
            if self.going:
                ray.wait(list(self.going), num_returns=len(self.going), timeout=30.0)
            raise
        if self.failures:
            raise self.failures[0]

    def _begin(self, name: str) -> Any:
        config = self.configs[name]
        task = cluster.ray.remote(_run_there).options(
            name=name,
            num_cpus=config.workers * config.ray.cpus,
            num_gpus=config.ray.gpus,
            max_retries=_MOST_DEATHS,
        )
        return task.remote(self.run, config, registered_tasks())

    def _end(self, name: str, task: Any) -> None:
        try:
            cluster.ray.get(task)
        except Exception as error:
            self.over[name] = "failed"
            self.failures.append(getattr(error, "cause", None) or error)
        else:
            self.over[name] = "done"


def _run_there(run: Run, config: TrainConfig, tasks: Mapping[str, Any]) -> None:
    register_tasks(tasks)
    run(config)


class _Table:
    """The runs of a sweep: on a terminal drawn anew, elsewhere when one of them begins or ends.

    It reads the metrics in the runs' folders.
    """

    def __init__(self, configs: Mapping[str, TrainConfig]) -> None:
        self.configs, self.drawn = configs, 0
        self.shown: dict[str, str] = {}
        self.began = perf_counter()
        self.done_before = sum(_progress(config)[0] for config in configs.values())

    def show(self, going: Collection[str], over: Mapping[str, str]) -> None:
        """Print it, if there is anything to be seen."""
        states = {name: over.get(name, "waiting") for name in self.configs}
        states |= dict.fromkeys(going, "training")
        on_terminal = sys.stderr.isatty()
        if states == self.shown and not on_terminal:
            return
        self.shown, lines = states, self._lines(states)
        if on_terminal and len(lines) >= (height := get_terminal_size().lines):
            lines = [*lines[: height - 2], f"  and {len(lines) - height + 2} more"]
        up = f"\x1b[{self.drawn}A\x1b[J" if on_terminal and self.drawn else ""
        print(up + "\n".join(lines), file=sys.stderr, flush=True)
        self.drawn = len(lines)

    def _lines(self, states: Mapping[str, str]) -> list[str]:
        """A line for the whole sweep and one for each run, those that train first."""
        found = {name: _progress(config) for name, config in self.configs.items()}
        width = max(map(len, self.configs))
        rows = []
        for name, state in sorted(states.items(), key=lambda item: item[1] != "training"):
            steps, wanted, earned = found[name]
            doing = "evaluating" if state == "training" and steps == wanted else state
            numbers = f"{steps:>9,} of {wanted:,} steps, return {earned:.2f}" if steps else ""
            rows.append(f"  {name:<{width}}  {doing:<10}  {numbers}".rstrip())
        done = sum(steps for steps, _, _ in found.values())
        left = sum(wanted for _, wanted, _ in found.values()) - done
        over = sum(state in ("done", "failed") for state in states.values())
        head = f"{over} of {len(states)} runs are over"
        if left and done > self.done_before:
            seconds = (perf_counter() - self.began) / (done - self.done_before) * left
            head += f", {tqdm.format_interval(seconds)} left"
        return [head, *rows]


def _progress(config: TrainConfig) -> tuple[int, int, float]:
    """Steps that a run has made, those that it is to make, and its latest mean return."""
    made, earned = read_latest(RunFolder(Path(str(config.run_dir))).metrics, "return")
    return made * config.rollout_steps, config.iterations * config.rollout_steps, earned
