"""Transformer hosts and their seeds as ordinary torch modules, one network at a time."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.actions import Algorithm, Stage
from envs.batched.sequences import FIRST_BIAS, MOST_DISTANCES
from envs.blueprints.text import WINDOW
from tests.support.plain import PlainResidual

HEADS = 4


class PlainMixedNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mix) * (self.norm(x) - x)


class PlainSelfAttention(nn.Module):
    """``nn.MultiheadAttention`` with a mask that holds the bias for each distance."""

    def __init__(self, channels: int, window: int | None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        del self.attention.in_proj_bias
        self.attention.register_buffer("in_proj_bias", torch.zeros(3 * channels))
        self.distance = nn.Parameter(torch.zeros(HEADS, window or MOST_DISTANCES))
        self.window = window

    def parameters(self, recurse: bool = True):
        """In the batched layer's order."""
        yield self.attention.in_proj_weight
        yield self.distance
        yield from self.attention.out_proj.parameters()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        mask = torch.full((HEADS, length, length), -torch.inf, dtype=x.dtype)
        for head in range(HEADS):
            for t in range(length):
                for s in range(t + 1):
                    distance = t - s
                    if self.window is None:
                        mask[head, t, s] = self.distance[head, min(distance, MOST_DISTANCES - 1)]
                    elif distance < self.window:
                        own = FIRST_BIAS if distance == head + 1 else 0.0
                        mask[head, t, s] = self.distance[head, distance] + own
        mask = mask.repeat(batch, 1, 1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


def plain_text_seed(name: str, channels: int) -> nn.Module:
    """A blueprint as a torch module on ``[B, T, C]``, its parameters in the batched one's order."""

    def feed_forward(expansion: int) -> nn.Module:
        return PlainResidual(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels),
            nn.ReLU(),
            nn.Linear(expansion * channels, channels),
        )

    def low_rank(rank: int) -> nn.Module:
        return PlainResidual(
            nn.Linear(channels, rank, bias=False), nn.Linear(rank, channels, bias=False)
        )

    if name in ("attention", "flex_attention"):
        window = WINDOW if name == "flex_attention" else None
        return PlainResidual(nn.LayerNorm(channels), PlainSelfAttention(channels, window))
    modules = {
        "norm": lambda: PlainMixedNorm(channels),
        "lora": lambda: low_rank(8),
        "lora_large": lambda: low_rank(32),
        "mlp_small": lambda: feed_forward(2),
        "mlp": lambda: feed_forward(4),
    }
    return modules[name]()


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """In the batched layers' order."""
    if isinstance(module, PlainResidual):
        return [p for layer in module.layers for p in layer.parameters()]
    return list(module.parameters())


class PlainTextSlot(nn.Module):
    """A gate, a seed and how it acts; ``gate`` and ``seed`` are in the batched order."""

    def __init__(
        self, name: str, channels: int, stage: Stage, algorithm: Algorithm, alpha: float
    ) -> None:
        super().__init__()
        self.gate, self.seed = nn.Linear(channels, 1), plain_text_seed(name, channels)
        self.stage, self.algorithm, self.alpha = stage, algorithm, alpha

    def forward(self, h: Tensor) -> Tensor:
        if self.stage is Stage.TRAINING:
            seed = self.seed(h.detach())
            return h + (seed - seed.detach())
        if self.algorithm is Algorithm.MULTIPLY:
            return h * (1 + self.alpha * torch.tanh(self.seed(h) - h))
        alpha: float | Tensor = self.alpha
        if self.algorithm is Algorithm.GATE:
            alpha = alpha * torch.sigmoid(self.gate(h))
        return h + alpha * (self.seed(h) - h)


class PlainTextNetwork(nn.Module):
    """A host: embedding, linear blocks with layer norm and ReLU but for the last, head."""

    def __init__(self, tokens: int, channels: tuple[int, ...], slots: list[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(channels[0], tokens))
        pairs = list(pairwise(channels))
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs[:-1])
        self.head = nn.ModuleList([nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], tokens)])
        self.slots = nn.ModuleList(slots)

    def host_parameters(self) -> list[nn.Parameter]:
        found = [self.embedding]
        for i, linear in enumerate(self.linears):
            found += linear.parameters()
            if i < len(self.norms):
                found += self.norms[i].parameters()
        return [*found, *self.head.parameters()]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, T, tokens]`` of int64 ``[B, T]``."""
        x = F.embedding(tokens, self.embedding.T)
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i < len(self.norms):
                x = F.relu(self.norms[i](x))
            x = self.slots[i](x)
        norm, linear = self.head
        return linear(norm(x))
