"""The best schedule that a search finds: what a policy that sees nothing could know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random

import torch

from envs import MorphogenesisEnv
from esper_rl.config import TrainConfig, make_env
from esper_rl.errors import check_choice, check_integer
from esper_rl.evaluation.arena import EVALUATION_SEED, evaluate
from esper_rl.evaluation.episodes import Evaluation
from esper_rl.growing.baselines import SchedulePolicy

PLANTING_TIMES = (0.0, 0.1, 0.2, 0.4)
"""Shares of an episode after which a seed may be planted."""

KEPT = 4
"""One of so many schedules goes on to the next round."""

Schedule = tuple[tuple[int, str, int], ...]
"""Slot, blueprint and epoch of planting of every seed; none: always waiting."""


@dataclass(frozen=True)
class BestSchedule:
    """Result of :func:`best_schedule`.

    Attributes:
        schedule: what is planted where, and from which epoch on.
        evaluation: of the schedule, on hosts that the search hasn't seen; discounted returns.
        tried: how many schedules were played.
        steps: environment steps of the search.
    """

    schedule: Schedule
    evaluation: Evaluation
    tried: int
    steps: int

    @property
    def seeds(self) -> Schedule:
        """The former name of ``schedule``."""
        warnings.warn("BestSchedule.seeds is schedule now", DeprecationWarning, stacklevel=2)
        return self.schedule

    def __str__(self) -> str:
        return describe(self.schedule)


def describe(schedule: Schedule) -> str:
    """Say a schedule in words.

    Examples:
        >>> describe(((0, "conv_heavy", 5), (2, "norm", 0)))
        'conv_heavy at slot 0 from epoch 5, norm at slot 2 from epoch 0'
    """
    planted = [f"{name} at slot {slot} from epoch {epoch}" for slot, name, epoch in schedule]
    return ", ".join(planted) or "wait"


def best_schedule(
    config: TrainConfig, budget: int | None = None, episodes: int = 64, seed: int = 0
) -> BestSchedule:
    """Search for the schedule that earns most, with as many steps as a policy learns from.

    Schedules of one seed or none in every slot, each planted at one of :data:`PLANTING_TIMES`,
    play against each other: all of them if the budget allows it, otherwise a random choice, and
    always the one that waits. Those that earn least drop out after one host, the others go on with
    four times as many hosts each, by their mean return so far (successive halving, Jamieson and
    Talwalkar 2016). The best schedule then plays new hosts, since its mean in the search is the
    largest of many noisy ones, and too large.

    Args:
        config: of a run: its world and its prices; ``ppo.gamma`` discounts.
        budget: environment steps of the search, at least an episode; default: the run's
            ``total_steps``.
        episodes: of the evaluation, which the budget doesn't pay for.
        seed: of the schedules that are drawn and the hosts that they play.

    Raises:
        ValueError: when the budget is below an episode.
    """
    budget = config.total_steps if budget is None else budget
    env = make_env(config, num_envs=1, seed=seed)
    length = env.max_epochs
    check_integer("budget", budget, least=length)
    _, first = _rounds(budget // length)
    chance = Random(seed)
    candidates = all_schedules(env, first) or [(), *(_draw(env, chance) for _ in range(first - 1))]
    candidates = list(dict.fromkeys(candidates))
    best, steps = race(config, candidates, budget // length, seed)
    return BestSchedule(
        schedule=best,
        evaluation=play_schedules(config, [best] * episodes, EVALUATION_SEED),
        tried=len(candidates),
        steps=steps,
    )


def race(
    config: TrainConfig, candidates: Sequence[Schedule], episodes: int, seed: int
) -> tuple[Schedule, int]:
    """Choose the schedule that earns most, by successive halving (:func:`best_schedule`).

    Args:
        config: of a run.
        candidates: schedules, all different; each plays one episode at least.
        episodes: of all of them, about.
        seed: of the hosts.

    Returns:
        The best one, and the environment steps that it took to tell.
    """
    rounds, first = _rounds(episodes)
    left, steps = list(candidates), 0
    earned: dict[Schedule, list[float]] = {schedule: [] for schedule in candidates}
    for number in range(rounds):
        hosts = max(1, first // len(left))
        players = [schedule for schedule in left for _ in range(hosts)]
        played = play_schedules(config, players, seed + number)
        steps += len(players) * config.episode_steps
        for schedule, value in zip(players, played.returns.tolist(), strict=True):
            earned[schedule].append(value)
        left.sort(key=lambda schedule: -sum(earned[schedule]) / len(earned[schedule]))
        left = left[: max(1, len(left) // KEPT)]
    return left[0], steps


def _rounds(episodes: int) -> tuple[int, int]:
    """Number of rounds and of episodes in each, so that few of as many schedules are left."""
    rounds = 1
    while KEPT ** (rounds + 1) <= episodes // (rounds + 1):
        rounds += 1
    return rounds, episodes // rounds


def all_schedules(env: MorphogenesisEnv, at_most: int) -> list[Schedule]:
    """Every schedule of a world; none if there are more than ``at_most``."""
    choices = len(_blueprints(env)) * len(_epochs(env))
    if (1 + choices) ** env.num_slots > at_most:
        return []
    return _schedules(env, most_seeds=env.num_slots)


def single_schedules(env: MorphogenesisEnv) -> list[Schedule]:
    """Always waiting, and every schedule of one seed."""
    return _schedules(env, most_seeds=1)


def _schedules(env: MorphogenesisEnv, most_seeds: int) -> list[Schedule]:
    """Every schedule of so many seeds or fewer."""
    choices = list(product(_blueprints(env), _epochs(env)))
    return [
        tuple((slot, *choice) for slot, choice in zip(slots, chosen, strict=True))
        for number in range(most_seeds + 1)
        for slots in combinations(range(env.num_slots), number)
        for chosen in product(choices, repeat=number)
    ]


def _draw(env: MorphogenesisEnv, chance: Random) -> Schedule:
    """A random schedule, of one seed as often as of two or three."""
    slots = sorted(chance.sample(range(env.num_slots), chance.randint(1, env.num_slots)))
    blueprints, epochs = _blueprints(env), _epochs(env)
    return tuple((slot, chance.choice(blueprints), chance.choice(epochs)) for slot in slots)


def _blueprints(env: MorphogenesisEnv) -> list[str]:
    offered = env.population.offered.nonzero().flatten().tolist()
    return [env.population.blueprints[index] for index in offered]


def _epochs(env: MorphogenesisEnv) -> list[int]:
    return sorted({int(share * env.max_epochs) for share in PLANTING_TIMES})


def play_schedules(config: TrainConfig, schedules: Sequence[Schedule], seed: int) -> Evaluation:
    """Play one episode of each of E schedules, on hosts that depend on the seed and the place.

    Args:
        config: of a run: its world and its prices; ``ppo.gamma`` discounts.
        schedules: E of them.
        seed: of the hosts.

    Raises:
        ValueError: for a slot or a blueprint that the world doesn't have.
    """
    env = make_env(config, num_envs=len(schedules), seed=seed)
    policy = schedule_policy(schedules, env)
    return evaluate(policy, env, len(schedules), gamma=config.ppo.gamma)


def schedule_policy(schedules: Sequence[Schedule], env: MorphogenesisEnv) -> SchedulePolicy:
    """A policy that plays a schedule on each row of a world, or one on all.

    Raises:
        ValueError: for a slot or a blueprint that the world doesn't have.
    """
    blueprints = torch.full((len(schedules), env.num_slots), -1)
    epochs = torch.zeros_like(blueprints)
    for row, schedule in enumerate(schedules):
        for slot, name, epoch in schedule:
            check_integer("slot", slot, least=0, most=env.num_slots - 1)
            check_choice("blueprint", name, env.population.blueprints)
            blueprints[row, slot] = env.population.blueprints.index(name)
            epochs[row, slot] = epoch
    return SchedulePolicy(blueprints, epochs, env.max_epochs)
