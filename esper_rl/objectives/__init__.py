"""Losses and advantages."""

from esper_rl.objectives.advantage import BOOTSTRAPS, compute_advantages, final_value_loss
from esper_rl.objectives.ppo import RATIOS, FactoredClipPPOLoss

__all__ = ["BOOTSTRAPS", "RATIOS", "FactoredClipPPOLoss", "compute_advantages", "final_value_loss"]
