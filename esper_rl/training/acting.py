"""The policy of a run, acting on one network after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

from envs import make_task
from envs.actions import head_sizes
from envs.populations.base import blueprint_choices
from envs.specs import SpecMaker
from esper_rl.errors import check_choice
from esper_rl.runs import RunFolder
from esper_rl.training.loading import policy_in, read_config


class _Specs(EnvBase):
    """The specs of a world of one row, without its networks, which may have to be compiled."""

    def __init__(self, num_slots: int, num_blueprints: int, topology: str) -> None:
        cpu = torch.device("cpu")
        super().__init__(device=cpu, batch_size=torch.Size([1]))
        self.topology = topology
        make = SpecMaker(1, num_slots, head_sizes(num_slots, num_blueprints), cpu)
        self.observation_spec, self.action_spec = make.observation(1, ()), make.action()
        self.reward_spec, self.done_spec = make.reward(), make.done()

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        raise NotImplementedError

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        raise NotImplementedError

    def _set_seed(self, seed: int | None) -> None:
        raise NotImplementedError


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
        task = make_task(config.env.task)
        self.num_slots, self.gates = config.env.num_slots, config.env.gates
        self.known = frozenset(task.offered)
        self.blueprints = blueprint_choices(task.offered)
        env = _Specs(self.num_slots, len(self.blueprints), task.topology)
        actor_critic, _ = policy_in(folder, env, config.policy)
        self.step = actor_critic.step_module(greedy=mode == "greedy").cpu()
        self.memory: Sequence[Tensor] = self.step.initial_state(rows=1)

    @torch.no_grad()
    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        indices = [tensordict[key] for key in self.step.index_keys]
        masks = [tensordict["action_mask", head] for head in self.step.heads]
        actions, _, self.memory = self.step(tensordict["observation"], indices, masks, self.memory)
        action = dict(zip(self.step.heads, actions.unbind(1), strict=True))
        return tensordict.update({"action": action})
