"""The cost of growing in a loop of one's own: of a grower's step, and of its hooks.

    python -m benchmarks.grower [--repeats 40]

Trains a perceptron of a million parameters with a batch of one example, so that all but the
grower's own work is small: with a grower that waits, with one whose network has grown everywhere,
and without one. Prints milliseconds of :meth:`esper_rl.Grower.step`, whose validation does nothing,
and what the hooks add to a step of the optimizer; medians, written to
benchmarks/results/grower.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from benchmarks.seeds import RESULTS, write_json
from envs import GrowingNetwork
from esper_rl import Grower
from esper_rl.growing.baselines import SchedulePolicy, WaitPolicy

WIDTH, SLOTS = 580, ["1", "3", "4"]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4),
    )  # fmt: skip


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def measure(policy: object, repeats: int) -> dict[str, float]:
    """Medians of a grower's step and of the optimizer's, after a warm-up in which all is grown."""
    torch.manual_seed(0)
    x = torch.randn(1, WIDTH)
    growing = GrowingNetwork(network(), SLOTS, x)
    optimizer = torch.optim.SGD(growing.parameters(), lr=1e-3)
    grower = None if policy is None else Grower(growing, optimizer, policy, max_epochs=1000)
    steps, grown = [], []
    for _ in range(30 + repeats):
        optimizer.zero_grad()
        growing(x).square().sum().backward()
        steps.append(milliseconds(optimizer.step))
        if grower is not None:
            grown.append(milliseconds(lambda: grower.step(lambda: (1.0, 50.0))))
    found = {"optimizer step": median(steps[30:])}
    found["parameters"] = sum(weight.numel() for weight in growing.parameters())
    return found if grower is None else found | {"grower step": median(grown[30:])}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=40, help="epochs (default 40)")
    repeats = parser.parse_args().repeats
    lora = SchedulePolicy(torch.full((3,), 8), torch.zeros(3, dtype=torch.int64), 1000)
    players = {"without a grower": None, "waiting": WaitPolicy(), "grown in every slot": lora}
    found = {name: measure(policy, repeats) for name, policy in players.items()}
    for name, numbers in found.items():
        print(f"{name:<22}" + "  ".join(f"{key} {value:,.2f}" for key, value in numbers.items()))
    write_json(RESULTS / "grower.json", found)


if __name__ == "__main__":
    main()
