"""The agent: it learns to grow neural networks while they train.

Names are imported when they are first used, so that the command ``esper-rl`` can say something,
or be ended, in the seconds that PyTorch takes to load.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_rl.config import TrainConfig
    from esper_rl.grower import Grower
    from esper_rl.growing import PolicyConfig
    from esper_rl.growing.baselines import RandomPolicy
    from esper_rl.objectives import FactoredClipPPOLoss
    from esper_rl.policy import make_actor_critic
    from esper_rl.ppo import PPO, PPOConfig
    from esper_rl.training.callbacks import Callback
    from esper_rl.training.loading import load_policy
    from esper_rl.training.trainer import resume, train

__all__ = [
    "PPO",
    "Callback",
    "FactoredClipPPOLoss",
    "Grower",
    "PPOConfig",
    "PolicyConfig",
    "RandomPolicy",
    "TrainConfig",
    "load_policy",
    "make_actor_critic",
    "resume",
    "train",
]

_MODULES = {
    "PPO": "ppo",
    "Callback": "training.callbacks",
    "FactoredClipPPOLoss": "objectives",
    "Grower": "grower",
    "PPOConfig": "ppo",
    "PolicyConfig": "growing",
    "RandomPolicy": "growing.baselines",
    "TrainConfig": "config",
    "load_policy": "training.loading",
    "make_actor_critic": "policy",
    "resume": "training.trainer",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
