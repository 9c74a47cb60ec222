"""Values of a state, given the op or the ops' probabilities.

All of them take the value head of :class:`~esper_rl.policy.network.FactoredRecurrentNetwork`.
Probabilities get no gradient from a value: otherwise the value loss would train the actor to
help the critic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SampledValue(nn.Module):
    """V(s, op): the value at the op taken."""

    def __init__(self, value_head: nn.Module, num_ops: int) -> None:
        super().__init__()
        self.value_head = value_head
        self.num_ops = num_ops

    def forward(self, memory: Tensor, op: Tensor) -> Tensor:
        return self.value_head(memory, F.one_hot(op, self.num_ops).to(memory.dtype))


class SoftValue(nn.Module):
    """V(s, π(op|s)): the value at the op probabilities."""

    def __init__(self, value_head: nn.Module) -> None:
        super().__init__()
        self.value_head = value_head

    def forward(self, memory: Tensor, op_logits: Tensor, op_mask: Tensor) -> Tensor:
        return self.value_head(memory, _probabilities(op_logits, op_mask).to(memory.dtype))


class ExpectedValue(nn.Module):
    """Σ π(op|s) · V(s, op).

    The head's first layer is linear in the one-hot op, so the ops share its product with the
    memory: their values cost little more than one.
    """

    def __init__(self, value_head: nn.Sequential, num_ops: int) -> None:
        super().__init__()
        self.value_head = value_head
        self.num_ops = num_ops

    def forward(self, memory: Tensor, op_logits: Tensor, op_mask: Tensor) -> Tensor:
        first, *others = self.value_head
        assert isinstance(first, nn.Linear)
        of_memory, of_op = first.weight.split([memory.shape[-1], self.num_ops], dim=1)
        values = F.linear(memory, of_memory, first.bias).unsqueeze(-2) + of_op.T
        for layer in others:
            values = layer(values)  # in the end [..., ops, 1]
        return (_probabilities(op_logits, op_mask).unsqueeze(-1) * values).sum(-2)


def _probabilities(logits: Tensor, mask: Tensor) -> Tensor:
    """As :class:`torchrl.modules.MaskedCategorical` gives them, without its checks."""
    masked = logits.detach().masked_fill(~mask, -torch.inf)
    return (masked - masked.logsumexp(-1, keepdim=True)).softmax(-1)
