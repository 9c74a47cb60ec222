"""Seconds of an iteration against workers, by collector and task; and a model of it.

    python -m benchmarks.scaling [--tasks digits pydoc scaffold] [--iterations 8]

Each run is in a process of its own: some iterations, of which the first two, in which things are
made and compiled, don't count; medians of the others. An iteration is a worker's time in world and
policy, the learner's update, and what is left: sending weights and batches, metrics, waiting for
the slowest. More workers than cores are measured too, and marked. Every point goes into
benchmarks/results/scaling.json at once and is not measured again; the picture is scaling.png; the
model is in docs/scaling.md. Takes half an hour, in which nothing else should compute.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensordict import TensorDictBase
from tqdm import tqdm

from benchmarks.seeds import RESULTS, write_json
from esper_rl import Callback, load_policy, train
from esper_rl.config import TrainConfig, compose_config
from esper_rl.config.schema import COLLECTORS
from esper_rl.figures import legend_below, unframe
from esper_rl.runs import RunFolder

TASKS = ("digits", "pydoc", "scaffold")
WORKERS = (1, 2, 4)
SKIPPED = 2
"""Iterations at the beginning that don't count."""

Measured = dict[str, float | int | str]


class Clock(Callback):
    """Seconds between the ends of iterations, their metrics, and the bytes of a batch."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.seconds: list[float] = []
        self.rows: list[Mapping[str, float]] = []
        self.before = perf_counter()

    def on_rollout(self, batch: TensorDictBase) -> None:
        self.batch_bytes = batch.bytes()

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        now = perf_counter()
        self.seconds.append(now - self.before)
        self.rows.append(metrics)
        self.before = now


def measure(task: str, collector: str, workers: int, times: int, iterations: int) -> Measured:
    """One run, of so many times the rows that the task's runs have."""
    words = [f"task={task}", f"collector={collector}", f"workers={workers}"]
    words += ["loggers=[]", "eval_episodes=0", "save_seconds=1e9"]
    rows = times * compose_config(words[:1]).env.num_envs
    steps = compose_config([*words, f"env.num_envs={rows}"]).rollout_steps
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        words += [f"run_dir={folder}/run", f"env.num_envs={rows}"]
        config = compose_config([*words, f"total_steps={iterations * steps}"])
        run = train(config, [clock], quiet=True)
        weights = load_policy(run).actor.state_dict().values()
    counted = clock.rows[SKIPPED:]
    seconds = median(clock.seconds[SKIPPED:])
    parts = {
        part: median(row[f"seconds/{part}"] for row in counted)
        for part in ("env", "policy", "update")
    }
    return {
        "task": task,
        "collector": collector,
        "workers": workers,
        "rows": rows,
        "steps_per_second": steps / seconds,
        "seconds": seconds,
        **parts,
        "batch_bytes": clock.batch_bytes,
        "weights_bytes": workers * sum(each.nbytes for each in weights),
    }


# -- the model ----------------------------------------------------------------------------------


def fit(points: Sequence[Measured]) -> dict[str, float]:
    """The model's numbers, of runs of the same rows with one and with two workers.

    Returns:
        In seconds of an iteration: ``steps``, what a worker needs for its steps however few its
        rows are; ``rows``, what one worker would need for all rows beside that; ``update``, the
        learner's; ``transport`` and ``per_worker``, what is left, at all and for each worker.
    """
    known = {int(point["workers"]): point for point in points}
    work = {k: float(point["env"]) + float(point["policy"]) for k, point in known.items()}
    update = sum(float(point["update"]) for point in known.values()) / len(known)
    left = {k: float(point["seconds"]) - work[k] - update for k, point in known.items()}
    rows = max(0.0, 2 * (work[1] - work[2]))
    per_worker = max(0.0, left[2] - left[1])
    return {
        "steps": (work[1] + work[2] - 1.5 * rows) / 2,
        "rows": rows,
        "update": update,
        "transport": (left[1] + left[2] - 3 * per_worker) / 2,
        "per_worker": per_worker,
    }


def predict(
    model: Mapping[str, float], workers: int, cores: float = float("inf"), times: float = 1.0
) -> float:
    """Seconds of an iteration by the model.

    Args:
        model: of :func:`fit`.
        workers: which share the cores.
        cores: that there are for them.
        times: rows, in those that it was fitted to.
    """
    work = (model["steps"] + times * model["rows"] / workers) * max(1.0, workers / cores)
    learner = times * model["update"] + model["transport"] + workers * model["per_worker"]
    return work + learner


def draw(found: Sequence[Measured], path: Path) -> None:
    """Parts of an iteration by collector and workers, a panel for each task."""
    tasks = [task for task in TASKS if any(each["task"] == task for each in found)]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 4), layout="constrained", squeeze=False
    )
    parts = {"env": "world", "policy": "policy", "update": "update", "rest": "all else"}
    colors = dict(zip(parts, ("#0072B2", "#56B4E9", "#D55E00", "#999999"), strict=True))
    for axis, task in zip(axes[0], tasks, strict=True):
        here = [each for each in found if each["task"] == task and each["times"] == 1]
        for place, each in enumerate(here):
            left = 0.0
            own = sum(float(each[part]) for part in ("env", "policy", "update"))
            # Ahead of the learner, world and policy take their time while it learns.
            shown = {**each, "rest": max(0.0, float(each["seconds"]) - own)}
            for part, name in parts.items():
                label = name if place == 0 else None
                axis.barh(place, float(shown[part]), left=left, color=colors[part], label=label)
                left += float(shown[part])
            whole, label = float(each["seconds"]), None if place else "an iteration"
            axis.plot(whole, place, "k|", markersize=14, markeredgewidth=2, label=label)
        names = [
            f"{each['collector']}, {each['workers']}" + " *" * bool(each["oversubscribed"])
            for each in here
        ]
        axis.set_yticks(range(len(here)), names)
        axis.invert_yaxis()
        axis.set_xlabel("seconds of an iteration")
        axis.set_title(f"{task} (*: more workers than cores)", loc="left", fontsize="medium")
        axis.set_xlim(0, 1.05 * axis.get_xlim()[1])
        unframe(axis)
    legend_below(axes[0][0], ncols=len(parts) + 1)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--iterations", type=int, default=8, help="of each run, more than 2 (default 8)"
    )
    args = parser.parse_args()
    cores, path = os.cpu_count() or 1, RESULTS / "scaling.json"
    report = json.loads(path.read_text()) if path.exists() else {"cores": cores, "points": []}
    cells = [(task, *cell, 1) for task in args.tasks for cell in product(COLLECTORS, WORKERS)]
    cells += [(task, "ray", 2, 2) for task in args.tasks]  # twice the rows
    known = [_cell(point) for point in report["points"]]
    for cell in tqdm([each for each in cells if each not in known], "runs", unit="run"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(measure, *cell, args.iterations)
            point = found.result()
        report["points"].append({**point, "times": cell[-1], "oversubscribed": cell[2] > cores})
        write_json(path, report)
    show(report)
    draw(report["points"], path.with_suffix(".png"))


def _cell(point: Measured) -> tuple[float | int | str, ...]:
    return tuple(point[key] for key in ("task", "collector", "workers", "times"))


def show(report: Mapping) -> None:
    """Every point, and the model of each task beside what it wasn't fitted to."""
    cores = report["cores"]
    for each in report["points"]:
        mark = " (more workers than cores)" * each["oversubscribed"]
        print(
            f"{each['task']:<9} {each['collector']:<6} {each['workers']} workers, "
            f"{each['rows']} rows: {each['steps_per_second']:7.0f} steps/s, "
            f"{each['seconds']:6.2f} s an iteration (world {each['env']:.2f}, policy "
            f"{each['policy']:.2f}, update {each['update']:.2f}), "
            f"batch {each['batch_bytes'] / 1e6:.1f} MB, "
            f"weights {each['weights_bytes'] / 1e6:.1f} MB{mark}"
        )
    for task in dict.fromkeys(each["task"] for each in report["points"]):
        points = [e for e in report["points"] if e["task"] == task and e["collector"] == "ray"]
        fitted = [e for e in points if e["workers"] < 4 and e["times"] == 1]
        model = fit(fitted)
        print(f"{task}: " + ", ".join(f"{name} {value:.3f} s" for name, value in model.items()))
        for each in (each for each in points if each not in fitted):
            said = predict(model, each["workers"], cores, each["times"])
            print(
                f"  {each['workers']} workers, {each['rows']} rows: {said:.2f} s by the model, "
                f"{each['seconds']:.2f} measured, {said / each['seconds'] - 1:+.0%}"
            )
        steps, rows = fitted[0]["steps_per_second"] * fitted[0]["seconds"], fitted[0]["rows"]
        for workers in (2, 8, 64, 512):  # half of the rows for each
            seconds = predict(model, workers, times=workers / 2)
            share = (workers / 2 * model["update"] + workers * model["per_worker"]) / seconds
            print(
                f"  {workers} workers with a core and {rows / 2:.0f} rows each, by the model: "
                f"{steps * workers / 2 / seconds:.0f} steps/s, the learner takes {share:.0%}"
            )


if __name__ == "__main__":
    main()
