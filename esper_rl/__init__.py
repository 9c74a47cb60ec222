"""The agent: it learns to grow neural networks while they train."""

from esper_rl.training.checkpoint import load_policy
from esper_rl.training.config import TrainConfig
from esper_rl.training.trainer import train

__all__ = ["TrainConfig", "load_policy", "train"]
