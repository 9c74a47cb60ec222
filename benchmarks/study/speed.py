"""Seconds of an iteration of V1 and of V2, in turns, on a machine that does nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch
from tqdm import trange

from benchmarks.seeds import write_json
from benchmarks.study.settings import FOLDER, compose, read_results, settings
from benchmarks.study.worlds import in_study
from envs.actions import CAUSAL_RELEVANCE
from esper_rl.config import make_env
from esper_rl.policy import make_actor_critic
from esper_rl.ppo import PPO
from esper_rl.training.collection import collection_seconds, make_collector

FILE = FOLDER / "speed.json"
TURNS = 6
"""Iterations of each policy; the first one isn't counted."""


def iterations(task: str, policy: str) -> Iterator[dict[str, float]]:
    """Train, and say how many seconds each part of an iteration took."""
    changes = settings()["parts"]["policies"]["variants"][policy]
    config = in_study(compose(task, tuple(changes), 0), task)
    torch.manual_seed(0)
    actor_critic = make_actor_critic(config.policy, make_env(config, seed=0))
    ppo = PPO(actor_critic, CAUSAL_RELEVANCE, config.ppo)
    collector = make_collector(config, actor_critic)
    for batch in collector:
        world, acting = collection_seconds(batch)
        start = perf_counter()
        ppo.update(batch)
        collector.update_policy_weights_()
        yield {
            "world": world,
            "policy": acting,
            "update": perf_counter() - start,
            "steps": batch.numel(),
        }


def measure_speed(tasks: list[str]) -> None:
    """Time both policies on the tasks and write medians to the study's results."""
    torch.set_num_threads(2)
    found = read_results(FILE)
    for task in tasks:
        runs = {policy: iterations(task, policy) for policy in ("v1", "v2")}
        taken: dict[str, list[dict[str, float]]] = {policy: [] for policy in runs}
        for _ in trange(TURNS, desc=task, unit="turn"):
            for policy, run in runs.items():
                taken[policy].append(next(run))
        found[task] = {
            policy: {name: median(each[name] for each in turns[1:]) for name in turns[0]}
            for policy, turns in taken.items()
        }
    write_json(FILE, found)
