"""Seconds of an iteration against workers, by collector and task; and a model of it.

    python -m benchmarks.scaling [--tasks digits pydoc scaffold] [--iterations 8]

Each run is in a process of its own: some iterations, of which the first two, in which things are
made and compiled, don't count; medians of the others. An iteration is a worker's time in world and
policy, the learner's update, and what is left: sending weights and batches, metrics, waiting for
the slowest. More workers than cores are measured too, and marked. The numbers go into
benchmarks/results/scaling.json, the picture is scaling.png; the model is in docs/scaling.md. Takes
about twenty minutes, in which nothing else should compute.
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
from esper_rl.figures import legend_below, unframe
from esper_rl.runs import RunFolder

TASKS = ("digits", "pydoc", "scaffold")
COLLECTORS = ("sync", "async", "ray")
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


def fit(points: Sequence[Measured], cores: int) -> dict[str, float]:
    """The model's numbers, of runs with one and two workers.

    Returns:
        ``work``: core-seconds of world and policy; ``update``: seconds of the learner;
        ``transport`` and ``per_worker``: what is left, at all and for each worker.
    """
    known = {int(point["workers"]): point for point in points}
    left = {}
    for workers, point in known.items():
        own = float(point["env"]) + float(point["policy"]) + float(point["update"])
        left[workers] = float(point["seconds"]) - own
    one = known[1]
    return {
        "work": float(one["env"]) + float(one["policy"]),
        "update": float(one["update"]),
        "transport": 2 * left[1] - left[2],
        "per_worker": left[2] - left[1],
    }


def predict(model: Mapping[str, float], workers: int, cores: int, times: float = 1.0) -> float:
    """Seconds of an iteration by the model, of so many times the rows that it was fitted to."""
    work, update = times * model["work"], times * model["update"]
    return work / min(workers, cores) + update + model["transport"] + model["per_worker"] * workers


def draw(found: Sequence[Measured], path: Path) -> None:
    """Parts of an iteration by collector and workers, a panel for each task."""
    tasks = [task for task in TASKS if any(each["task"] == task for each in found)]
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4 * len(tasks), 4), layout="constrained", squeeze=False
    )
    parts = {"env": "world", "policy": "policy", "update": "update", "rest": "all else"}
    colors = dict(zip(parts, ("#0072B2", "#56B4E9", "#D55E00", "#999999"), strict=True))
    for axis, task in zip(axes[0], tasks, strict=True):
        here = [each for each in found if each["task"] == task and not each["doubled"]]
        for place, each in enumerate(here):
            left = 0.0
            own = sum(float(each[part]) for part in ("env", "policy", "update"))
            # Ahead of the learner, world and policy take their time while it learns.
            shown = {**each, "rest": max(0.0, float(each["seconds"]) - own)}
            for part, name in parts.items():
                label = name if place == 0 else None
                axis.barh(place, float(shown[part]), left=left, color=colors[part], label=label)
                left += float(shown[part])
            axis.plot(float(each["seconds"]), place, "k|", markersize=14, markeredgewidth=2)
        names = [
            f"{each['collector']}, {each['workers']}" + " *" * bool(each["oversubscribed"])
            for each in here
        ]
        axis.set_yticks(range(len(here)), names)
        axis.invert_yaxis()
        axis.set_xlabel("seconds of an iteration")
        axis.set_title(task, loc="left", fontsize="medium")
        unframe(axis)
    legend_below(axes[0][0], ncols=len(parts))
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
    for task, collector, workers, times in tqdm(cells, "runs", unit="run"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(measure, task, collector, workers, times, args.iterations)
            point = found.result()
        point |= {"doubled": times == 2, "oversubscribed": workers > cores}
        same = ("task", "collector", "workers", "doubled")
        report["points"] = [
            each for each in report["points"] if any(each[key] != point[key] for key in same)
        ] + [point]
        write_json(path, report)
    show(report)
    draw(report["points"], path.with_suffix(".png"))


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
        model = fit([e for e in points if e["workers"] < 4 and not e["doubled"]], cores)
        print(f"{task}: " + ", ".join(f"{name} {value:.3f} s" for name, value in model.items()))
        for each in points:
            if each["workers"] == 4 or each["doubled"]:
                said = predict(model, each["workers"], cores, 2 if each["doubled"] else 1)
                print(
                    f"  {each['workers']} workers, {each['rows']} rows: {said:.2f} s by the model, "
                    f"{each['seconds']:.2f} measured, {said / each['seconds'] - 1:+.0%}"
                )


if __name__ == "__main__":
    main()
