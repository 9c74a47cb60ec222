"""Advantages of a recurrent rollout with the sampled-op bootstrap."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value.functional import generalized_advantage_estimate

from esper_rl.policy import ActorCritic


@torch.no_grad()
def compute_advantages(
    batch: TensorDictBase, actor_critic: ActorCritic, *, gamma: float = 0.995, lmbda: float = 0.98
) -> TensorDictBase:
    """Fill in GAE (Schulman et al. 2016) from the values that the rollout stored.

    The baseline is the soft ``"state_value"`` written beside the action. Where an episode was
    truncated, or the batch ends in mid-episode, the value of the ``next`` observation is the hard
    one of the op that the policy samples there; a terminated step has no bootstrap.

    Args:
        batch: steps ``[N, T]`` of a collector, with the recurrent state of every step.
        actor_critic: whose values they are.
        gamma: discount.
        lmbda: of GAE.

    Returns:
        The batch with ``("next", "state_value")``, ``"advantage"`` (normalised over all steps) and
        ``"value_target"``, each ``[N, T, 1]``.
    """
    value = batch["state_value"]
    done, terminated = batch["next", "done"], batch["next", "terminated"]
    next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    next_value = torch.where(done, 0.0, next_value)
    cut = done & ~terminated
    cut[:, -1] |= ~done[:, -1]
    where = cut.squeeze(-1)
    if where.any():
        next_value[where] = _bootstrap(batch["next"][where], actor_critic)
    advantage, target = generalized_advantage_estimate(
        gamma, lmbda, value, next_value, batch["next", "reward"], done, terminated, time_dim=1
    )
    spread = advantage.std(correction=0).clamp(min=1e-6)
    batch.set(("next", "state_value"), next_value)
    batch.set("advantage", (advantage - advantage.mean()) / spread)
    batch.set("value_target", target)
    return batch


def _bootstrap(after: TensorDictBase, actor_critic: ActorCritic) -> Tensor:
    """Hard values ``[K, 1]`` of K final observations with ops sampled there."""
    keys = [key for key in actor_critic.actor.in_keys if key != "is_init"]
    state = after.select(*keys)
    state["is_init"] = torch.zeros(*state.shape, 1, dtype=torch.bool, device=after.device)
    with set_recurrent_mode(False), set_exploration_type(ExplorationType.RANDOM):
        action = actor_critic.actor(state.copy()).select("action")
        return actor_critic.critic(state.update(action))["state_value"]
