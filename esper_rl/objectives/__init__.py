"""Losses and advantages."""

from esper_rl.objectives.advantage import compute_advantages
from esper_rl.objectives.ppo import FactoredClipPPOLoss

__all__ = ["FactoredClipPPOLoss", "compute_advantages"]
