"""The varied digits: does watching pay there, and does a learned policy watch?

    python -m benchmarks.varied [--seeds 5] [--only-search] [--set KEY=VALUE ... --name NAME]

Every episode draws one of eight variants of the host. First searches find the best schedule of all
of them at once, with as many steps as a training run, and that of each variant, with the eighth
that a run sees of it; all schedules play all variants on fresh hosts. Then policies are trained
with several seeds and play the same hosts. A policy's share is what it earns above the best fixed
schedule, of what lies between that one and the best schedule of each variant.

Two controls on other hosts of all variants tell whether it watches: each host gets the actions that
the policy took on another one, and each row's observations are another row's.

Every run that ends is written to benchmarks/results/varied.json at once and is not repeated; the
picture is varied.png.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torchrl.envs import Compose, TransformedEnv
from tqdm import tqdm

from benchmarks.intervals import interval
from benchmarks.seeds import Run, measure_missing, open_study, study_parser, train_seed, write_json
from envs import register_task
from envs.tasks.digits import digits_varied
from esper_rl import load_policy
from esper_rl.config import TrainConfig, compose_config, make_env
from esper_rl.evaluation import (
    EVALUATION_SEED,
    GREEDY,
    OPEN_LOOP,
    Arena,
    Mode,
    evaluate,
    shuffled,
)
from esper_rl.evaluation.episodes import mean_and_ci
from esper_rl.evaluation.schedule_search import Schedule, best_schedule, describe, play_schedules

EPISODES = 64
"""Hosts of each variant."""

HOSTS_SEED = EVALUATION_SEED + 1
"""Their seed: no setting was chosen by what it earns on them."""

CONTROL_EPISODES = 512
TASK = "digits_varied"
VARIANTS = {f"{TASK}_{''.join(map(str, sizes))}": sizes for sizes in product((1, 3), repeat=3)}
"""Kernel sizes of the blocks by the name of the task that has them only."""

MODES: tuple[Mode, ...] = get_args(Mode)
CONTROLS = {"blind": "another row's\nobservations", "replayed": "another host's\nactions"}
"""What is taken from the policy's own host, for a picture."""

Returns = dict[str, dict[str, float]]
"""Mean returns by player and variant."""


def configure(task: str, settings: Sequence[str] = ()) -> TrainConfig:
    return compose_config([f"task={task}", *settings])


# -- schedules --------------------------------------------------------------------------------


def search(settings: Sequence[str]) -> Returns:
    """Mean returns on fresh hosts, by variant, of all schedules that were found, and of waiting."""
    found: list[Schedule] = [()]
    steps = configure(TASK, settings).total_steps
    budgets = {TASK: steps, **dict.fromkeys(VARIANTS, steps // len(VARIANTS))}
    for task, budget in tqdm(budgets.items(), "search", unit="task"):
        found.append(best_schedule(configure(task, settings), budget, episodes=1).schedule)
    schedules = tqdm(list(dict.fromkeys(found)), "fresh hosts", unit="schedule")
    return {
        describe(schedule): {
            variant: play_schedules(configure(variant, settings), [schedule] * EPISODES, HOSTS_SEED)
            .returns.mean()
            .item()
            for variant in VARIANTS
        }
        for schedule in schedules
    }


def summarise(returns: Returns) -> tuple[dict[str, str], Returns]:
    """What is best everywhere and on each variant; returns of waiting, the former and the latter.

    Each is the best of all schedules that were found on the hosts that are shown, and so looks a
    little better than it is.
    """
    fixed = max(returns, key=lambda schedule: mean(returns[schedule]))
    best = {v: max(returns, key=lambda schedule: returns[schedule][v]) for v in VARIANTS}
    own = {variant: returns[schedule][variant] for variant, schedule in best.items()}
    names = {"every variant": fixed, **best}
    return names, {"wait": returns["wait"], "fixed": returns[fixed], "own": own}


def mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


# -- policies ---------------------------------------------------------------------------------


def measure(seed: int, settings: Sequence[str]) -> Run:
    """Train in a process of its own, then play."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        found = train_seed(seed, [f"task={TASK}", *settings], run)
        played = {variant: play(run, configure(variant, settings)) for variant in VARIANTS}
        for mode in MODES:
            found[mode] = {variant: returns[mode] for variant, returns in played.items()}
        found["controls"] = control(run)
    return found


def play(run: Path, config: TrainConfig) -> dict[Mode, float]:
    """Mean return of a policy in either mode, on the same hosts."""
    env = make_env(config, num_envs=EPISODES, seed=HOSTS_SEED)
    actor_critic = load_policy(run, env)
    transformed = TransformedEnv(env, Compose(*actor_critic.transforms()))
    returns = {}
    for mode in MODES:
        env.set_seed(HOSTS_SEED)
        torch.manual_seed(HOSTS_SEED)
        played = evaluate(actor_critic.actor, transformed, EPISODES, mode, config.ppo.gamma)
        returns[mode] = played.returns.mean().item()
    return returns


def control(run: Path) -> dict[str, dict[str, float]]:
    """What a greedy policy earns less, a host, with actions or observations of another host."""
    arena = Arena(run, CONTROL_EPISODES)
    players = {"blind": shuffled(["*"], arena.config.env.num_slots), "replayed": OPEN_LOOP}
    earned = arena.play(GREEDY).returns
    return {
        name: mean_and_ci(earned - arena.play(player).returns) for name, player in players.items()
    }


# -- results ----------------------------------------------------------------------------------


def show(returns: Returns, runs: dict[str, Run]) -> None:
    names, summary = summarise(returns)
    wait, fixed, own = (mean(values) for values in summary.values())
    rows = summary | {f"{mode} {seed}": run[mode] for seed, run in runs.items() for mode in MODES}
    print(
        f"{'':<14}" + "".join(f"{'-'.join(map(str, s)):>8}" for s in VARIANTS.values()) + "    mean"
    )
    for name, values in rows.items():
        line = "".join(f"{value:8.2f}" for value in (*values.values(), mean(values)))
        print(f"{name:<14}{line}")
    for variant, schedule in names.items():
        print(f"best on {variant}: {schedule}")
    print(
        f"beyond waiting the best fixed schedule earns {fixed - wait:.2f}, each variant's own "
        f"{own - wait:.2f}: {100 * (1 - (fixed - wait) / (own - wait)):.0f} % less"
    )
    if not runs:
        return
    for mode in MODES:
        middle, width = interval(
            [(mean(run[mode]) - fixed) / (own - fixed) for run in runs.values()]
        )
        print(f"{mode}: share of what lies between them {middle:.2f} ± {width:.2f}")
    for name in CONTROLS:
        middle, width = interval([run["controls"][name]["mean"] for run in runs.values()])
        print(f"{name}: {middle:.2f} ± {width:.2f} less")
    minutes = [run["minutes"] for run in runs.values()]
    print(f"minutes: {min(minutes):.1f} to {max(minutes):.1f}")


def draw(results: Returns, runs: dict[str, Run], path: Path) -> None:
    """Returns by variant; and what the controls lose."""
    figure, (returns, losses) = plt.subplots(
        1, 2, figsize=(10, 3.6), width_ratios=(3, 1), layout="constrained"
    )
    places = range(len(VARIANTS))
    styles = {"wait": ("_", "#888888"), "fixed": ("s", "#0072B2"), "own": ("D", "#009E73")}
    labels = {"wait": "waiting", "fixed": "best fixed schedule", "own": "each variant's best one"}
    for name, values in summarise(results)[1].items():
        marker, color = styles[name]
        returns.scatter(
            places, list(values.values()), marker=marker, s=60, color=color, label=labels[name]
        )
    for number, run in enumerate(runs.values()):
        returns.scatter(
            places,
            list(run["greedy"].values()),
            marker="o",
            s=16,
            color="#D55E00",
            alpha=0.7,
            label=None if number else "learned policies, greedy",
            zorder=3,
        )
    returns.set_xticks(places, ["-".join(map(str, sizes)) for sizes in VARIANTS.values()])
    returns.set_xlabel("kernel sizes of the host's blocks")
    returns.set_ylabel("discounted return")
    returns.legend(frameon=False, fontsize="small")
    for place, name in enumerate(CONTROLS):
        for run in runs.values():
            loss = run["controls"][name]
            losses.errorbar(place, loss["mean"], loss["ci95"], fmt="o", color="#D55E00")
    losses.axhline(0, color="black", linewidth=1)
    losses.set_xlim(-0.6, 1.6)
    losses.set_xticks(range(len(CONTROLS)), list(CONTROLS.values()), fontsize="small")
    losses.set_ylabel("return that is lost")
    for axis in (returns, losses):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = study_parser(__doc__, seeds=5)
    parser.add_argument("--only-search", action="store_true", help="schedules only")
    args, path, found = open_study(parser, "varied", "set")
    found.setdefault("runs", {})
    for name, sizes in VARIANTS.items():
        register_task(name, partial(digits_varied, sizes))

    if "schedules" not in found:
        found["schedules"] = search(args.set)
        write_json(path, found)
    measure_missing(
        found["runs"],
        0 if args.only_search else args.seeds,
        lambda seed: measure(seed, args.set),
        lambda: write_json(path, found),
    )
    show(found["schedules"], found["runs"])
    draw(found["schedules"], found["runs"], path.with_suffix(".png"))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
