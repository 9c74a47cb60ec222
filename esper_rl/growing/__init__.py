"""All of the agent that knows what a seed is: presets, baselines, monitors."""

from esper_rl.growing.config import ENTROPY_WEIGHTS, PRESETS, PolicyConfig

__all__ = ["ENTROPY_WEIGHTS", "PRESETS", "PolicyConfig"]
