"""Plays the world for very long, with everything that can go wrong, and checks it all the time.

    python -m benchmarks.soak [--steps 1000000]

Random actions, legal or not, on all rows of ``digits`` in all three kinds of gates; rows are reset
alone, networks made to fail, environments saved and loaded into another instance in mid-episode.
After everything, what must hold is checked (benchmarks/invariants.py): a seed's life, masks,
ranges of the observation, rewards that sum, rollbacks of those rows that failed and of no others.
A broken invariant is counted, printed, and the environment started anew. The counts are in
benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.invariants import FAULTS, Player, mixed_heads
from envs import MorphogenesisEnv
from envs.lifecycle import GATES

RESULTS = Path(__file__).parent / "results"
ROWS, EPOCHS = 64, 40
RESET, FAULT, NONSENSE, LOAD = 0.002, 0.002, 0.1, 0.02
"""Chances of a row in a step to be reset, to fail and to act at random, legal or not; and of an
environment to be loaded."""


def make(gates: str, seed: int) -> MorphogenesisEnv:
    sizes = {"validation_size": 40, "minibatch_size": 8, "batches_per_epoch": 1}
    return MorphogenesisEnv(num_envs=ROWS, max_epochs=EPOCHS, gates=gates, seed=seed, **sizes)


def play(player: Player, other: MorphogenesisEnv, generator: torch.Generator) -> None:
    """One step, and perhaps something before it."""

    def chance(share: float) -> torch.Tensor:
        return torch.rand(ROWS, generator=generator) < share

    player.reset(chance(RESET))
    player.break_rows(chance(FAULT), FAULTS[player.counts["steps"] // ROWS % len(FAULTS)])
    player.step(mixed_heads(player.env, player.state, NONSENSE, generator))
    if torch.rand((), generator=generator) < LOAD:
        player.save_and_load(other)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="of all rows together (default 1,000,000)"
    )
    args = parser.parse_args()
    counts = Counter(broken_invariants=0)
    with tqdm(total=args.steps, unit="step") as bar:
        while counts["steps"] < args.steps:
            for gates in GATES:
                seed = counts["environments"]
                env, other = make(gates, seed), make(gates, seed + 1)
                generator = torch.Generator().manual_seed(seed)
                player = Player(env)
                try:
                    for _ in range(2 * EPOCHS):
                        here = player.env
                        play(player, other, generator)
                        other = other if player.env is here else here
                except AssertionError:
                    counts["broken_invariants"] += 1
                    tqdm.write(traceback.format_exc())
                counts.update(player.counts, environments=1)
                bar.update(player.counts["steps"])
    (RESULTS / "soak.json").write_text(json.dumps(counts, indent=2) + "\n")
    print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main()
