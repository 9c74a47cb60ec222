"""The main job, ``esper-rl train`` with nothing else said, over training seeds.

    python -m benchmarks.main_job [--seeds 10] [--set KEY=VALUE ... --name NAME]
    python -m benchmarks.main_job --seeds 3 --set task=pydoc --name pydoc

Trains with each seed as a user does, then plays the policy, greedily and sampled, one seed at slot
0 as early as possible (conv_heavy; on ``pydoc`` flex_attention), and the best schedule that a
search finds with as many steps, on the same 256 hosts: discounted returns, their differences, final
accuracies. A run beats the first schedule when the mean difference is above zero by more than half
of its 95 % interval's width. Every run that ends is written to benchmarks/results/main_job.json at
once and is not repeated; the picture is main_job.png. With ``--set`` the same is measured of other
settings, in main_job_NAME.json and .png. Some minutes a run, one after the other on all cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.intervals import interval
from benchmarks.seeds import Run, measure_missing, open_study, study_parser, train_seed, write_json
from esper_rl.config import compose_config
from esper_rl.evaluation import FIXED_SCHEDULE, GREEDY, SAMPLED, Arena
from esper_rl.evaluation.episodes import mean_and_ci
from esper_rl.evaluation.schedule_search import best_schedule
from esper_rl.figures import count_steps

EPISODES = 256
SCHEDULE, SEARCHED, TRAINED = "fixed-schedule", "best schedule", ("greedy", "sampled")

Runs = dict[str, Run]
"""By training seed, what :func:`measure` gives."""


def measure(seed: int, settings: Sequence[str]) -> Run:
    """Train in a process of its own, then play."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        found = train_seed(seed, settings, run)
        arena = Arena(run, EPISODES)
        played = {each.name: arena.play(each) for each in (FIXED_SCHEDULE, GREEDY, SAMPLED)}
    searched = best_schedule(compose_config(settings), episodes=EPISODES, seed=seed)
    played[SEARCHED], found[SEARCHED] = searched.evaluation, str(searched)
    for name, evaluation in played.items():
        found[f"{name}_return"] = evaluation.returns.mean().item()
        found[f"{name}_accuracy"] = evaluation.final_accuracy.mean().item()
        found[f"{name}_seed_params"] = evaluation.seed_params.mean().item()
    for name in TRAINED:
        difference = mean_and_ci(played[name].returns - played[SCHEDULE].returns)
        found[f"{name}_gain"], found[f"{name}_gain_ci95"] = difference.values()
    return found


def beats(run: Run, name: str) -> bool:
    """Does a player earn more than the schedule, beyond chance?"""
    gain, width = run[f"{name}_gain"], run[f"{name}_gain_ci95"]
    return gain > width


def show(runs: Runs) -> None:
    print(f"{len(runs)} training seeds")
    for name in (*TRAINED, SCHEDULE, SEARCHED):
        line = f"  {name:<15}"
        for key, form in (("return", "5.2f"), ("accuracy", "5.1f"), ("seed_params", "6.0f")):
            mean, width = interval([run[f"{name}_{key}"] for run in runs.values()])
            line += f"  {key} {mean:{form}} ± {width:{form}}"
        if name in TRAINED:
            line += f"  beats the {SCHEDULE} in {sum(beats(run, name) for run in runs.values())}"
        print(line)
    minutes = [run["minutes"] for run in runs.values()]
    print(f"  minutes: {min(minutes):.1f} to {max(minutes):.1f}")


def draw(runs: Runs, steps: int, path: Path) -> None:
    """What each run earns more than the schedule, by training seed; and how all of them learn."""
    figure, (gains, curves) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for row, name in enumerate(TRAINED):
        for number, (seed, run) in enumerate(runs.items()):
            place = row + 0.6 * (number + 0.5) / len(runs) - 0.3
            width, color = run[f"{name}_gain_ci95"], "#0072B2" if beats(run, name) else "#D55E00"
            gain = run[f"{name}_gain"]
            gains.errorbar(gain, place, xerr=width, fmt="o", color=color, alpha=0.5)
            gains.annotate(
                seed, (gain, place), (0, 4), textcoords="offset points", ha="center", fontsize=7
            )
    gains.axvline(0, color="black", linewidth=1)
    gains.set_yticks(range(len(TRAINED)), TRAINED)
    gains.set_ylim(len(TRAINED) - 0.3, -0.7)
    gains.set_xlabel(f"discounted return, with 95 % intervals over {EPISODES} hosts")
    gains.set_title(f"earned more than by the {SCHEDULE}, by training seed", fontsize="medium")
    lines = np.array([run["learning_curve"] for run in runs.values()])
    mean, spread = lines.mean(0), lines.std(0)
    along = steps / len(mean) * np.arange(1, len(mean) + 1)
    curves.plot(along, mean)
    curves.fill_between(along, mean - spread, mean + spread, alpha=0.2)
    count_steps(curves)
    curves.set_ylabel("discounted return")
    title = f"return in training: mean of {len(runs)} seeds, ± one standard deviation"
    curves.set_title(title, fontsize="medium")
    for axis in (gains, curves):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    args, path, runs = open_study(study_parser(__doc__, seeds=10), "main_job", "set")
    measure_missing(
        runs, args.seeds, lambda seed: measure(seed, args.set), lambda: write_json(path, runs)
    )
    show(runs)
    draw(runs, compose_config(args.set).total_steps, path.with_suffix(".png"))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
