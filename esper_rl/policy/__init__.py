"""The policy: sizes, network, actor and critic."""

from esper_rl.policy.actor_critic import ActorCritic, make_actor_critic
from esper_rl.policy.config import ENTROPY_WEIGHTS, PRESETS, VALUE_MODES, PolicyConfig

__all__ = [
    "ENTROPY_WEIGHTS",
    "PRESETS",
    "VALUE_MODES",
    "ActorCritic",
    "PolicyConfig",
    "make_actor_critic",
]
