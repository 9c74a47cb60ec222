"""Weights of the reward that are the tests' own, and the potentials as the design has them."""

from __future__ import annotations

from envs.actions import Op, Stage
from envs.reward import RewardConfig

GAMMA = 0.995
# The default weights are calibrated; these are the tests' own, each a different number.
CONFIG = RewardConfig(
    gamma=GAMMA,
    progress=5.0,
    stage=0.1,
    rent=0.03,
    shock=0.02,
    intervention={
        Op.GERMINATE: 0.02,
        Op.FOSSILIZE: 0.01,
        Op.PRUNE: 0.005,
        Op.SET_ALPHA_TARGET: 0.005,
    },
    fossilize=0.5,
    fossilize_limit=0.3,
    fossilize_cost=0.05,
    prune=0.4,
    prune_limit=0.2,
    upkeep=0.04,
    synergy=3.0,
    hindsight=0.7,
    terminal=4.0,
    bonus=0.25,
    size=0.6,
    hasty_prune=0.15,
)
POTENTIAL = {
    Stage.GERMINATED: 1.0,
    Stage.TRAINING: 2.0,
    Stage.BLENDING: 3.5,
    Stage.HOLDING: 5.5,
    Stage.FOSSILIZED: 6.0,
}
