"""The scaffold task: is credit over many epochs learned, and what makes the difference?

    python -m benchmarks.scaffold [--seeds 10] [--only NAME ...] [--at-once 2]

Trains policies with the task's own numbers and many seeds, and with one ingredient taken away at a
time, and shows which part of the gap between always waiting and the best plan each closes, playing
256 episodes greedily. Runs beside each other share the cores: one takes five minutes on two, five
and a half on one. Every run that ends is written to benchmarks/results/scaffold.json at once and is
not repeated; the picture is scaffold.png.

    python -m benchmarks.scaffold --search

climbs from the stated plan over all plans that differ in one event (left out, moved to another
step, exchanged with the next, with another choice in one head, a new one, or all from it on shifted
in time) and prints the best: about ten minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torchrl.envs import Compose, TransformedEnv
from tqdm import tqdm

from benchmarks.intervals import interval
from benchmarks.scaffold_search import climb
from benchmarks.seeds import RESULTS, write_json
from envs import MorphogenesisEnv, feature_names
from envs.tasks.scaffold import BEST_PLAN, WAIT_RETURN
from esper_rl import load_policy, train
from esper_rl.config import compose_config
from esper_rl.evaluation import EVALUATION_SEED, Mode, evaluate
from esper_rl.figures import legend_below

EPISODES = 256

SHOWN_CREDIT = (
    "interaction_sum_norm",
    "boost_received_norm",
    "upstream_alpha_norm",
    "downstream_alpha_norm",
    "counterfactual_fresh",
)
"""Features 24 to 28 of every slot."""

_COLUMNS = [
    column for column, name in enumerate(feature_names()) if name.split("_", 1)[1] in SHOWN_CREDIT
]
_HIDDEN = f"policy.hidden_columns=[{','.join(map(str, _COLUMNS))}]"

VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "λ = 0, γ = 0.9": ("ppo.lmbda=0", "ppo.gamma=0.9"),
    "no credit shown or paid": (_HIDDEN, "reward.synergy=0", "reward.hindsight=0"),
    "no credit shown": (_HIDDEN,),
    "no credit paid": ("reward.synergy=0", "reward.hindsight=0"),
    "no synergy": ("reward.synergy=0",),
    "no hindsight": ("reward.hindsight=0",),
    "V1": ("policy=v1",),
}
"""What is taken away, by name."""

Runs = dict[str, dict[str, dict[str, float]]]
"""By variant and training seed, what :func:`measure` gives."""


def measure(variant: str, seed: int, threads: int) -> dict[str, float]:
    """Train, then play with the task's own prices: discounted returns and accuracies."""
    torch.set_num_threads(threads)
    env = MorphogenesisEnv("scaffold", num_envs=EPISODES, seed=EVALUATION_SEED)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        config = compose_config(
            [
                "task=scaffold",
                *VARIANTS[variant],
                f"seed={seed}",
                f"threads={threads}",
                f"run_dir={folder}/run",
            ]
        )
        with redirect_stderr(io.StringIO()):  # its progress bar
            run = train(config)
        found = {"minutes": (time.perf_counter() - start) / 60}
        actor_critic = load_policy(run, env)
    transformed = TransformedEnv(env, Compose(*actor_critic.transforms()))
    for mode in get_args(Mode):
        env.set_seed(EVALUATION_SEED)
        torch.manual_seed(EVALUATION_SEED)
        played = evaluate(actor_critic.actor, transformed, EPISODES, mode, env.reward_config.gamma)
        found[f"{mode}_return"] = played.returns.mean().item()
        found[f"{mode}_accuracy"] = played.final_accuracy.mean().item()
    return found


def closed(value: float) -> float:
    """Part of the gap between waiting and the best plan that a return closes."""
    return (value - WAIT_RETURN) / (BEST_PLAN.discounted_return - WAIT_RETURN)


def study(runs: Runs, wanted: list[tuple[str, int]], at_once: int) -> None:
    """Train what is wanted and not there yet; each result is on disk as soon as it is known."""
    missing = [(name, seed) for name, seed in wanted if str(seed) not in runs.get(name, {})]
    spawn, threads = get_context("spawn"), max(1, (os.cpu_count() or 1) // at_once)
    with ProcessPoolExecutor(at_once, mp_context=spawn, max_tasks_per_child=1) as pool:
        jobs = {pool.submit(measure, *each, threads): each for each in missing}
        for job in tqdm(as_completed(jobs), "runs", len(jobs), unit="run"):
            name, seed = jobs[job]
            runs.setdefault(name, {})[str(seed)] = job.result()
            write(runs)


def write(runs: Runs) -> None:
    report = {"best": BEST_PLAN.discounted_return, "wait": WAIT_RETURN, "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "scaffold.json", report)


def show(runs: Runs) -> None:
    print(f"{'':<26}closed, greedy   closed, sampled   accuracy %   over 90 %   minutes")
    for name in VARIANTS:
        found = list(runs.get(name, {}).values())
        if not found:
            continue
        greedy, sampled = (
            interval([closed(run[f"{mode}_return"]) for run in found])
            for mode in get_args(Mode)[::-1]
        )
        accuracy = interval([run["greedy_accuracy"] for run in found])
        over = sum(closed(run["greedy_return"]) >= 0.9 for run in found)
        longest = max(run["minutes"] for run in found)
        print(
            f"{name:<26}{greedy[0]:6.1%} ± {greedy[1]:5.1%}   {sampled[0]:6.1%} ± {sampled[1]:5.1%}"
            f"   {accuracy[0]:5.1f} ± {accuracy[1]:4.1f}    {over} of {len(found)}   {longest:.1f}"
        )


def draw(runs: Runs, path: Path) -> None:
    """Closed part of the gap, a dot a training seed, one row for each variant."""
    names = [name for name in VARIANTS if name in runs][::-1]
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    for row, name in enumerate(names):
        parts = [100 * closed(run["greedy_return"]) for run in runs[name].values()]
        dots, bars = ("a training seed", "their mean") if row == 0 else (None, None)
        axis.plot(parts, [row] * len(parts), "o", color="#0072B2", alpha=0.6, label=dots)
        axis.plot([fmean(parts)], [row], "|", color="black", markersize=18, label=bars)
    axis.axvline(90, color="#009E73", linestyle="--", linewidth=1, label="all must reach")
    axis.axvline(60, color="#D55E00", linestyle=":", linewidth=1, label="without credit: at most")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("part of the gap between waiting and the best plan that is closed, %")
    axis.grid(axis="x", alpha=0.3)
    axis.set_title("scaffold: greedy policies, and what they learn without", fontsize="medium")
    legend_below(axis, ncols=4)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="training seeds (default 10)")
    parser.add_argument("--fewer", type=int, default=3, help="of what is taken away (default 3)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(VARIANTS))
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other (default 2)")
    parser.add_argument("--search", action="store_true", help="look for a better plan instead")
    args = parser.parse_args()
    if args.search:
        pair, best, decided_at = climb((BEST_PLAN.plan, BEST_PLAN.otherwise))
        print(f"best found {best:.5f}, decided at {decided_at}")
        for plan in pair:
            for step, action in sorted(plan.items()):
                print(step, {head: int(index) for head, index in action.items()})
            print()
        return
    path = RESULTS / "scaffold.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else {}
    wanted = [
        (name, seed)
        for name in args.only or VARIANTS
        for seed in range(args.seeds if name == "all" else args.fewer)
    ]
    study(runs, wanted, args.at_once)
    show(runs)
    draw(runs, RESULTS / "scaffold.png")


if __name__ == "__main__":
    main()
