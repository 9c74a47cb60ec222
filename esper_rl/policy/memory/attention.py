"""Attention over the latest steps of the episode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from esper_rl.policy.memory.base import Memory, MemoryStep


class RecentAttention(Memory):
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

    def initialise(self) -> None:
        """Leave the weights as they are: it has begun as the identity."""

    def from_the_beginning(self, x: Tensor) -> Tensor:
        return self.over_time(x, *self.nothing(x))

    def carried(self, name: str, in_key: str, out_key: str) -> TensorDictModuleBase:
        return AttentionModule(self, name, in_key, out_key)

    def step_module(self) -> MemoryStep:
        return AttentionStep(self)

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


class AttentionStep(MemoryStep):
    """One step of :class:`RecentAttention`.

    Args:
        attention: the layer.
    """

    states = 2

    def __init__(self, attention: RecentAttention) -> None:
        super().__init__()
        self.attention = attention

    def initial_state(self, rows: int) -> list[Tensor]:
        like = self.attention.project.weight.new_zeros(rows, self.attention.size)
        return [*self.attention.nothing(like)]

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        past, count = state
        return self.attention.step(x, past, count, torch.zeros_like(count, dtype=torch.bool))


class AttentionModule(TensorDictModuleBase):
    """:class:`RecentAttention` of a key, its state carried beside it as an LSTM's is.

    In recurrent mode the last batch dimension is time. As with an LSTM, a sequence goes on from the
    state stored at its first step, and begins anew, from the state stored there, at each further
    step that ``is_init`` marks; no state is written. Else every step goes on from its own state, or
    from none where ``is_init`` marks it.

    Args:
        attention: the layer.
        name: names its state.
        in_key: what it reads.
        out_key: what it writes.
    """

    def __init__(self, attention: RecentAttention, name: str, in_key: str, out_key: str) -> None:
        super().__init__()
        self.attention = attention
        self.state = [f"{name}_past", f"{name}_count"]
        self.in_keys = [in_key, *self.state, "is_init"]
        self.out_keys = [out_key, *(("next", name) for name in self.state)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        x, past, count, is_init = (tensordict.get(key) for key in self.in_keys)
        shape = x.shape[:-1]
        x, count, is_init = (each.reshape(-1, each.shape[-1]) for each in (x, count, is_init))
        past = past.reshape(-1, *past.shape[-2:])
        if recurrent_mode():
            out = self._over_time(x, past, count, is_init.squeeze(-1), steps=shape[-1])
            return tensordict.set(self.out_keys[0], out.reshape(*shape, -1))
        for key, value in zip(
            self.out_keys, self.attention.step(x, past, count, is_init), strict=True
        ):
            tensordict.set(key, value.reshape(*shape, *value.shape[1:]))
        return tensordict

    def _over_time(
        self, x: Tensor, past: Tensor, count: Tensor, is_init: Tensor, steps: int
    ) -> Tensor:
        """Outputs of sequences of so many steps, all of them one after the other."""
        place = torch.arange(len(x), device=x.device)
        begins = is_init | (place % steps == 0)
        first = begins.nonzero().squeeze(1)
        piece = begins.cumsum(0) - 1
        place = place - first[piece]
        padded = x.new_zeros(len(first), int(place.max()) + 1, x.shape[-1])
        padded[piece, place] = x
        return self.attention.over_time(padded, past[first], count[first])[piece, place]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the state to an environment's resets."""
        past, count = self.state
        shape = (self.attention.span, self.attention.size)
        return TensorDictPrimer(
            {past: Unbounded(shape), count: Unbounded((1,), dtype=torch.int64)}, expand_specs=True
        )
