"""Hosts that differ: does watching pay there, and does a learned policy watch?

    python -m benchmarks.varied [--seeds 10] [--only-search]
    python -m benchmarks.varied --task digits_mixed --name mixed [--seeds 5]
    python -m benchmarks.varied --set KEY=VALUE ... --name NAME

Every episode draws one of four variants, which isn't shown. First every schedule of one seed plays
all of them; and a search for schedules of any number of seeds has as many steps as a training run.
The best of them, in the mean and on each variant, play fresh hosts, and so do policies that are
trained with several seeds. A policy's share is what it earns above the best fixed schedule, of what
lies between that one and the best schedule of each variant.

Two controls on other hosts of all variants tell whether it watches: each host gets the actions that
the policy took on another one, and each row's observations are another row's.

Every run that ends is written to benchmarks/results/varied.json at once and is not repeated; the
picture is varied.png.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, TransformedEnv
from tqdm import tqdm

from benchmarks.intervals import interval
from benchmarks.seeds import Run, measure_missing, open_study, study_parser, train_seed, write_json
from envs import register_task
from envs.actions import Op
from envs.registration import TaskFactory
from envs.tasks.digits import digits_mixed, digits_varied
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
from esper_rl.evaluation.schedule_search import (
    Schedule,
    best_schedule,
    describe,
    play_schedules,
    single_schedules,
)
from esper_rl.figures import legend_below

SEARCHED, SEARCH_SEED = 24, EVALUATION_SEED + 2
"""Hosts of each variant that every schedule of one seed plays, and their seed."""

EPISODES, HOSTS_SEED = 64, EVALUATION_SEED + 1
"""Hosts of each variant that the best schedules play, and policies: nothing was chosen on them."""

CONTROL_EPISODES = 512

VARIANTS: dict[str, dict[str, TaskFactory]] = {
    "digits_varied": {
        f"{first}-1-{last}": partial(digits_varied, (first, 1, last))
        for first, last in product((1, 3), repeat=2)
    },
    "digits_mixed": {
        f"{name}-{size}": partial(digits_mixed, size, channel)
        for channel, name in enumerate(("shape", "place"))
        for size in (1, 3)
    },
}
"""By task and variant, what makes the task that has that variant only."""

MODES: tuple[Mode, ...] = get_args(Mode)
CONTROLS = {"blind": "another row's\nobservations", "replayed": "another host's\nactions"}
"""What is taken from the policy's own host, for a picture."""

Returns = dict[str, dict[str, float]]
"""By player and variant."""


def configure(task: str, settings: Sequence[str], variant: str | None = None) -> TrainConfig:
    """The configuration of a task, or of the one that has a variant only."""
    name = task if variant is None else f"{task}_{variant}"
    return compose_config([f"task={name}", *settings])


# -- schedules --------------------------------------------------------------------------------


def search(task: str, settings: Sequence[str]) -> dict[str, Returns]:
    """What schedules earn: all those of one seed; and the best ones, on fresh hosts."""
    config = configure(task, settings)
    singles = single_schedules(make_env(config, num_envs=1, seed=0))
    searched, _ = play_all(task, settings, singles, SEARCHED, SEARCH_SEED)
    by_name = {describe(schedule): schedule for schedule in singles}
    best = [by_name[name] for name in best_of(searched).values()]
    found = best_schedule(config, episodes=1).schedule
    fresh, spread = play_all(
        task, settings, list(dict.fromkeys([(), found, *best])), EPISODES, HOSTS_SEED
    )
    return {"searched": searched, "fresh": fresh, "spread": spread}


def play_all(
    task: str, settings: Sequence[str], schedules: Sequence[Schedule], hosts: int, seed: int
) -> tuple[Returns, Returns]:
    """Mean returns of schedules on so many hosts, and their standard deviations between hosts."""
    means: Returns = {describe(schedule): {} for schedule in schedules}
    spread: Returns = {describe(schedule): {} for schedule in schedules}
    for variant in tqdm(VARIANTS[task], f"{len(schedules)} schedules", unit="variant"):
        players = [schedule for schedule in schedules for _ in range(hosts)]
        played = play_schedules(configure(task, settings, variant), players, seed).returns
        for name, earned in zip(means, played.unflatten(0, (-1, hosts)), strict=True):
            means[name][variant] = earned.mean().item()
            spread[name][variant] = earned.std().item()
    return means, spread


def best_of(returns: Returns) -> dict[str, str]:
    """The schedule that earns most in the mean, ``"everywhere"``, and that on each variant."""
    everywhere = max(returns, key=lambda name: mean(returns[name]))
    variants = returns[everywhere]
    best = {each: max(returns, key=lambda name: returns[name][each]) for each in variants}
    return {"everywhere": everywhere, **best}


def summarise(fresh: Returns) -> Returns:
    """Of waiting, the best fixed schedule, and the best one of each variant, what they earn.

    The latter two are the best of all that played these hosts, and so look a little better than
    they are.
    """
    names = best_of(fresh)
    fixed = fresh[names.pop("everywhere")]
    own = {variant: fresh[name][variant] for variant, name in names.items()}
    return {"wait": fresh["wait"], "fixed": fixed, "own": own}


def mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


# -- policies ---------------------------------------------------------------------------------


def measure(task: str, seed: int, settings: Sequence[str]) -> Run:
    """Train in a process of its own, then play."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        found = train_seed(seed, [f"task={task}", *settings], run)
        for variant in VARIANTS[task]:
            for mode, measures in play(run, configure(task, settings, variant)).items():
                for name, value in measures.items():
                    found.setdefault(mode, {}).setdefault(name, {})[variant] = value
        found["controls"] = control(run)
    return found


def play(run: Path, config: TrainConfig) -> dict[Mode, dict[str, float]]:
    """What a policy does in either mode on the same hosts: return, seeds planted and pruned."""
    env = make_env(config, num_envs=EPISODES, seed=HOSTS_SEED)
    actor_critic = load_policy(run, env)
    transformed = TransformedEnv(env, Compose(*actor_critic.transforms()))
    found = {}
    for mode in MODES:
        env.set_seed(HOSTS_SEED)
        torch.manual_seed(HOSTS_SEED)
        ops = Counted(actor_critic.actor)
        played = evaluate(ops, transformed, EPISODES, mode, config.ppo.gamma)
        found[mode] = {
            "return": played.returns.mean().item(),
            "planted": ops.taken[Op.GERMINATE] / EPISODES,
            "pruned": ops.taken[Op.PRUNE] / EPISODES,
        }
    return found


class Counted:
    """A policy whose ops are counted."""

    def __init__(self, policy: Callable[[TensorDictBase], TensorDictBase]) -> None:
        self.policy, self.taken = policy, dict.fromkeys(Op, 0)

    def __call__(self, state: TensorDictBase) -> TensorDictBase:
        state = self.policy(state)
        for op in Op:
            self.taken[op] += int((state["action", "op"] == op).sum())
        return state


def control(run: Path) -> dict[str, dict[str, float]]:
    """What a greedy policy earns less, a host, with actions or observations of another host."""
    arena = Arena(run, CONTROL_EPISODES)
    players = {"blind": shuffled(["*"], arena.config.env.num_slots), "replayed": OPEN_LOOP}
    earned = arena.play(GREEDY).returns
    return {
        name: mean_and_ci(earned - arena.play(player).returns) for name, player in players.items()
    }


# -- results ----------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    """Print what schedules and policies earn, and what follows from it."""
    fresh, runs = found["schedules"]["fresh"], found["runs"]
    names, summary = best_of(fresh), summarise(fresh)
    players = summary | {
        f"{mode} {seed}": run[mode]["return"] for seed, run in runs.items() for mode in MODES
    }
    print(f"{'':<14}" + "".join(f"{variant:>9}" for variant in summary["wait"]) + "     mean")
    for name, values in players.items():
        line = "".join(f"{value:9.2f}" for value in (*values.values(), mean(values)))
        print(f"{name:<14}{line}")
    for place, schedule in names.items():
        print(f"best {'on ' * (place in summary['wait'])}{place}: {schedule}")
    wait, fixed, own = (mean(values) for values in summary.values())
    spread = found["schedules"]["spread"]
    within = mean({v: spread[name][v] for v, name in names.items() if v in summary["wait"]})
    print(
        f"beyond waiting the best fixed schedule earns {fixed - wait:.2f}, each variant's own "
        f"{own - wait:.2f}: {own - fixed:.2f} lie between them, beside a standard deviation of "
        f"{within:.2f} between hosts of a variant"
    )
    if not runs:
        return
    for mode in MODES:
        shares = [(mean(run[mode]["return"]) - fixed) / (own - fixed) for run in runs.values()]
        middle, width = interval(shares)
        print(
            f"{mode}: share of what lies between them {middle:.2f} ± {width:.2f}; at least half in "
            f"{sum(share >= 0.5 for share in shares)} of {len(shares)} runs: "
            + ", ".join(f"{share:.2f}" for share in shares)
        )
        for name in ("planted", "pruned"):
            means = [mean(run[mode][name]) for run in runs.values()]
            print(f"{mode}: {name} seeds an episode: {', '.join(f'{m:.2f}' for m in means)}")
    for name in CONTROLS:
        middle, width = interval([run["controls"][name]["mean"] for run in runs.values()])
        print(f"{name}: {middle:.2f} ± {width:.2f} less")
    minutes = [run["minutes"] for run in runs.values()]
    print(f"minutes: {min(minutes):.1f} to {max(minutes):.1f}")


def draw(found: dict[str, Any], path: Path) -> None:
    """Returns by variant; and what the controls lose."""
    fresh, runs = found["schedules"]["fresh"], found["runs"]
    figure, (returns, losses) = plt.subplots(
        1, 2, figsize=(10, 3.6), width_ratios=(3, 1), layout="constrained"
    )
    styles = {"wait": ("_", "#888888"), "fixed": ("s", "#0072B2"), "own": ("D", "#009E73")}
    labels = {"wait": "waiting", "fixed": "best fixed schedule", "own": "each variant's best one"}
    for offset, (name, values) in enumerate(summarise(fresh).items()):
        marker, color = styles[name]
        returns.scatter(
            [place - 0.3 + 0.15 * offset for place in range(len(values))],
            list(values.values()),
            marker=marker,
            s=60,
            color=color,
            label=labels[name],
        )
    for number, run in enumerate(runs.values()):
        places = [place + 0.15 + 0.02 * number for place in range(len(fresh["wait"]))]
        returns.scatter(
            places,
            list(run["greedy"]["return"].values()),
            marker="o",
            s=16,
            color="#D55E00",
            alpha=0.7,
            label=None if number else "learned policies, greedy",
            zorder=3,
        )
    returns.set_xticks(range(len(fresh["wait"])), list(fresh["wait"]))
    returns.set_xlabel(VARIES[found["task"]])
    returns.set_title(f"{found['task']}: what schedules and policies earn", fontsize="medium")
    returns.set_ylabel("discounted return")
    legend_below(returns, ncols=4)
    for place, name in enumerate(CONTROLS):
        for run in runs.values():
            loss = run["controls"][name]
            losses.errorbar(place, loss["mean"], loss["ci95"], fmt="o", color="#D55E00")
    losses.axhline(0, color="black", linewidth=1)
    losses.set_xlim(-0.6, 1.6)
    losses.set_xticks(range(len(CONTROLS)), list(CONTROLS.values()), fontsize="small")
    losses.set_ylabel("return that is lost")
    losses.set_title("policies that can't see\ntheir own host", fontsize="medium")
    for axis in (returns, losses):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


VARIES = {
    "digits_varied": "kernel sizes of the host's blocks",
    "digits_mixed": "what tells the classes, and kernel size of the host's first block",
}
"""By task, what its variants are named by."""


def main() -> None:
    parser = study_parser(__doc__, seeds=10)
    parser.add_argument("--task", default="digits_varied", choices=VARIANTS)
    parser.add_argument("--only-search", action="store_true", help="schedules only")
    args, path, found = open_study(parser, "varied", "task", "set")
    for variant, make in VARIANTS[args.task].items():
        register_task(f"{args.task}_{variant}", make)
    found.setdefault("task", args.task)
    found.setdefault("runs", {})
    if "schedules" not in found:
        found["schedules"] = search(args.task, args.set)
        write_json(path, found)
    measure_missing(
        found["runs"],
        0 if args.only_search else args.seeds,
        lambda seed: measure(args.task, seed, args.set),
        lambda: write_json(path, found),
    )
    show(found)
    draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
