"""Transformer hosts and their seeds as ordinary torch modules, one network at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.instructions import FIRST_BIAS, MOST_DISTANCES
from envs.hosts import TextHost
from envs.networks.blueprints import WINDOW
from envs.populations import SlotInputs
from envs.populations.trained import TrainedPopulation
from tests.support.plain import PlainResidual, PlainSlot, load_flat, plain_slots

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
        places = torch.arange(length)
        distance = places[:, None] - places
        bias, most = self.distance, self.distance.shape[1]
        if self.window is not None:
            bias = bias + FIRST_BIAS * torch.eye(HEADS, most, dtype=x.dtype).roll(1, 1)
        mask = bias[:, distance.clamp(0, most - 1)]
        hidden = (distance < 0) | (distance >= (self.window or length))
        mask = mask.masked_fill(hidden, -torch.inf).repeat(batch, 1, 1)
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


class PlainTextSlot(PlainSlot):
    """A seed whose gate opens at every position by itself."""

    def openness(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(h))

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The gate's, then the seed's in the batched order."""
        return chain(self.gate.parameters(), parameters_of(self.seed))


class PlainTextNetwork(nn.Module):
    """A host: embedding, linear blocks with layer norm and ReLU but for the last, head.

    Args:
        tokens: size of the vocabulary.
        channels: of the embedding and the blocks.
        slots: what sits in each slot, None for nothing.
    """

    def __init__(
        self, tokens: int, channels: Sequence[int], slots: list[PlainTextSlot | None]
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(tokens, channels[0]))
        pairs = list(pairwise(channels))
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs[:-1])
        self.head = nn.ModuleList([nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], tokens)])
        self.slots = nn.ModuleList(slot or nn.Identity() for slot in slots)

    def host_parameters(self) -> list[nn.Parameter]:
        found = [self.embedding]
        for i, linear in enumerate(self.linears):
            found += linear.parameters()
            if i < len(self.norms):
                found += self.norms[i].parameters()
        return [*found, *self.head.parameters()]

    def forward(self, tokens: Tensor, without: Collection[int] = ()) -> Tensor:
        """Logits ``[B, tokens, T]`` of int64 ``[B, T]``, leaving out seeds ``without``."""
        x = F.embedding(tokens, self.embedding)
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i < len(self.norms):
                x = F.relu(self.norms[i](x))
            if i < len(self.slots) and i not in without:
                x = self.slots[i](x)
        norm, linear = self.head
        return linear(norm(x)).transpose(1, 2)


def plain_text_network(
    population: TrainedPopulation, growth: SlotInputs, row: int
) -> PlainTextNetwork:
    """One row of a population of :class:`~envs.TextHost`, with the same weights."""
    host = population.host
    assert isinstance(host, TextHost)
    slots = plain_slots(population, growth, row, PlainTextSlot, plain_text_seed)
    width = next(iter(host.segments[0].shapes.values()))[1]
    network = PlainTextNetwork(host.num_classes, (width, *host.slot_channels), slots)
    network.to(population.params.dtype)
    load_flat(network.host_parameters(), population.host_params[row])
    return network
