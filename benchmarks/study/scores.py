"""Growth by a score of gradients: what a seed would add, measured before it is planted.

Two scores of a network with gradient g of its loss over the training examples:

- *gradient norm*, gᵀg, which a new part of a network shall have as large as possible (GradMax, Evci
  et al. 2022);
- *natural expansion score*, gᵀ F⁻¹ g with the Fisher information F (Self-expanding neural networks,
  Mitchell et al. 2023), here of some examples whose classes are drawn from the network's own
  probabilities, and damped: F + λI.

Of all seeds that could be planted the one with the highest score is, where the score with it is
more than so many times that without it. The papers widen layers; here both choose among seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from envs import ArrayTask, GrowingNetwork, MorphogenesisEnv
from envs.actions import ALPHA_TARGETS, HEADS, Op
from envs.batched.modes import Mode

FISHER_EXAMPLES, EXAMPLES, DAMPING = 128, 500, 1e-3
ALPHA = 0.1
"""Of a seed that is measured: the network does nearly what it did, and the gradient is a share."""

Gradients = tuple[Tensor, Tensor]
"""Mean gradient ``[P]``, and gradients ``[M, P]`` of single examples with drawn classes."""


def gradients(
    network: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
) -> Gradients:
    """Gradients of the loss with respect to some of a network's parameters.

    Args:
        network: gives logits ``[B, classes]``.
        parameters: of it, by name.
        inputs, targets: of :data:`EXAMPLES`; the first :data:`FISHER_EXAMPLES` make F.
    """
    fixed = {name: value.detach() for name, value in network.state_dict().items()}

    def loss(moved: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, {**fixed, **moved}, (x,)), y)

    moved = {name: value.detach() for name, value in parameters.items()}
    mean = grad(loss)(moved, inputs, targets)
    some = inputs[:FISHER_EXAMPLES]
    with torch.no_grad():
        drawn = network(some).softmax(1).multinomial(1)
    single = vmap(grad(loss), (None, 0, 0))(moved, some[:, None], drawn)
    flat = torch.cat([mean[name].flatten() for name in moved])
    return flat, torch.cat([single[name].flatten(1) for name in moved], 1)


def gradient_norm(parts: list[Gradients]) -> float:
    """gᵀg over all parts of the parameters."""
    return sum(mean.square().sum().item() for mean, _ in parts)


def natural_score(parts: list[Gradients], damping: float = DAMPING) -> float:
    """gᵀ (F + λI)⁻¹ g over all parts of the parameters, by Woodbury's identity."""
    mean, single = (torch.cat([part[i] for part in parts], -1).double() for i in (0, 1))
    number = len(single)
    seen = single @ mean
    inner = damping * number * torch.eye(number, dtype=seen.dtype) + single @ single.T
    return ((mean @ mean - seen @ torch.linalg.solve(inner, seen)) / damping).item()


SCORES = {"gradient norm": gradient_norm, "natural score": natural_score}
"""By name."""


class ScoredPolicy(TensorDictModuleBase):
    """Plants the seed with the highest score, where it is high enough; advances all at once.

    Reads ``("metrics", "epoch")`` and ``("action_mask", head)``, writes
    ``("action", head)``, int64 ``[N]``, for every head.

    Args:
        world: whose networks are measured.
        score: one of :data:`SCORES`.
        threshold: a seed is planted where the score with it is more than so many times the one
            without it; one for all rows, or for each ``[N]``.
        every: epochs between two measurements.
    """

    in_keys = (("metrics", "epoch"), *(("action_mask", head) for head in HEADS))
    out_keys = tuple(("action", head) for head in HEADS)

    def __init__(
        self, world: MorphogenesisEnv, score: str, threshold: float | Tensor, every: int = 5
    ) -> None:
        super().__init__()
        assert isinstance(world.task, ArrayTask)
        self.world, self.task, self.score, self.every = world, world.task, SCORES[score], every
        self.threshold = torch.as_tensor(threshold).expand(world.num_envs)
        inputs, targets = (part[:EXAMPLES] for part in self.task.train)
        self.examples = self.task.host.prepare(inputs), targets

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        legal = tensordict["action_mask", "slot"]  # [N, ops, S]
        rows = len(legal)
        action = {head: torch.zeros(rows, dtype=torch.int64) for head in HEADS}
        action["alpha_target"] += ALPHA_TARGETS.index(1.0)
        if int(tensordict["metrics", "epoch"].flatten()[0]) % self.every == 0:
            for row in legal[:, Op.GERMINATE].any(-1).nonzero().flatten().tolist():
                free = legal[row, Op.GERMINATE].nonzero().flatten().tolist()
                found = self._best(row, free)
                if found is not None:
                    action["op"][row] = Op.GERMINATE
                    action["slot"][row], action["blueprint"][row] = found
        for op in (Op.ADVANCE, Op.FOSSILIZE):
            acts = legal[:, op].any(-1) & (action["op"] == Op.WAIT)
            action["op"][acts] = op
            action["slot"][acts] = legal[acts, op].int().argmax(-1)
        for head, chosen in action.items():
            tensordict["action", head] = chosen
        return tensordict

    def _best(self, row: int, free: list[int]) -> tuple[int, int] | None:
        """Slot and blueprint with the highest score in a row, None if it isn't high enough."""
        network, population = self.world.network(row).eval(), self.world.population
        own = gradients(network, dict(network.named_parameters()), *self.examples)
        without = self.score([own])
        best: tuple[float, tuple[int, int] | None] = 0.0, None
        for slot in free:
            for name, blueprint in self.task.host.blueprints.items():
                seed = blueprint(self.task.host.slot_channels[slot])
                if not list(seed.parameters()):
                    continue
                score = self.score([own, self._of_seed(network, slot, seed)]) / without
                if score > best[0]:
                    best = score, (slot, population.blueprints.index(name))
            network.remove(slot)
        return best[1] if best[0] > self.threshold[row] else None

    def _of_seed(self, network: GrowingNetwork, slot: int, seed: nn.Module) -> Gradients:
        network.plant(slot, seed.eval(), Mode.ADD, ALPHA)
        prefix = f"slots.{slot}.seed."
        new: dict[str, Any] = {prefix + name: value for name, value in seed.named_parameters()}
        mean, single = gradients(network, new, *self.examples)
        return mean / ALPHA, single / ALPHA
