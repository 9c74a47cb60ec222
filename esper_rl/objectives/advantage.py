"""Advantages of a recurrent rollout with the sampled-op bootstrap, and values where it ends."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value.functional import generalized_advantage_estimate

from esper_rl.errors import check_choice, check_number
from esper_rl.objectives.checks import require_valid
from esper_rl.policy.actor_critic import BASELINE, VALUE, ActorCritic

BOOTSTRAPS: tuple[str, ...] = ("sampled", "expected")
"""Ways to find the value of an observation after which nothing is known."""


@torch.no_grad()
def compute_advantages(
    batch: TensorDictBase,
    actor_critic: ActorCritic,
    *,
    gamma: float = 0.995,
    lmbda: float = 0.9,
    bootstrap: str = "sampled",
) -> TensorDictBase:
    """Fill in GAE (Schulman et al. 2016) from the values that the rollout stored.

    The values are the ``"baseline"`` written beside the action. Where an episode was
    truncated, or the batch ends in mid-episode, the value of the ``next`` observation is that of
    the op that the policy samples there; a terminated step has no bootstrap. Only those
    observations are evaluated.

    Steps that ``("collector", "mask")`` marks as padding (of split trajectories) neither count in
    the normalisation nor reach a step before them.

    Args:
        batch: steps ``[..., N, T]`` of a collector, with the recurrent state of every step.
        actor_critic: whose values they are.
        gamma: discount.
        lmbda: of GAE.
        bootstrap: ``"sampled"``, or ``"expected"`` for the mean over the policy's ops.

    Returns:
        The batch with ``("next", "baseline")``, ``"advantage"`` (normalised over all valid
        steps) and ``"value_target"``, each ``[..., N, T, 1]``; a copy that shares all tensors if
        it is locked, as those in shared memory are.

    Raises:
        KeyError: if ``next`` lacks what the actor reads, such as the recurrent state.
        ValueError: if the batch has no rows and steps or is all padding, ``bootstrap`` is unknown,
            or a number out of range.
    """
    check_choice("bootstrap", bootstrap, BOOTSTRAPS)
    check_number("gamma", gamma, least=0, most=1)
    check_number("lmbda", lmbda, least=0, most=1)
    if batch.ndim < 2:
        raise ValueError(f"batch must be of shape [..., rows, steps], got {list(batch.shape)}")
    if batch.is_locked:
        batch = batch.copy()
    value = batch[BASELINE]
    done, terminated = batch["next", "done"], batch["next", "terminated"]
    valid = _valid(batch)
    require_valid(valid)
    following = torch.cat([valid[..., 1:, :], torch.zeros_like(valid[..., :1, :])], dim=-2)
    end = done | (valid & ~following)
    next_value = torch.where(end, 0.0, value.roll(-1, dims=-2))
    bootstrapped = (valid & end & ~terminated).squeeze(-1)
    if bootstrapped.any():
        next_value[bootstrapped] = _value_of(batch["next"][bootstrapped], actor_critic, bootstrap)
    advantage, target = generalized_advantage_estimate(
        gamma, lmbda, value, next_value, batch["next", "reward"], end, terminated, time_dim=-2
    )
    counted = advantage[valid]
    spread = counted.std(correction=0).clamp(min=1e-6)
    batch.set(("next", BASELINE), next_value)
    batch.set("advantage", (advantage - counted.mean()) / spread)
    batch.set("value_target", target)
    return batch


def final_value_loss(batch: TensorDictBase, actor_critic: ActorCritic) -> Tensor:
    """Squared value of the observations at which episodes were truncated, to be added to a loss.

    For worlds that pay a lump at their time limit. The bootstrap there is a value that no other
    loss regresses: it copies that of the step before, which grows by the lump every time. Nothing
    more is paid after the lump, so this pulls the value towards 0, at an op that the policy draws.

    Args:
        batch: steps of a collector, of any shape.
        actor_critic: whose values they are; its action heads get no gradient.

    Returns:
        A scalar: the sum over the truncated steps, divided by the number of valid steps, so that
        each of them weighs as much as any other step in the value loss.
    """
    valid = _valid(batch)
    truncated = batch["next", "done"] & ~batch["next", "terminated"] & valid
    if not truncated.any():
        return torch.zeros((), device=truncated.device)
    value = _value_of(batch["next"][truncated.squeeze(-1)], actor_critic, "sampled")
    return value.square().sum() / valid.sum()


def _valid(batch: TensorDictBase) -> Tensor:
    """Bool ``[..., T, 1]``: the steps that aren't padding."""
    done = batch["next", "done"]
    return batch.get(("collector", "mask"), torch.ones_like(done)).reshape(done.shape)


def _value_of(after: TensorDictBase, actor_critic: ActorCritic, how: str) -> Tensor:
    """Values ``[K, 1]`` of K final observations: see ``bootstrap`` above."""
    keys = [key for key in actor_critic.actor.in_keys if key != "is_init"]
    present = after.keys(True)
    for key in keys:
        if key not in present:
            raise KeyError(
                f"the batch lacks {key!r} under 'next', without which the value where it was cut "
                "can't be computed; collect it with the actor and its transforms()"
            )
    state = after.select(*keys)
    # A last observation goes on with the memory of its episode, whatever comes after it.
    device = state[keys[0]].device  # that of a batch may be unknown
    state["is_init"] = torch.zeros(*state.shape, 1, dtype=torch.bool, device=device)
    with set_recurrent_mode(False), set_exploration_type(ExplorationType.RANDOM):
        if how == "expected":
            return actor_critic.expected_critic(state)[VALUE]
        with torch.no_grad():
            action = actor_critic.actor(state.copy()).select("action")
        return actor_critic.critic(state.update(action))[VALUE]
