"""Playing whole episodes: players, the world in which they play, and the table of a run."""

from esper_rl.evaluation.arena import EVALUATION_SEED, Arena, Mode, Player, evaluate
from esper_rl.evaluation.controls import OPEN_LOOP, shuffled
from esper_rl.evaluation.players import (
    BASELINES,
    BEST_PLAN,
    FIXED_SCHEDULE,
    GREEDY,
    HEURISTIC,
    PLAYERS,
    RANDOM,
    SAMPLED,
    WAIT,
    players_of,
    untrained,
)
from esper_rl.evaluation.run_table import evaluate_run

__all__ = [
    "BASELINES",
    "BEST_PLAN",
    "EVALUATION_SEED",
    "FIXED_SCHEDULE",
    "GREEDY",
    "HEURISTIC",
    "OPEN_LOOP",
    "PLAYERS",
    "RANDOM",
    "SAMPLED",
    "WAIT",
    "Arena",
    "Mode",
    "Player",
    "evaluate",
    "evaluate_run",
    "players_of",
    "shuffled",
    "untrained",
]
