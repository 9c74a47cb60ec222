"""Layers of many networks on sequences: features are ``[n, C, 1, T, B]``, T positions in a row.

Layers that treat every pixel alike (:class:`PointwiseConv`,
:class:`Linear`, :class:`ReLU`) treat every position alike and go with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.instructions import Assembler, Buffer, Opcode
from envs.batched.layers import Linear, PointwiseConv, normalise
from envs.batched.parameters import Parameter, norm, zeros
from envs.batched.programs import Params

MOST_DISTANCES = 32
"""Distances between positions that :class:`CausalAttention` tells apart; those beyond are one."""

FIRST_BIAS = 3.0
"""With it, a head looks at its own distance 20 times as much as at any other one."""


@dataclass(frozen=True)
class Embedding:
    """A vector for each token: int64 ``[n or 1, T, B]`` to ``[n, channels, 1, T, B]``.

    Args:
        name: of its weight ``[channels, tokens]``, which starts with variance 1, as torch's does.
        tokens: how many there are.
        channels: of the output.
    """

    name: str
    tokens: int
    channels: int

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [Parameter(self.name, (self.channels, self.tokens), bound=math.sqrt(3.0))]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        vectors = params[self.name]
        chosen = x.flatten(1)[:, None].expand(len(vectors), self.channels, -1)
        return vectors.gather(2, chosen).unflatten(2, (1, *x.shape[1:]))

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start = code.columns(self.parameters)
        out = code.buffer(self.channels, 1, x.size)
        return code.line(Opcode.EMBED, x, out, parameters=start, flag=self.tokens)


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation (Ba et al. 2016) of every position's channels by themselves.

    Args:
        name: of its parameters ``{name}_scale`` and ``{name}_shift``, ``[channels]`` each.
        channels: of input and output.
        relu: ReLU of it.
    """

    name: str
    channels: int
    relu: bool = False

    @property
    def parameters(self) -> Sequence[Parameter]:
        return norm(self.name, self.channels)

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        out = normalise(params, self.name, x, over=(1,))
        return F.relu(out) if self.relu else out

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        start, pixels = code.columns(self.parameters), x.height * x.width
        out, kept = code.buffer(x.channels, x.height, x.width), code.buffer(2, x.height, x.width)
        return code.line(
            Opcode.NORM, x, out, scratch=kept, parameters=start, size=pixels, flag=int(self.relu),
            stride=x.channels,
        )  # fmt: skip


@dataclass(frozen=True)
class CausalAttention:
    """Self-attention (Vaswani et al. 2017) of a position to itself and those before it.

    Positions are told apart by a learned bias of each head for each distance (Raffel et al. 2020),
    0 at the start; distances from :data:`MOST_DISTANCES` − 1 on share one. The output projection
    starts at 0.

    Args:
        name: its parameters are ``{name}_in [3·channels, channels]`` (queries, keys and values
            without bias), ``{name}_distance [heads, distances]`` and ``{name}_out [channels,
            channels]`` with its ``{name}_out_bias``.
        channels: of input and output.
        window: positions that one sees, itself included; None: all before it. Within a window
            head j starts out looking at distance j + 1, by :data:`FIRST_BIAS`.
        most_heads: the most heads; there are as many of them as divide the channels.
    """

    name: str
    channels: int
    window: int | None = None
    most_heads: int = 4

    @property
    def heads(self) -> int:
        """Number of heads."""
        return math.gcd(self.most_heads, self.channels)

    @property
    def distances(self) -> int:
        """Distances that are told apart."""
        return MOST_DISTANCES if self.window is None else self.window

    @property
    def _in(self) -> PointwiseConv:
        return PointwiseConv(f"{self.name}_in", self.channels, 3 * self.channels)

    @property
    def _distance(self) -> Parameter:
        return zeros(f"{self.name}_distance", self.heads, self.distances)

    @property
    def _out(self) -> Linear:
        return Linear(f"{self.name}_out", self.channels, self.channels, zero=True)

    @property
    def parameters(self) -> Sequence[Parameter]:
        return [*self._in.parameters, self._distance, *self._out.parameters]

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        n, _, _, length, batch = x.shape
        projected = self._in(params, x)
        parts = projected.view(n, 3, self.heads, -1, length, batch).permute(1, 0, 2, 5, 4, 3)
        queries, keys, values = parts.contiguous()  # [n, heads, B, T, channels / heads]
        scores = queries @ keys.mT / math.sqrt(self.channels // self.heads)
        weights = (scores + self._bias(params, length)).softmax(-1)
        seen = (weights @ values).permute(0, 1, 4, 3, 2).reshape(x.shape)
        return self._out(params, seen)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        projected = self._in.emit(code, x)
        start, length = code.columns([self._distance]), x.height * x.width
        seen = code.buffer(self.channels, x.height, x.width)
        weights = code.buffer(self.heads * min(self.window or length, length), x.height, x.width)
        code.line(
            Opcode.ATTEND, projected, seen, scratch=weights, parameters=start, size=self.heads,
            flag=self.window or 0,
        )  # fmt: skip
        return self._out.emit(code, seen)

    def _bias(self, params: Params, length: int) -> Tensor:
        """Terms of the scores, ``[n, heads, 1, T, T]``; −∞ where nothing is seen."""
        learned = params[f"{self.name}_distance"]
        places = torch.arange(length, device=learned.device)
        distance = places[:, None] - places
        hidden = distance < 0
        if self.window is not None:
            hidden = hidden | (distance >= self.window)
            heads = torch.arange(self.heads, device=learned.device)
            own = torch.arange(self.window, device=learned.device) == 1 + heads[:, None]
            learned = learned + FIRST_BIAS * own
        of_pairs = learned[:, :, distance.clamp(0, self.distances - 1)]
        return of_pairs.masked_fill(hidden, -math.inf)[:, :, None]


class OnlyPositions:
    """Features without the row that stands for pixels: ``[n, C, 1, T, B]`` to ``[n, C, T, B]``."""

    parameters: Sequence[Parameter] = ()

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x.squeeze(2)

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        return x
