"""Losses and advantages."""

from esper_rl.objectives.advantage import BOOTSTRAPS, compute_advantages, final_value_loss
from esper_rl.objectives.ppo import FactoredClipPPOLoss

__all__ = ["BOOTSTRAPS", "FactoredClipPPOLoss", "compute_advantages", "final_value_loss"]
