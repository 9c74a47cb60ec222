"""Does the reward pay for what it should? Returns of simple ways to play, on the same hosts.

    python -m benchmarks.calibration [--tasks digits digits_full] [--seeds 5] [--rows 64]

Players: the best of some simple schedules (seeds grown as early as possible), the same without ever
fossilizing (``hold-forever``) or only in the last epochs (``fossilize-last``), planting and pruning
without end (``prune-churn``), the heuristic, random legal play, and waiting. All play the same
hosts on the same minibatches, so differences are paired; intervals are of 95 % over all hosts.
``digits`` demands schedule > heuristic > random > wait. ``digits_full`` is the control: there
waiting must be better than anything. Nowhere may holding, late fossilizing or churning pay. And
size must matter: of two schedules with about the same accuracy, half the parameters earn more.
Results go to benchmarks/results/calibration.json, where other tasks' stay, and calibration.png.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from tqdm import tqdm

from envs import MorphogenesisEnv
from envs.actions import Op
from envs.observation import feature_columns
from esper_rl.evaluation.episodes import mean_and_ci
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    HeuristicPolicy,
    RandomPolicy,
    WaitPolicy,
)

RESULTS = Path(__file__).parent / "results"
SCHEDULES: list[dict[int, str]] = [
    {0: "conv_heavy"},
    {0: "conv_heavy", 2: "depthwise"},
    {0: "conv_heavy", 2: "bottleneck"},
    {0: "conv_heavy", 1: "depthwise", 2: "depthwise"},
    {0: "conv_heavy", 1: "bottleneck", 2: "depthwise"},
    {0: "conv_heavy", 1: "conv_heavy"},
    {0: "conv_heavy", 2: "conv_heavy"},
    {0: "conv_heavy", 1: "conv_heavy", 2: "conv_heavy"},
]
"""Blueprints by slot; ``schedule`` is the one of them that earns most on other hosts."""

_LABELS = {
    "schedule": "the best schedule",
    "random": "random legal ops",
    "wait": "waiting",
    "hold-forever": "it, without ever\nfossilizing",
    "fossilize-last": "it, fossilizing in\nthe last epochs",
    "prune-churn": "planting and\npruning for ever",
}
_TITLES = {
    "digits": "digits: hosts that need seeds",
    "digits_full": "digits_full: hosts that need none",
}
"""Words of the picture."""

ALIKE = 2.0
"""Points of accuracy up to which two schedules count as equally good."""

SEARCH_SEED = 1000

PLANTING = 0.2
"""Share of an episode in which a schedule plants."""

(_EPOCH,) = feature_columns("epoch_progress")


class SchedulePolicy(TensorDictModuleBase):
    """Grows seeds as early as possible, from the input on.

    Args:
        seeds: blueprint by slot.
        fossilize_from: ``epoch_progress`` from which it fossilizes; above 1 for never.
    """

    in_keys = FixedSchedulePolicy.in_keys
    out_keys = FixedSchedulePolicy.out_keys

    def __init__(self, seeds: dict[int, str], fossilize_from: float = 0.0) -> None:
        super().__init__()
        self.growers = [FixedSchedulePolicy(slot, name) for slot, name in seeds.items()]
        self.fossilize_from = fossilize_from

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        progress = tensordict["observation"][..., _EPOCH]
        early, planting = progress < self.fossilize_from - 1e-4, progress < PLANTING
        chosen = self.growers[0](tensordict.copy())["action"]
        chosen["op"] = torch.full_like(chosen["op"], Op.WAIT)
        for grower in self.growers:
            action = grower(tensordict.copy())["action"]
            legal = tensordict["action_mask", "slot"][..., grower.slot]
            op = action["op"].where(~(legal[..., Op.GERMINATE] & planting), Op.GERMINATE)
            op = op.where(~(early & (op == Op.FOSSILIZE)), Op.WAIT)
            acts = (chosen["op"] == Op.WAIT) & (op != Op.WAIT)
            for head in chosen.keys():  # noqa: SIM118
                new = op if head == "op" else action[head]
                chosen[head] = chosen[head].where(~acts, new)
        return tensordict.set("action", chosen)


class ChurnPolicy(FixedSchedulePolicy):
    """Plants wherever it can and prunes as soon as that is legal."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = super().forward(tensordict)
        legal = tensordict["action_mask", "slot"][..., self.slot]
        for op in (Op.GERMINATE, Op.PRUNE):
            chosen = tensordict["action", "op"]
            tensordict["action", "op"] = chosen.where(~legal[..., op], op)
        return tensordict


def players(max_epochs: int, seeds: dict[int, str]) -> dict[str, TensorDictModuleBase]:
    return {
        "schedule": SchedulePolicy(seeds),
        "heuristic": HeuristicPolicy(),
        "random": RandomPolicy(),
        "wait": WaitPolicy(),
        "hold-forever": SchedulePolicy(seeds, 2.0),
        "fossilize-last": SchedulePolicy(seeds, 1 - len(seeds) / max_epochs),
        "prune-churn": ChurnPolicy(),
    }


@torch.no_grad()
def play(env: MorphogenesisEnv, policy: TensorDictModuleBase) -> dict[str, Tensor]:
    """One episode of every row: accuracy, parameters, and returns, discounted, by term."""
    state = env.reset()
    terms = {name: torch.zeros(env.num_envs) for name in state["reward_terms"].keys()}  # noqa: SIM118
    for t in range(env.max_epochs):
        state = env.step(policy(state))["next"]
        for name in terms:
            paid = state["reward_terms", name].squeeze(1)
            terms[name] += env.reward_config.gamma**t * paid
    return {
        "return": torch.stack(list(terms.values())).sum(0),
        "accuracy": state["metrics", "val_accuracy"].squeeze(1),
        "seed_params": state["metrics", "seed_params"].squeeze(1),
        **{f"terms/{name}": total for name, total in terms.items()},
    }


def described(seeds: dict[int, str]) -> str:
    return ", ".join(f"{name} at slot {slot}" for slot, name in seeds.items())


Played = dict[str, dict[str, Tensor]]
"""What :func:`play` gives, by name of the player."""


def play_each(
    env: MorphogenesisEnv, policies: dict[str, TensorDictModuleBase], seed: int, bar: tqdm
) -> Played:
    """Let all policies play the same hosts, those of ``seed``."""
    found = {}
    for name, policy in policies.items():
        env.set_seed(seed)
        torch.manual_seed(seed)
        found[name] = play(env, policy)
        bar.update()
    return found


def try_schedules(task: str, rows: int, bar: tqdm) -> list[dict[str, Tensor]]:
    """What :func:`play` gives for each of :data:`SCHEDULES`, on hosts of their own."""
    env = MorphogenesisEnv(task, num_envs=rows, seed=SEARCH_SEED)
    policies = {described(seeds): SchedulePolicy(seeds) for seeds in SCHEDULES}
    return list(play_each(env, policies, SEARCH_SEED, bar).values())


def measure(task: str, schedule: dict[int, str], seeds: int, rows: int, bar: tqdm) -> Played:
    """What :func:`play` gives by player, ``[seeds · rows]``."""
    parts = []
    for seed in range(seeds):
        env = MorphogenesisEnv(task, num_envs=rows, seed=seed)
        parts.append(play_each(env, players(env.max_epochs, schedule), seed, bar))
    return {
        name: {key: torch.cat([part[name][key] for part in parts]) for key in outcome}
        for name, outcome in parts[0].items()
    }


DEMANDED = {
    "digits": [
        ("schedule", "heuristic"),
        ("heuristic", "random"),
        ("random", "wait"),
        ("schedule", "hold-forever"),
        ("schedule", "fossilize-last"),
        ("schedule", "prune-churn"),
    ],
    "digits_full": [
        ("wait", "schedule"),
        ("wait", "heuristic"),
        ("wait", "random"),
        ("schedule", "hold-forever"),
        ("schedule", "fossilize-last"),
        ("wait", "prune-churn"),
    ],
}
"""Who must earn more than whom."""


def difference(better: dict[str, Tensor], worse: dict[str, Tensor]) -> dict[str, float]:
    """Paired difference of the returns; it holds if its interval is above 0."""
    over = mean_and_ci(better["return"] - worse["return"])
    return over | {"holds": over["mean"] > over["ci95"]}


def compare(task: str, played: Played) -> dict[str, dict]:
    """Paired differences of the returns that are demanded."""
    return {
        f"{better} > {worse}": difference(played[better], played[worse])
        for better, worse in DEMANDED[task]
    }


def compare_sizes(tried: list[dict[str, Tensor]]) -> dict[str, dict]:
    """Paired differences between schedules that are equally accurate, one of half the size."""
    found = {}
    for (small, a), (large, b) in permutations(zip(SCHEDULES, tried, strict=True), 2):
        alike = (a["accuracy"].mean() - b["accuracy"].mean()).abs() <= ALIKE
        if alike and 2 * a["seed_params"].mean() <= b["seed_params"].mean():
            found[f"{described(small)} > {described(large)}"] = difference(a, b)
    return found


def draw(results: dict[str, dict], path: Path) -> None:
    """Discounted returns of all players, one panel a task."""
    figure, axes = plt.subplots(1, len(results), figsize=(11, 3.6), layout="constrained")
    for axis, (task, found) in zip(
        [axes] if len(results) == 1 else axes, results.items(), strict=True
    ):
        names = list(found["players"])[::-1]
        cells = [found["players"][name]["return"] for name in names]
        axis.errorbar(
            [cell["mean"] for cell in cells],
            range(len(names)),
            xerr=[cell["ci95"] for cell in cells],
            fmt="o",
            color="#0072B2",
        )
        axis.set_yticks(range(len(names)), [_LABELS.get(name, name) for name in names])
        axis.set_title(_TITLES.get(task, task), fontsize="medium")
        axis.set_xlabel("discounted return, mean and 95 % interval")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(DEMANDED), choices=list(DEMANDED))
    parser.add_argument("--seeds", type=int, default=5, help="of the environment (default 5)")
    parser.add_argument("--rows", type=int, default=64, help="hosts a seed (default 64)")
    args = parser.parse_args()
    results = {}
    per_task = len(SCHEDULES) + args.seeds * len(players(1, SCHEDULES[0]))
    count = len(args.tasks) * per_task
    with tqdm(total=count, unit="episode") as bar:
        for task in args.tasks:
            tried = try_schedules(task, args.rows, bar)
            earned = [outcome["return"].mean().item() for outcome in tried]
            schedule = SCHEDULES[earned.index(max(earned))]
            played = measure(task, schedule, args.seeds, args.rows, bar)
            results[task] = {
                "seeds": args.seeds,
                "rows": args.rows,
                "schedule": schedule,
                "players": {
                    name: {key: mean_and_ci(values) for key, values in outcome.items()}
                    for name, outcome in played.items()
                },
                "demanded": compare(task, played) | compare_sizes(tried),
            }
    for task, found in results.items():
        print(f"\n{task}: {args.seeds} seeds × {args.rows} hosts, mean ± 95 % interval")
        print(f"  best simple schedule: {described(found['schedule'])}")
        for name, outcome in found["players"].items():
            cells = (
                f"{label} {outcome[key]['mean']:8.{digits}f} ± {outcome[key]['ci95']:.{digits}f}"
                for key, label, digits in (
                    ("return", "return", 3),
                    ("accuracy", "accuracy %", 1),
                    ("seed_params", "parameters", 0),
                )
            )
            print(f"  {name:<15}", "  ".join(cells))
        for claim, over in found["demanded"].items():
            verdict = "holds" if over["holds"] else "DOES NOT HOLD"
            print(f"  {claim:<90} by {over['mean']:6.3f} ± {over['ci95']:.3f}  {verdict}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "calibration.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    results = {
        task: results.get(task) or known[task] for task in DEMANDED if task in results | known
    }
    path.write_text(json.dumps(results, indent=2) + "\n")
    draw(results, RESULTS / "calibration.png")


if __name__ == "__main__":
    main()
