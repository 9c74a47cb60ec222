"""Policies of all kinds in the fake world."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.modules import set_recurrent_mode

from esper_rl import PolicyConfig, make_actor_critic
from esper_rl.policy import ActorCritic
from tests.support.fake_world import FakeWorld


def build(config: PolicyConfig, world: FakeWorld) -> ActorCritic:
    """A policy with strong preferences, whose attention does something."""
    torch.manual_seed(0)
    ac = make_actor_critic(config, world)
    with torch.no_grad():
        for head in ac.network.heads.values():
            head[-1].weight.mul_(100)
        if "attention" in ac.network.memories:
            nn.init.normal_(ac.network.attention.project_back.weight)
    return ac


def fresh(ac: ActorCritic, batch: TensorDictBase) -> TensorDictBase:
    """The batch with logits, masks and values of one pass of the actor's modules over time."""
    batch = batch.clone()
    with set_recurrent_mode(True), torch.no_grad():
        for module in ac.actor.module:
            if hasattr(module, "get_dist"):
                module.get_dist(batch)  # draws nothing: masks stay those of the stored op
            else:
                module(batch)
    return batch
