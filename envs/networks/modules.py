"""The layers of hosts and seeds that PyTorch doesn't have, and the built-in seeds, as modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.sequences import FIRST_BIAS, MOST_DISTANCES
from envs.blueprints.text import WINDOW


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class MixedNorm(nn.Module):
    """A norm mixed in by a tanh-bounded learned scale per channel; starts as the identity.

    Args:
        norm: the norm.
        channels: of input and output.
        channels_last: they are the last dimension, not the second of images ``[B, C, H, W]``.
    """

    def __init__(self, norm: nn.Module, channels: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(channels))
        self.norm = norm
        self.shape = (-1,) if channels_last else (-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.mix).view(self.shape) * (self.norm(x) - x)


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al. 2018), reduction 4; every factor is 1 at first.

    Args:
        channels: of images ``[B, C, H, W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 4, 1)
        self.squeeze, self.excite = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, x: Tensor) -> Tensor:
        factor = 2 * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * factor[:, :, None, None]


class DistanceBias(nn.Module):
    """A learned term of the scores of attention for each head and distance (Raffel et al. 2020).

    Args:
        heads: number of heads.
        window: positions that one sees, itself included; None: all before it, where distances from
            :data:`~envs.batched.sequences.MOST_DISTANCES` − 1 on share a term. Within a window head
            j starts out looking at distance j + 1.
    """

    def __init__(self, heads: int, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.weight = nn.Parameter(torch.zeros(heads, window or MOST_DISTANCES))

    def forward(self, length: int) -> Tensor:
        """Terms ``[heads, T, T]`` for each position and one that it sees; −∞ where it doesn't."""
        heads, distances = self.weight.shape
        places = torch.arange(length, device=self.weight.device)
        distance = places[:, None] - places
        hidden = distance < 0
        learned: Tensor = self.weight
        if self.window is not None:
            hidden = hidden | (distance >= self.window)
            own = torch.arange(self.window, device=hidden.device)
            own = own == 1 + torch.arange(heads, device=hidden.device)[:, None]
            learned = learned + FIRST_BIAS * own
        return learned[:, distance.clamp(0, distances - 1)].masked_fill(hidden, -torch.inf)


class CausalAttention(nn.Module):
    """Self-attention (Vaswani et al. 2017) of a position to itself and those before it.

    Takes and gives ``[B, T, C]``; its output is 0 at first.

    Args:
        channels: C.
        window: see :class:`DistanceBias`.
        most_heads: the most heads; there are as many of them as divide the channels.
    """

    def __init__(self, channels: int, window: int | None = None, most_heads: int = 4) -> None:
        super().__init__()
        self.heads = math.gcd(most_heads, channels)
        self.project = nn.Linear(channels, 3 * channels, bias=False)
        self.distance = DistanceBias(self.heads, window)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind()  # [B, heads, T, C / heads]
        seen = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self.distance(x.shape[1])
        )
        return self.out(seen.transpose(1, 2).flatten(2))


class Transpose(nn.Module):
    """``[B, T, C]`` as ``[B, C, T]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer, 0 at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size of images."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.GroupNorm(1, channels), nn.ReLU()]


def mixed_group_norm(channels: int) -> nn.Module:
    return MixedNorm(nn.GroupNorm(1, channels), channels)


def residual_conv(channels: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [conv(channels, channels, 3), *_norm_relu(channels)]
    return Residual(*layers)


def pointwise_conv(channels: int) -> nn.Module:
    return Residual(*_norm_relu(channels), _zero(conv(channels, channels, 1)))


def depthwise_conv(channels: int) -> nn.Module:
    return Residual(
        conv(channels, channels, 3, groups=channels),
        conv(channels, channels, 1),
        *_norm_relu(channels),
    )


def bottleneck(channels: int) -> nn.Module:
    narrow = max(channels // 4, 8)
    return Residual(
        conv(channels, narrow, 1),
        *_norm_relu(narrow),
        conv(narrow, narrow, 3),
        *_norm_relu(narrow),
        _zero(conv(narrow, channels, 1)),
    )


def attention(channels: int, window: int | None = None) -> nn.Module:
    return Residual(nn.LayerNorm(channels), CausalAttention(channels, window))


def mixed_layer_norm(channels: int) -> nn.Module:
    return MixedNorm(nn.LayerNorm(channels), channels, channels_last=True)


def low_rank(channels: int, rank: int) -> nn.Module:
    return Residual(
        nn.Linear(channels, rank, bias=False), _zero(nn.Linear(rank, channels, bias=False))
    )


def feed_forward(channels: int, expansion: int) -> nn.Module:
    wide = expansion * channels
    return Residual(
        nn.LayerNorm(channels),
        nn.Linear(channels, wide),
        nn.ReLU(),
        _zero(nn.Linear(wide, channels)),
    )


def fill(module: nn.Module, values: Iterable[Tensor]) -> nn.Module:
    """Copy values into a module's parameters, in order; they may be flat."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value.reshape(parameter.shape))
    return module


SEEDS: dict[str, dict[str, Callable[[int], nn.Module]]] = {
    "convolutional": {
        "conv_light": partial(residual_conv, depth=1),
        "attention": SqueezeExcitation,
        "norm": mixed_group_norm,
        "depthwise": depthwise_conv,
        "bottleneck": bottleneck,
        "conv_small": pointwise_conv,
        "conv_heavy": partial(residual_conv, depth=2),
    },
    "transformer": {
        "attention": attention,
        "norm": mixed_layer_norm,
        "lora": partial(low_rank, rank=8),
        "lora_large": partial(low_rank, rank=32),
        "mlp_small": partial(feed_forward, expansion=2),
        "mlp": partial(feed_forward, expansion=4),
        "flex_attention": partial(attention, window=WINDOW),
    },
}
"""By topology and name, the built-in blueprints (:mod:`envs.blueprints`) as modules; their
parameters come in the same order."""
