"""Losses and actors to compare them on."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Categorical

from envs.actions import CAUSAL_RELEVANCE
from esper_rl import FactoredClipPPOLoss
from esper_rl.growing import ENTROPY_WEIGHTS
from esper_rl.policy import ActorCritic

LOSSES = ("loss_objective", "loss_critic", "loss_entropy")


def make_loss(ac: ActorCritic, **options: Any) -> FactoredClipPPOLoss:
    chosen = {"relevance": CAUSAL_RELEVANCE, "entropy_weights": ENTROPY_WEIGHTS} | options
    return FactoredClipPPOLoss(ac.actor, ac.critic, heads=ac.heads, **chosen)


def stir(module: nn.Module, strength: float = 0.1) -> None:
    """Move the weights, as updates between rollout and loss do."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(strength * torch.randn_like(parameter) * parameter.std(correction=0))


def one_head() -> tuple[ProbabilisticTensorDictSequential, list[str], Tensor]:
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(nn.Linear(4, 3), ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"],
            ["action"],
            distribution_class=Categorical,
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
        ),
    )
    return actor, ["action"], torch.ones(3, 1, dtype=torch.bool)


def independent_heads(
    composite: bool,
) -> tuple[ProbabilisticTensorDictSequential, list[str], Tensor]:
    """Heads of 3 and 5 choices: one distribution for both, as the parent wants it, or two."""
    sizes = {"move": 3, "speed": 5}
    logits = TensorDictModule(
        lambda x: x.split(list(sizes.values()), -1),
        ["both"],
        [("params", head, "logits") for head in sizes],
    )
    keys = [("action", head) for head in sizes]
    random: dict[str, Any] = {
        "default_interaction_type": InteractionType.RANDOM,
        "return_log_prob": True,
    }
    draws = [
        ProbabilisticTensorDictModule(
            {"logits": ("params", key[-1], "logits")},
            [key],
            distribution_class=Categorical,
            **random,
        )
        for key in keys
    ]
    if composite:
        draws = [
            ProbabilisticTensorDictModule(
                ["params"],
                keys,
                distribution_class=CompositeDistribution,
                distribution_kwargs={
                    "distribution_map": dict.fromkeys(sizes, Categorical),
                    "name_map": dict(zip(sizes, keys, strict=True)),
                },
                **random,
            )
        ]
    features = TensorDictModule(nn.Linear(4, 8), ["observation"], ["both"])
    actor = ProbabilisticTensorDictSequential(features, logits, *draws)
    return actor, list(sizes), torch.ones(3, 2, dtype=torch.bool)


def steps_of(actor: ProbabilisticTensorDictSequential, *shape: int) -> TensorDict:
    done = torch.rand(*shape, 1) < 0.2
    after = {
        "observation": torch.randn(*shape, 4),
        "reward": torch.randn(*shape, 1),
        "done": done,
        "terminated": done,
    }
    steps = TensorDict(observation=torch.randn(*shape, 4), next=after, batch_size=shape)
    with torch.no_grad():
        return actor(steps).exclude("logits", "params", "both")
