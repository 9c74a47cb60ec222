"""The players of an evaluation: the policy of a run, and others that need no training."""

from __future__ import annotations

from collections.abc import Callable

from tensordict.nn import TensorDictModuleBase

from envs import make_task
from esper_rl.config import TrainConfig
from esper_rl.evaluation.arena import Arena, Player
from esper_rl.evaluation.controls import blindfolded, learned
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    HeuristicPolicy,
    PlanPolicy,
    RandomPolicy,
    WaitPolicy,
)
from esper_rl.growing.feedback import HIDDEN

GREEDY = Player("greedy", learned, "greedy")
SAMPLED = Player("sampled", learned, "sampled")


def untrained(name: str, policy: Callable[[], TensorDictModuleBase]) -> Player:
    """A player whose policy is the same in every arena."""
    return Player(name, lambda arena: policy())


def _best_plan(arena: Arena) -> TensorDictModuleBase:
    task, world = arena.world.task, arena.world
    return PlanPolicy(task.best_plan, world.max_epochs, world.num_slots)


WAIT = untrained("wait", WaitPolicy)
RANDOM = untrained("random", RandomPolicy)
FIXED_SCHEDULE = untrained("fixed-schedule", FixedSchedulePolicy)
HEURISTIC = untrained("heuristic", HeuristicPolicy)

BASELINES: tuple[Player, ...] = (WAIT, RANDOM, FIXED_SCHEDULE, HEURISTIC)
"""Players without training, for every task."""

BEST_PLAN = Player("best plan", _best_plan)
"""One more, where the task's best plan is known."""

PLAYERS: tuple[Player, ...] = (
    GREEDY,
    SAMPLED,
    *(blindfolded(f"feedback {name}", hide) for name, hide in HIDDEN.items()),
    *BASELINES,
)
"""Players of an evaluation: the policy of the run, also with its action feedback hidden (a large
drop in return means that it has learned a shortcut), then the baselines."""


def players_of(config: TrainConfig) -> tuple[Player, ...]:
    """Players in a run's world: :data:`PLAYERS`, and the best plan where it is known.

    It is known for a task's own length of episodes and number of slots.
    """
    task, world = make_task(config.env.task), config.env
    own_size = world.max_epochs in (None, task.max_epochs) and world.num_slots == task.num_slots
    return (*PLAYERS, BEST_PLAN) if task.best_plan is not None and own_size else PLAYERS
