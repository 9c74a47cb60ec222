"""Whom does hindsight credit? Credit on ``digits``, held against images that nothing else uses.

    python -m benchmarks.hindsight [--rows 1024] [--seed 0]

An interaction is a sum of four accuracies, each counted over 500 images, so the largest of many is
large by chance alone, whoever stands beside a seed. Random schedules grow seeds in the slots of
every host. 500 images that are neither trained on nor validated on tell what two seeds truly give
together in the epoch of their largest interaction; their chance is another one than that of the
validation. Compared are the credits for the largest interaction as it was measured, and for the
largest one above its noise, which is what the environment pays. Results go to
benchmarks/results/hindsight.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import trange

from benchmarks.intervals import interval
from benchmarks.seeds import RESULTS, write_json
from envs import MorphogenesisEnv, make_task
from envs.actions import Stage
from envs.credit import CREDIT, MOST_CREDIT, NOISE, interaction_noise, interactions
from esper_rl.growing.baselines import SchedulePolicy

TEST_SIZE = 500
LATEST_PLANTING = 20
RULES = {"as measured": 0.0, "above its noise": NOISE}
"""Standard errors from which an interaction counts."""


def play(rows: int, seed: int) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Play an episode on every host.

    Returns:
        By rule, for every seed that was fossilized and contributed, credit of each slot
        ``[F, S]`` and the interaction with it on the images held apart, in the epoch whose
        interaction is credited (nan where none is); and the credit that the environment showed.
    """
    task = make_task("digits")
    inputs, targets = task.train
    task = replace(task, train=(inputs[TEST_SIZE:], targets[TEST_SIZE:]))
    env = MorphogenesisEnv(task, num_envs=rows, seed=seed)
    apart = replace(task, validation=(inputs[:TEST_SIZE], targets[:TEST_SIZE]))
    tester = apart.make_population(rows, env.num_slots, env.device)

    torch.manual_seed(seed)
    blueprints = env.population.offered.float().expand(rows, -1).multinomial(env.num_slots)
    epochs = torch.randint(LATEST_PLANTING, blueprints.shape)
    policy = SchedulePolicy(blueprints, epochs, env.max_epochs)
    nothing = torch.zeros(rows, env.num_slots, env.num_slots)
    peaks = dict.fromkeys(RULES, (nothing, nothing * torch.nan))
    found: dict[str, list[tuple[Tensor, Tensor]]] = {rule: [] for rule in RULES}
    paid = []
    state = env.reset()
    for _ in trange(env.max_epochs, desc="epochs", leave=False):
        before = state["metrics", "stage"]
        state = env.step(policy(state))["next"]
        for mine, other in zip(tester.weights, env.population.weights, strict=True):
            mine.copy_(other)
        slots, every = env.slot_inputs(env.state.slots), torch.arange(rows)
        own = env.population.validate(slots, every, ablate=True)
        value = interactions(own.lost, env.num_slots)
        noise = interaction_noise(own.variance, env.num_slots)
        truth = interactions(tester.validate(slots, every, ablate=True).lost, env.num_slots)
        new = (state["metrics", "stage"] == Stage.FOSSILIZED) & (before != Stage.FOSSILIZED)
        new &= state["metrics", "contribution"] > 0
        for rule, errors in RULES.items():
            largest, true = peaks[rule]
            higher = (value > largest) & (value > errors * noise)
            largest, true = torch.where(higher, value, largest), torch.where(higher, truth, true)
            peaks[rule] = largest, true
            credit = CREDIT * largest[new]
            credit *= MOST_CREDIT / credit.sum(1, keepdim=True).clamp(min=MOST_CREDIT)
            found[rule].append((credit, true[new]))
        paid.append(state["metrics", "pending_hindsight_credit"][new.any(1)])
    joined = {
        rule: (torch.cat([credit for credit, _ in each]), torch.cat([true for _, true in each]))
        for rule, each in found.items()
    }
    return joined, torch.cat(paid)


def summarise(credit: Tensor, truth: Tensor) -> dict[str, Any]:
    """What one rule credits: how much, and whom."""
    credited = credit > 0
    told, helped = credit.sum(1), truth[credited]
    mean, margin = interval(helped.tolist())
    return {
        "fossils": len(credit),
        "with credit": credited.any(1).float().mean().item(),
        "at the cap": (told > MOST_CREDIT - 1e-4).float().mean().item(),
        "credit of a fossil": told.mean().item(),
        "pairs": int(credited.sum()),
        "true interaction of a credited pair": {"mean": mean, "ci95": margin},
        "credited pairs that truly help": (helped > 0).float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024, help="hosts (default 1024)")
    parser.add_argument("--seed", type=int, default=0, help="of hosts and schedules (default 0)")
    args = parser.parse_args()
    found, paid = play(args.rows, args.seed)
    assert torch.allclose(found["above its noise"][0].sum(), paid.sum(), atol=1e-2)
    report: dict[str, Any] = {"rows": args.rows, "seed": args.seed}
    for rule, (credit, truth) in found.items():
        report[rule] = summarise(credit, truth)
        print(f"\n{rule}")
        for name, value in report[rule].items():
            print(f"  {name:<38} {value}")
    write_json(RESULTS / "hindsight.json", report)


if __name__ == "__main__":
    main()
