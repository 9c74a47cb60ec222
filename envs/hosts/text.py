"""Transformer hosts: blocks that treat every position by itself, until attention is grown."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from envs.checks import check_integer, check_memory
from envs.hosts.module import ModuleHost
from envs.networks.blueprints import TEXT_BLUEPRINTS, Blueprint
from envs.networks.layers import Transpose
from envs.typed import typed

_SPREAD = math.sqrt(3.0)
"""Bound of an embedding's numbers, whose variance is 1 then, as in torch."""


class TextHost(ModuleHost):
    """An embedding, linear blocks with a slot after each, then a linear head.

    It names the next token at every position, and sees only the current one: there is no attention
    and nothing that tells positions apart. All blocks but the last end in layer norm and ReLU.

    Args:
        tokens: size of the vocabulary.
        channels: width of the embedding, then of every block's output.
        blueprints: what can be planted, by name.

    Raises:
        TypeError: if a size isn't an integer.
        ValueError: if one is below 1, or there is no block.

    Examples:
        >>> host = TextHost(tokens=62)
        >>> host.slot_channels
        (48, 48, 12)
    """

    @typed
    def __init__(
        self,
        tokens: int,
        channels: Sequence[int] = (48, 48, 48, 12),
        blueprints: Mapping[str, Blueprint] = TEXT_BLUEPRINTS,
    ) -> None:
        check_integer("tokens", tokens)
        for i, each in enumerate(channels):
            check_integer(f"channels[{i}]", each)
        if len(channels) < 2:
            raise ValueError(
                "channels must have a width for the embedding and one for each of at least one "
                f"block, got {tuple(channels)}"
            )
        weights = sum(a * b for a, b in pairwise((tokens, *channels, tokens)))
        check_memory(f"tokens={tokens}, channels={tuple(channels)}", 4 * weights)
        network = partial(_network, tokens, tuple(channels))
        slots = [f"block{i}" for i in range(1, len(channels))]
        length = 3 if tokens == 2 else 2  # any, but that of the tokens
        example = torch.zeros(1, length, dtype=torch.int64)
        super().__init__(network, slots, example, blueprints, topology="transformer")

    def prepare(self, inputs: Tensor) -> Tensor:
        """Make int64 tokens ``[M, T]`` of integers.

        Raises:
            ValueError: for another shape or dtype, or tokens that the host doesn't know.
        """
        if inputs.dim() != 2 or inputs.is_floating_point():
            raise ValueError(
                f"tokens must be integers of shape [M, T], got {inputs.dtype} of shape "
                f"{list(inputs.shape)}"
            )
        if inputs.numel() and not 0 <= int(inputs.min()) <= int(inputs.max()) < self.num_classes:
            raise ValueError(
                f"tokens must be from 0 to {self.num_classes - 1}, got {int(inputs.min())} to "
                f"{int(inputs.max())}"
            )
        return inputs.long()


def _network(tokens: int, channels: Sequence[int]) -> nn.Module:
    """An embedding and blocks of these widths, and a head."""
    blocks = OrderedDict[str, nn.Module]()
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        layers: list[nn.Module] = []
        if i == 0:
            layers.append(embedding := nn.Embedding(tokens, inputs))
            nn.init.uniform_(embedding.weight, -_SPREAD, _SPREAD)
        layers.append(nn.Linear(inputs, outputs))
        if i < len(channels) - 2:
            layers += [nn.LayerNorm(outputs), nn.ReLU()]
        blocks[f"block{i + 1}"] = nn.Sequential(*layers)
    narrow = channels[-1]
    blocks["head"] = nn.Sequential(nn.LayerNorm(narrow), nn.Linear(narrow, tokens), Transpose())
    return nn.Sequential(blocks)
