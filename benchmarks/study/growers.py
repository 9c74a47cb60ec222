"""What people would do instead of training a controller, in the same world at the same budget.

Each grower is chosen by a search that has as many environment steps as a training run: schedules by
successive halving, or by climbing; triggers by their threshold. What was chosen then plays the
hosts that policies play.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random

import torch
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import Transform

from benchmarks.seeds import Run
from benchmarks.study.runs import play_hosts
from benchmarks.study.scores import SCORES, ScoredPolicy
from benchmarks.study.settings import Job
from benchmarks.study.worlds import in_study
from envs import MorphogenesisEnv
from esper_rl.config import TrainConfig, make_env
from esper_rl.evaluation import EVALUATION_SEED, Mode, evaluate
from esper_rl.evaluation.schedule_search import (
    Schedule,
    best_schedule,
    describe,
    play_schedules,
    race,
    schedule_policy,
)
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    HeuristicPolicy,
    RandomPolicy,
    WaitPolicy,
)
from esper_rl.policy import make_actor_critic

PERIODS, STARTS = (5, 10, 15), (0, 5, 10)
"""Epochs between two seeds of a periodic schedule, and before the first."""

NEIGHBOURS, HOSTS = 7, 4
"""Changes of a schedule that are tried at once, and hosts that each plays."""

THRESHOLDS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True)
class Found:
    """What was chosen.

    Attributes:
        make: what plays, of a world.
        chosen: the same in words.
        steps: of the environment, that the choice took.
        mode: how it takes actions.
        transforms: that it needs.
    """

    make: Callable[[MorphogenesisEnv], TensorDictModuleBase]
    chosen: str = ""
    steps: int = 0
    mode: Mode = "sampled"
    transforms: Sequence[Transform] = ()


def _of(schedule: Schedule, steps: int) -> Found:
    return Found(partial(schedule_policy, [schedule]), describe(schedule), steps)


def searched(config: TrainConfig, seed: int) -> Found:
    found = best_schedule(config, episodes=1, seed=seed)
    return _of(found.schedule, found.steps)


def periodic(config: TrainConfig, seed: int) -> Found:
    """The same seed in one slot after the other, every so many epochs (stacking)."""
    env = make_env(config, num_envs=1, seed=seed)
    schedules = [
        tuple((slot, name, start + slot * period) for slot in range(env.num_slots))
        for name, period, start in product(env.task.offered, PERIODS, STARTS)
    ]
    episodes = config.total_steps // config.episode_steps
    return _of(*race(config, [(), *schedules], episodes, seed))


def climbed(config: TrainConfig, seed: int) -> Found:
    """From waiting, the best of some changes in each round, while there are steps."""
    env, chance = make_env(config, num_envs=1, seed=seed), Random(seed)
    current: Schedule = ()
    steps = 0
    cost = (1 + NEIGHBOURS) * HOSTS * config.episode_steps
    while steps + cost <= config.total_steps:
        tried = [current, *(changed(current, env, chance) for _ in range(NEIGHBOURS))]
        players = [schedule for schedule in tried for _ in range(HOSTS)]
        returns = play_schedules(config, players, seed + steps).returns.view(-1, HOSTS).mean(1)
        current = tried[int(returns.argmax())]
        steps += cost
    return _of(current, steps)


def changed(schedule: Schedule, env: MorphogenesisEnv, chance: Random) -> Schedule:
    """With another seed in one slot, at another epoch, or without it."""
    slots = {slot: (name, epoch) for slot, name, epoch in schedule}
    slot = chance.randrange(env.num_slots)
    name, epoch = slots.get(slot, (chance.choice(env.task.offered), 0))
    moved = max(0, epoch + chance.choice((-10, -5, -2, 2, 5, 10)))
    kinds = [(chance.choice(env.task.offered), epoch), (name, moved), None]
    kind = chance.choice(kinds if slot in slots else kinds[:2])
    others = {other: what for other, what in slots.items() if other != slot}
    if kind is not None:
        others[slot] = kind
    return tuple((slot, *others[slot]) for slot in sorted(others))


def triggered(score: str, config: TrainConfig, seed: int) -> Found:
    """A trigger with the threshold that earns most, each of them on as many hosts."""
    hosts = min(16, config.total_steps // config.episode_steps // len(THRESHOLDS))
    rows = hosts * len(THRESHOLDS)
    env = make_env(config, num_envs=rows, seed=seed)
    of_rows = torch.tensor(THRESHOLDS).repeat_interleave(hosts)
    played = evaluate(ScoredPolicy(env, score, of_rows), env, rows, gamma=config.ppo.gamma)
    best = THRESHOLDS[int(played.returns.view(-1, hosts).mean(1).argmax())]
    make = partial(ScoredPolicy, score=score, threshold=best)
    return Found(make, f"above {best:g} times", rows * config.episode_steps)


def each_variants_own(config: TrainConfig, seed: int) -> Found:
    """The schedule that is best for each variant of ``digits_varied`` (``benchmarks.varied``)."""

    def make(env: MorphogenesisEnv) -> TensorDictModuleBase:
        env.set_seed(EVALUATION_SEED)
        env.reset()
        first = (first_convolution(env.network(row)) for row in range(env.num_envs))
        schedules: list[Schedule] = [
            ((0, "depthwise", 0),) if conv.kernel_size == (1, 1) else () for conv in first
        ]
        env.set_seed(EVALUATION_SEED)
        return schedule_policy(schedules, env)

    return Found(make, "depthwise at slot 0 from epoch 0 where the first block is 1×1")


def first_convolution(network: nn.Module) -> nn.Conv2d:
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def untrained(mode: Mode, config: TrainConfig, seed: int) -> Found:
    """The run's policy with the weights that it has before its first update."""
    torch.manual_seed(seed)
    made = make_actor_critic(config.policy, make_env(config, num_envs=1, seed=seed))
    return Found(lambda env: made.actor, mode=mode, transforms=made.transforms())


def _given(make: Callable[[], TensorDictModuleBase], config: TrainConfig, seed: int) -> Found:
    return Found(lambda env: make())


GROWERS: dict[str, Callable[[TrainConfig, int], Found]] = {
    "wait": partial(_given, WaitPolicy),
    "random": partial(_given, RandomPolicy),
    "fixed schedule": partial(_given, FixedSchedulePolicy),
    "heuristic": partial(_given, HeuristicPolicy),
    **{f"untrained {policy}": partial(untrained, "sampled") for policy in ("V1", "V2")},
    **{f"untrained {policy}, greedy": partial(untrained, "greedy") for policy in ("V1", "V2")},
    "periodic": periodic,
    "hill climbing": climbed,
    "best schedule": searched,
    "each variant's own": each_variants_own,
    **{score: partial(triggered, score) for score in SCORES},
}
"""By name: chooses what plays, by a seed."""


def grow(job: Job) -> Run:
    """Choose, then play the study's hosts; what was chosen, by how many steps, and results."""
    torch.set_num_threads(1)
    config = in_study(job.config, job.task)
    found = GROWERS[job.variant](config, job.seed)
    played = play_hosts(job.task, config, found.make, job.seed, found.mode, found.transforms)
    return {"chosen": found.chosen, "steps": found.steps, "players": {job.variant: played}}
