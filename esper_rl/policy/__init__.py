"""The policy: sizes, network, actor and critic."""

from esper_rl.policy.actor_critic import ActorCritic, make_actor_critic
from esper_rl.policy.config import ENTROPY_WEIGHTS, PolicyConfig

__all__ = ["ENTROPY_WEIGHTS", "ActorCritic", "PolicyConfig", "make_actor_critic"]
