"""The policy of a run, acting on one network after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from esper_rl.config import make_env
from esper_rl.errors import check_choice
from esper_rl.runs import RunFolder
from esper_rl.training.loading import policy_in, read_config


class RunPolicy:
    """Acts on one network in training as the policy of a run does.

    Reads what a :class:`envs.MorphogenesisEnv` of one row shows, and writes ``("action", head)``.
    What it remembers it keeps itself, from call to call.

    Args:
        run: folder of a training run.
        mode: ``"greedy"`` takes the most probable choice of each head, ``"sampled"`` draws.

    Raises:
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
        ValueError: for an unknown mode.

    Attributes:
        num_slots: that it was trained with.
        gates: of the world in which it was trained.
        blueprints: names of the choices of head ``blueprint``.
        known: those of them that it was trained with.
        memory: what it remembers.
    """

    def __init__(self, run: str | Path, mode: Literal["greedy", "sampled"] = "greedy") -> None:
        check_choice("mode", mode, ("greedy", "sampled"))
        folder = RunFolder.open(run)
        config = read_config(folder)
        env = make_env(config, num_envs=1, seed=config.seed)
        self.num_slots, self.gates = env.num_slots, env.gates
        self.blueprints = env.population.blueprints
        offered = env.population.offered.tolist()
        self.known = {name for name, each in zip(self.blueprints, offered, strict=True) if each}
        self.step = policy_in(folder, env, config.policy).step_module(greedy=mode == "greedy").cpu()
        self.memory: Sequence[Tensor] = self.step.initial_state(rows=1)

    @torch.no_grad()
    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        indices = [tensordict[key] for key in self.step.index_keys]
        masks = [tensordict["action_mask", head] for head in self.step.heads]
        actions, _, self.memory = self.step(tensordict["observation"], indices, masks, self.memory)
        action = dict(zip(self.step.heads, actions.unbind(1), strict=True))
        return tensordict.update({"action": action})
