"""Attention over the latest steps of the episode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RecentAttention(nn.Module):
    """Residual multi-head attention of every step to itself and the steps before it.

    The projection back starts at 0, so the layer starts as the identity. What it looks at is
    carried like a recurrent state: the latest ``span`` inputs, the last one at the end, and how
    many of them there are.

    Args:
        size: width of its input.
        span: how many steps it looks at, itself among them.
    """

    num_heads = 2

    def __init__(self, size: int, span: int) -> None:
        super().__init__()
        self.size, self.span = size, span
        self.project = nn.Linear(size, 3 * size)
        self.project_back = _ZeroLinear(size, size)

    def nothing(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The state before the first step: float ``[n, span, size]`` and int64 ``[n, 1]``."""
        n = len(like)
        count = torch.zeros(n, 1, dtype=torch.int64, device=like.device)
        return like.new_zeros(n, self.span, self.size), count

    def step(
        self, x: Tensor, past: Tensor, count: Tensor, is_init: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        Args:
            x: ``[n, size]``.
            past, count: the state.
            is_init: bool ``[n, 1]``, first steps of episodes.

        Returns:
            Output ``[n, size]`` and the new state.
        """
        count = torch.where(is_init, 0, count)
        recent = torch.cat([past[:, 1:], x[:, None]], dim=1)
        count = (count + 1).clamp(max=self.span)
        seen = torch.arange(self.span, device=x.device) >= self.span - count
        return self._attend(x[:, None], recent, seen[:, None])[:, 0], recent, count

    def over_time(self, x: Tensor, past: Tensor, count: Tensor) -> Tensor:
        """Many steps of one episode at once: ``[n, T, size]``.

        Args:
            x: ``[n, T, size]``.
            past, count: the state before the first of them.
        """
        steps = x.shape[1]
        when = torch.arange(-self.span, steps, device=x.device)
        age = when[self.span :, None] - when  # [T, span + T]
        near = (age >= 0) & (age < self.span)
        exists = (when >= 0) | (when >= -count)  # [n, span + T]
        return self._attend(x, torch.cat([past, x], dim=1), near & exists[:, None])

    def _attend(self, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """``x [n, T, size]`` looks at ``seen [n, K, size]`` where ``mask [n, T, K]``."""
        weight, bias = self.project.weight, self.project.bias
        query = F.linear(x, weight[: self.size], bias[: self.size])
        key, value = F.linear(seen, weight[self.size :], bias[self.size :]).chunk(2, dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return x + self.project_back(out.transpose(1, 2).flatten(2))


class _ZeroLinear(nn.Linear):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
