"""Is help seen on ``scaffold``? How near to the best plan episodes come; the value's jump."""

from __future__ import annotations

from statistics import fmean

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from benchmarks.scaffold import closed
from benchmarks.seeds import Run
from envs.observation import feature_columns
from envs.tasks.scaffold import BEST_PLAN
from esper_rl.evaluation import Arena, evaluate
from esper_rl.evaluation.controls import learned

NEAR = 0.9
"""Part of the gap between waiting and the best plan that an episode closes, if it is near it."""

(_SEEN,) = feature_columns(BEST_PLAN.feature)


class Watched(TensorDictModuleBase):
    """A policy whose values are noted, and whether it is shown that one seed helps another.

    Attributes:
        values: of each step, ``[N]``.
        helped: of each step, bool ``[N]``.
    """

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys
        self.values: list[Tensor] = []
        self.helped: list[Tensor] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.policy(tensordict)
        self.values.append(tensordict["baseline"].squeeze(-1).clone())
        self.helped.append(tensordict["observation"][:, _SEEN] > 0)
        return tensordict


def watch_credit(arena: Arena) -> Run:
    """Of the greedy policy: episodes near the best plan, and the value where help is seen first.

    Returns:
        ``near_best``, a share of the hosts; ``helped``, that in which help is seen at all;
        ``jump``, the value's mean change in the step in which it is; ``elsewhere``, the root mean
        square of its changes in all other steps.
    """
    arena.start_over()
    watched = Watched(learned(arena))
    gamma = arena.config.ppo.gamma
    played = evaluate(watched, arena.world, arena.episodes, "greedy", gamma)
    parts = [closed(earned) for earned in played.returns.tolist()]
    changes = torch.stack(watched.values).diff(dim=0)  # [T − 1, N]
    helped = torch.stack(watched.helped)
    first = helped[1:] & (helped[1:].cumsum(0) == 1) & ~helped[:1]
    jumps = changes[first]
    return {
        "near_best": fmean(part >= NEAR for part in parts),
        "helped": helped.any(0).float().mean().item(),
        "jump": jumps.mean().item() if len(jumps) else None,
        "elsewhere": changes[~first].square().mean().sqrt().item(),
    }
