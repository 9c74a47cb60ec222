"""The numbers that a training run watches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from envs.actions import Op


def rollout_metrics(batch: TensorDictBase) -> dict[str, float]:
    """What happened in the world.

    Args:
        batch: steps ``[N, T]`` of a collector, with ``("next", "episode_reward")``.

    Returns:
        Number of episodes that ended in the batch and the means over them of return, final
        accuracy (percent) and seed parameters (nan when none ended); over all steps, the
        fraction of refused actions and of each op.
    """
    outcome = batch["next"]
    done = outcome["done"].squeeze(-1)

    def at_the_end(values: Tensor) -> float:
        return values.squeeze(-1)[done].float().mean().item()

    chosen = torch.bincount(batch["action", "op"].flatten(), minlength=len(Op)) / done.numel()
    refused = ~outcome["last_action_success"]
    return {
        "episodes": int(done.sum()),
        "return": at_the_end(outcome["episode_reward"]),
        "final_accuracy": at_the_end(outcome["metrics", "val_accuracy"]),
        "seed_params": at_the_end(outcome["metrics", "seed_params"]),
        "refused_rate": refused.float().mean().item(),
        **{f"op/{op.name}": chosen[op].item() for op in Op},
    }


def update_metrics(updates: Sequence[TensorDictBase]) -> dict[str, float]:
    """What the loss has written, scalar by scalar.

    Args:
        updates: outputs of the loss, one for each update of an iteration.

    Returns:
        Means over the updates. What is about steps with a certain op or head leaves out the
        updates without such a step, and is nan when there was none at all.
    """
    scalars = TensorDict.stack(list(updates)).flatten_keys("/")
    means = {name: scalars[name].float().nanmean().item() for name in sorted(scalars.keys())}
    for op in Op:
        means[f"op_critic_loss/{op.name}"] = means.pop(f"op_critic_loss/{op:d}")
    return means
