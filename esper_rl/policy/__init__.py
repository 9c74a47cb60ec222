"""A factored recurrent policy for any environment: sizes, network, actor and critic."""

from esper_rl.policy.actor_critic import ActorCritic, make_actor_critic
from esper_rl.policy.config import VALUE_MODES, ActorCriticConfig

__all__ = ["VALUE_MODES", "ActorCritic", "ActorCriticConfig", "make_actor_critic"]
