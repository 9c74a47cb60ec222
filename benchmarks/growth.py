"""Does growth pay, and does the place matter? Final accuracy of fixed schedules.

    python -m benchmarks.growth [--tasks digits digits_full pydoc] [--rows 32]

Every schedule plants its seeds as early as possible, ramps them up fast and fossilizes them. Each
blueprint at each slot, beside WAIT; then pairs of those that earn most at each of two slots.
``digits_full`` is a control where growth should not pay. All schedules and WAIT play the same hosts
on the same minibatches: one beats WAIT in accuracy or in return if the mean of its paired
differences is above 0 at a family-wise level of 95 % (Bonferroni, over all schedules of the task).
Results go to benchmarks/results/growth.json, where those of other tasks stay, and growth.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import NormalDist

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from benchmarks.seeds import RESULTS, write_json
from envs import MorphogenesisEnv
from esper_rl.evaluation import EVALUATION_SEED, evaluate
from esper_rl.evaluation.episodes import Evaluation
from esper_rl.figures import legend_below
from esper_rl.growing.baselines import SchedulePolicy

TASKS = ("digits", "digits_full", "pydoc")
PAIRED = 2
"""Singles of a slot that are paired, those that earn most."""

COMPARED = {"final_accuracy": "accuracy", "returns": "return"}


def measure(task: str, rows: int) -> dict[str, dict]:
    """Summaries by schedule, "wait", "BLUEPRINT@SLOT" or "… + …", with its points over WAIT."""
    env = MorphogenesisEnv(task, num_envs=rows, seed=EVALUATION_SEED)
    offered = {name: env.population.blueprints.index(name) for name in env.task.host.blueprints}
    played: dict[str, Evaluation] = {}

    def play(seeds: Sequence[tuple[str, int]]) -> None:
        blueprints = torch.full((env.num_slots,), -1)
        for name, slot in seeds:
            blueprints[slot] = offered[name]
        policy = SchedulePolicy(blueprints, torch.zeros_like(blueprints), env.max_epochs)
        env.set_seed(EVALUATION_SEED)
        played[schedule_name(seeds)] = evaluate(policy, env, rows)

    singles = [(name, slot) for name in offered for slot in range(env.num_slots)]
    for seeds in tqdm([[], *([single] for single in singles)], task, unit="schedule"):
        play(seeds)
    singles.sort(key=lambda single: -played[schedule_name([single])].returns.mean().item())
    best = [
        [(name, place) for name, place in singles if place == slot][:PAIRED]
        for slot in range(env.num_slots)
    ]
    pairs = [pair for two in combinations(best, 2) for pair in product(*two)]
    for pair in tqdm(pairs, f"{task}, pairs", unit="schedule"):
        play(pair)
    one_sided = 0.025 / (len(played) - 1)
    widened = NormalDist().inv_cdf(1 - one_sided)
    results = {}
    for name, evaluation in played.items():
        over = {}
        for quantity in COMPARED:
            paired = getattr(evaluation, quantity) - getattr(played["wait"], quantity)
            margin = widened * paired.std().item() / math.sqrt(rows)
            mean = paired.mean().item()
            over[quantity] = {"mean": mean, "margin": margin, "beats": mean > margin}
        results[name] = evaluation.summary() | {"over_wait": over}
    return results


def schedule_name(seeds: Sequence[tuple[str, int]]) -> str:
    return " + ".join(f"{name}@{slot}" for name, slot in seeds) or "wait"


def draw(results: dict[str, dict[str, dict]], path: Path) -> None:
    """Final accuracy of every single, a panel a task; WAIT as a band, the best pair as a line."""
    figure, axes = plt.subplots(
        len(results), 1, figsize=(8, 3.1 * len(results)), squeeze=False, layout="constrained"
    )
    axes = axes[:, 0]
    for axis, (task, schedules) in zip(axes, results.items(), strict=True):
        wait = schedules["wait"]["final_accuracy"]
        axis.axvspan(
            wait["mean"] - wait["ci95"], wait["mean"] + wait["ci95"], color="0.8", label="no seed"
        )
        pairs = [name for name in schedules if " + " in name]
        best = max(pairs, key=lambda name: schedules[name]["returns"]["mean"])
        axis.axvline(
            schedules[best]["final_accuracy"]["mean"],
            color="black",
            linestyle="--",
            linewidth=1,
            label="best pair (by return)",
        )
        singles = [name for name in schedules if "@" in name and name not in pairs]
        blueprints = list(dict.fromkeys(name.split("@")[0] for name in singles))
        for slot, (colour, marker) in enumerate(
            (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"))
        ):
            cells = [schedules[f"{name}@{slot}"]["final_accuracy"] for name in blueprints]
            axis.errorbar(
                [cell["mean"] for cell in cells],
                [i + (slot - 1) * 0.2 for i in range(len(blueprints))],
                xerr=[cell["ci95"] for cell in cells],
                fmt=marker,
                color=colour,
                label=f"slot {slot}",
            )
        axis.set_yticks(range(len(blueprints)), blueprints)
        axis.invert_yaxis()
        axis.set_title(f"one seed on {task}; best pair: {best}", loc="left", fontsize="medium")
        axis.grid(axis="x", alpha=0.3)
    axes[-1].set_xlabel(
        "accuracy at the end, %: mean and 95 % interval, on a scale of each task's own"
    )
    legend_below(axes[0], ncols=5)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--rows", type=int, default=32, help="hosts a schedule (default 32)")
    args = parser.parse_args()
    path = RESULTS / "growth.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    results = {task: measure(task, args.rows) for task in args.tasks}
    for task, found in results.items():
        print(f"\n{task}: final accuracy in %, {args.rows} rows, ± 95 % confidence")
        for name, summary in sorted(
            found.items(), key=lambda item: -item[1]["final_accuracy"]["mean"]
        ):
            cells = [f"  {name:<28}"]
            for quantity, label in COMPARED.items():
                value, over = summary[quantity], summary["over_wait"][quantity]
                cells.append(
                    f"{label} {value['mean']:5.2f} ± {value['ci95']:.2f}, "
                    f"over wait {over['mean']:5.2f} ± {over['margin']:.2f}"
                    + (" (beats it)" if over["beats"] else "")
                )
            print("   ".join(cells))
    for task, found in results.items():
        report[task] = {"rows": args.rows, "schedules": found}
    write_json(path, report)
    shown = {task: report[task]["schedules"] for task in TASKS if task in report}
    draw(shown, RESULTS / "growth.png")


if __name__ == "__main__":
    main()
