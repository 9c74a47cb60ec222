"""The layers of hosts and seeds that PyTorch doesn't have."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.instructions import FIRST_BIAS, MOST_DISTANCES

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class Residual(nn.Sequential):
    """x + layers(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Mix(nn.Module):
    """x + tanh(m) · (y − x) with a learned m for each channel; x at first.

    Args:
        channels: of x and y.
        channels_last: they are the last dimension, not the second of images ``[B, C, H, W]``.
    """

    def __init__(self, channels: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.shape = (-1,) if channels_last else (-1, 1, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + torch.tanh(self.weight).view(self.shape) * (y - x)


class MixedNorm(nn.Module):
    """A norm mixed in by a tanh-bounded learned scale per channel; starts as the identity.

    Args:
        norm: the norm.
        channels: of input and output.
        channels_last: see :class:`Mix`.
    """

    def __init__(self, norm: nn.Module, channels: int, *, channels_last: bool = False) -> None:
        super().__init__()
        self.mix = Mix(channels, channels_last=channels_last)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, self.norm(x))


class SqueezeExcitation(nn.Module):
    """Channel attention (Hu et al. 2018), reduction 4; every factor is 1 at first.

    Args:
        channels: of images ``[B, C, H, W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 4, 1)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = zero(nn.Linear(squeezed, channels))

    def forward(self, x: Tensor) -> Tensor:
        factor = 2 * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * factor[:, :, None, None]


class RelativeAttention(nn.Module):
    """All that a position sees of itself and those before it (Vaswani et al. 2017).

    Takes queries, keys and values of all heads side by side, ``[B, T, 3·C]``, and gives
    ``[B, T, C]``. The scores have a learned term for each head and distance (Raffel et al. 2020),
    0 at the start; without a window, distances from
    :data:`~envs.batched.instructions.MOST_DISTANCES` − 1 on share one.

    Args:
        heads: they divide C.
        window: positions that one sees, itself included; None: all before it. Within a window head
            j starts out looking at distance j + 1, by
            :data:`~envs.batched.instructions.FIRST_BIAS`.
    """

    def __init__(self, heads: int, window: int | None = None) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.weight = nn.Parameter(torch.zeros(heads, window or MOST_DISTANCES))

    def forward(self, projected: Tensor) -> Tensor:
        parts = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind()  # [B, heads, T, C / heads]
        bias = self._bias(projected.shape[1])
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return seen.transpose(1, 2).flatten(2)

    def _bias(self, length: int) -> Tensor:
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
    """Self-attention of a position to itself and those before it.

    Takes and gives ``[B, T, C]``; its output is 0 at first.

    Args:
        channels: C.
        window: see :class:`RelativeAttention`.
        most_heads: the most heads; there are as many of them as divide the channels.
    """

    def __init__(self, channels: int, window: int | None = None, most_heads: int = 4) -> None:
        super().__init__()
        self.project = nn.Linear(channels, 3 * channels, bias=False)
        self.attend = RelativeAttention(math.gcd(most_heads, channels), window)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(self.project(x)))


class Transpose(nn.Module):
    """``[B, T, C]`` as ``[B, C, T]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def zero(layer: Layer) -> Layer:
    """The layer, 0 at first."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(inputs: int, outputs: int, size: int, groups: int = 1) -> nn.Conv2d:
    """Convolution without bias that keeps the size of images."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)


class DrawnConv(nn.Module):
    """1×1 or 3×3 convolution without bias: it has both kernels and uses one of them.

    Which one is decided by the sign of a number that is drawn like a weight and never learns.

    Args:
        inputs, outputs: channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.coin = nn.Parameter(torch.empty(1))
        self.small, self.large = conv(inputs, outputs, 1), conv(inputs, outputs, 3)
        nn.init.uniform_(self.coin, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.coin > 0, self.large(x), self.small(x))

    def chosen(self) -> nn.Conv2d:
        """The one that it uses."""
        return self.large if self.coin > 0 else self.small


class DrawnChannel(nn.Module):
    """One of two channels, ``[B, 2, …]`` to ``[B, 1, …]``.

    Which one is decided by the sign of a number that is drawn like a weight and never learns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coin = nn.Parameter(torch.empty(1), requires_grad=False)
        nn.init.uniform_(self.coin, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        # Exactly 0 or 1, by steps that have a compiled form; torch.where has none.
        chosen = torch.sigmoid(1e6 * (0 * first + self.coin))
        return first + chosen * (second - first)
