"""The agent: it learns to grow neural networks while they train."""

from esper_rl.growing import PolicyConfig
from esper_rl.objectives import FactoredClipPPOLoss
from esper_rl.policy import make_actor_critic
from esper_rl.training.callbacks import Callback
from esper_rl.training.config import PPOConfig, TrainConfig
from esper_rl.training.loading import load_policy
from esper_rl.training.trainer import resume, train

__all__ = [
    "Callback",
    "FactoredClipPPOLoss",
    "PPOConfig",
    "PolicyConfig",
    "TrainConfig",
    "load_policy",
    "make_actor_critic",
    "resume",
    "train",
]
