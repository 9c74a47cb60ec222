"""Does growth pay, and does the place matter? Final accuracy of fixed schedules.

    python -m benchmarks.growth [--rows 32]

Every schedule plants one seed as early as possible, ramps it up fast and fossilizes it. ``digits``:
each blueprint at each slot, beside WAIT. ``digits_full``: the same, as a control where growth
should not pay. All schedules and WAIT play the same hosts on the same minibatches: one beats WAIT
in accuracy or in return if the mean of its paired differences is above 0 at a family-wise level of
95 % (Bonferroni, over all schedules of the task). Results go to benchmarks/results/growth.json and
growth.png.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import NormalDist

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tqdm import tqdm

from envs import MorphogenesisEnv, make_task
from esper_rl.evaluation import EVALUATION_SEED, evaluate
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy

RESULTS = Path(__file__).parent / "results"
TASKS = ("digits", "digits_full")
COMPARED = {"final_accuracy": "accuracy", "returns": "return"}


def measure(task: str, rows: int, bar: tqdm) -> dict[str, dict]:
    """Summaries by schedule, "wait" or "BLUEPRINT@SLOT", with its points over WAIT."""
    env = MorphogenesisEnv(task, num_envs=rows, seed=EVALUATION_SEED)
    policies = {"wait": WaitPolicy()}
    for blueprint in make_task(task).host.blueprints:
        for slot in range(env.num_slots):
            policies[f"{blueprint}@{slot}"] = FixedSchedulePolicy(slot, blueprint)
    played = {}
    for name, policy in policies.items():
        env.set_seed(EVALUATION_SEED)
        played[name] = evaluate(policy, env, rows)
        bar.update()
    one_sided = 0.025 / (len(policies) - 1)
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


def draw(results: dict[str, dict[str, dict]], path: Path) -> None:
    """Final accuracy of every schedule, one panel a task, WAIT as a line."""
    figure, axes = plt.subplots(1, len(results), figsize=(11, 4), layout="constrained")
    for axis, (task, schedules) in zip(axes, results.items(), strict=True):
        wait = schedules["wait"]["final_accuracy"]
        axis.axhspan(
            wait["mean"] - wait["ci95"], wait["mean"] + wait["ci95"], color="0.8", label="WAIT"
        )
        blueprints = list(dict.fromkeys(name.split("@")[0] for name in schedules if "@" in name))
        for slot, (colour, marker) in enumerate(
            (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"))
        ):
            cells = [schedules[f"{name}@{slot}"]["final_accuracy"] for name in blueprints]
            axis.errorbar(
                [i + (slot - 1) * 0.2 for i in range(len(blueprints))],
                [cell["mean"] for cell in cells],
                [cell["ci95"] for cell in cells],
                fmt=marker,
                color=colour,
                label=f"slot {slot}",
            )
        axis.set_xticks(range(len(blueprints)), blueprints, rotation=30, ha="right")
        axis.set(title=task, ylabel="final validation accuracy, %")
        axis.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32, help="hosts a schedule (default 32)")
    args = parser.parse_args()
    schedules = sum(1 + 3 * len(make_task(task).host.blueprints) for task in TASKS)
    with tqdm(total=schedules, unit="schedule") as bar:
        results = {task: measure(task, args.rows, bar) for task in TASKS}
    for task, found in results.items():
        print(f"\n{task}: final accuracy in %, {args.rows} rows, ± 95 % confidence")
        for name, summary in sorted(
            found.items(), key=lambda item: -item[1]["final_accuracy"]["mean"]
        ):
            cells = [f"  {name:<14}"]
            for quantity, label in COMPARED.items():
                value, over = summary[quantity], summary["over_wait"][quantity]
                cells.append(
                    f"{label} {value['mean']:5.2f} ± {value['ci95']:.2f}, "
                    f"over wait {over['mean']:5.2f} ± {over['margin']:.2f}"
                    + (" (beats it)" if over["beats"] else "")
                )
            print("   ".join(cells))
    report = {"rows": args.rows, "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(results, RESULTS / "growth.png")


if __name__ == "__main__":
    main()
