"""The scaffold task: speed, how much of the best return is learned, a search for a better plan.

    python -m benchmarks.scaffold [--rows 256] [--train [KEY=VALUE ...]] [--search]

The speed is that of ``env.step`` with random legal actions on two threads. ``--train`` trains a
policy for a few minutes and prints which part of the gap between always waiting and the best plan
it closes. The search climbs from the stated plan over all plans that differ in one event: left
out, moved to another step, exchanged with the next one, with another choice in one head, a new one
added, or everything from it on shifted in time. It takes about ten minutes.
Results go to benchmarks/results/scaffold.json, the learning curve to scaffold.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from tensordict import TensorDict

from envs import MorphogenesisEnv, RewardConfig
from envs.actions import BLUEPRINTS, CAUSAL_RELEVANCE, HEADS, Op, head_sizes
from envs.tasks.scaffold import BEST_PLAN, BEST_RETURN, CURVES, WAIT_RETURN, Plan
from esper_rl import train
from esper_rl.evaluation import evaluate_run
from esper_rl.growing.baselines import RandomPolicy
from esper_rl.training.config import parse_overrides

RESULTS = Path(__file__).parent / "results"

TRAINING: tuple[str, ...] = (
    "env.task=scaffold",
    "env.num_envs=64",
    "steps_per_iteration=9600",
    "total_steps=576000",
    "ppo.epochs=4",
    "ppo.minibatches=4",
    "workers=1",
    "threads=1",
)

EPOCHS, SLOTS, ROWS = 150, 3, 4096
GAMMA = RewardConfig().gamma
OFFERED = [BLUEPRINTS.index(name) for name in CURVES]


def steps_per_second(rows: int, steps: int = 150) -> float:
    """Of ``env.step`` alone; the policy's time doesn't count."""
    env = MorphogenesisEnv("scaffold", num_envs=rows, max_epochs=10**6)
    policy, state, seconds = RandomPolicy(), env.reset(), 0.0
    for step in range(2 * steps):
        state = policy(state)
        start = time.perf_counter()
        state = env.step(state)["next"]
        seconds += (time.perf_counter() - start) * (step >= steps)  # the first half warms up
    return rows * steps / seconds


def closed_gap(overrides: Sequence[str]) -> dict[str, float]:
    """Trains, and says which part of (best − wait) greedy and sampled episodes reach."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = train(parse_overrides([*TRAINING, *overrides, f"run_dir={folder}/scaffold"]))
        minutes = (time.perf_counter() - start) / 60
        played = evaluate_run(run, episodes=64, gamma=GAMMA)
        RESULTS.mkdir(exist_ok=True)
        shutil.copy(run / "learning_curve.png", RESULTS / "scaffold.png")
    gap = BEST_RETURN - WAIT_RETURN
    found = {"training_minutes": minutes}
    for mode in ("greedy", "sampled", "wait", "random"):
        mean = played[mode].returns.mean().item()
        found |= {f"{mode}_return": mean, f"{mode}_closed": (mean - WAIT_RETURN) / gap}
        print(f"{mode:8} return {mean:6.3f}, closes {(mean - WAIT_RETURN) / gap:6.1%} of the gap")
    return found


def returns(plans: list[Plan]) -> torch.Tensor:
    """Discounted returns, −inf for a plan with an illegal action."""
    found = []
    for first in range(0, len(plans), ROWS):
        chunk = plans[first : first + ROWS]
        actions = torch.zeros(EPOCHS, len(HEADS), len(chunk), dtype=torch.int64)
        for row, plan in enumerate(chunk):
            for step, action in plan.items():
                for head, index in action.items():
                    actions[step, HEADS.index(head), row] = int(index)
        env = MorphogenesisEnv("scaffold", num_envs=len(chunk))
        state = env.reset()
        total, legal = torch.zeros(len(chunk)), torch.ones(len(chunk), dtype=torch.bool)
        for t, action in enumerate(actions):
            heads = dict(zip(HEADS, action, strict=True))
            state = env.step(state.set("action", TensorDict(heads, [len(chunk)])))["next"]
            total += GAMMA**t * state["reward"].squeeze(1)
            legal &= state["last_action_success"].squeeze(1)
        found.append(total.masked_fill(~legal, -torch.inf))
    return torch.cat(found)


def choices(head: str) -> list[int]:
    return OFFERED if head == "blueprint" else list(range(head_sizes(SLOTS)[head]))


def changed(plan: Plan) -> Iterator[Plan]:
    """All plans in which one event differs, or comes at another time with all after it."""
    for step, action in plan.items():
        rest = {t: a for t, a in plan.items() if t != step}
        yield rest
        yield from ({**rest, t: action} for t in range(EPOCHS) if t not in plan)
        following = min((t for t in plan if t > step), default=step)
        yield {**plan, step: plan[following], following: action}
        for head in action:
            yield from ({**plan, step: {**action, head: i}} for i in choices(head) if head != "op")
        for by in (-10, -5, -3, -2, -1, 1, 2, 3, 5, 10):
            moved = {t + by * (t >= step): a for t, a in plan.items()}
            if len(moved) == len(plan) and min(moved) >= 0 and max(moved) < EPOCHS:
                yield moved


def enlarged(plan: Plan) -> Iterator[Plan]:
    """All plans with one more event."""
    for step in range(EPOCHS):
        if step not in plan:
            yield from ({**plan, step: action} for action in new_actions())


def new_actions() -> Iterator[dict[str, int]]:
    """One of every op and slot; every blueprint and α, a fast tempo, all speeds."""
    for op, slot in product(list(Op)[1:], range(SLOTS)):
        action = {
            head: 0
            for head, matters in zip(HEADS, CAUSAL_RELEVANCE[op].tolist(), strict=True)
            if matters
        }
        action |= {"op": op, "slot": slot}
        varied = [head for head in ("blueprint", "alpha_target", "alpha_speed") if head in action]
        for values in product(*(choices(head) for head in varied)):
            yield {**action, **dict(zip(varied, values, strict=True))}


def climb(plan: Plan) -> tuple[Plan, float]:
    """The best plan that steps to the best neighbour lead to."""
    best = returns([plan]).item()
    neighbours = [changed, enlarged]
    while neighbours:
        plans = list(neighbours[0](plan))
        found = returns(plans)
        if found.max().item() > best + 1e-5:
            plan, best = plans[int(found.argmax())], found.max().item()
            neighbours = [changed, enlarged]
            print(f"  {best:.5f}", flush=True)
        else:
            neighbours = neighbours[1:]
    return plan, best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--train", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--search", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    speed = steps_per_second(args.rows)
    print(f"{speed:,.0f} env-steps/s at {args.rows} rows, 2 threads")
    print(f"stated: best {BEST_RETURN}, wait {WAIT_RETURN}")
    if args.train is not None:
        results = {"rows": args.rows, "env_steps_per_second": speed, **closed_gap(args.train)}
        (RESULTS / "scaffold.json").write_text(json.dumps(results, indent=2) + "\n")
    if args.search:
        plan, best = climb(BEST_PLAN)
        print(f"best found {best:.5f}")
        for step, action in sorted(plan.items()):
            print(step, {head: int(index) for head, index in action.items()})


if __name__ == "__main__":
    main()
