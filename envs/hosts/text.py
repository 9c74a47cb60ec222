"""Transformer hosts: blocks that treat every position by itself, until attention is grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from envs.batched.layers import Linear
from envs.batched.programs import Layer, Program
from envs.batched.sequences import Embedding, LayerNorm, OnlyPositions
from envs.blueprints import TEXT_BLUEPRINTS, Blueprint
from envs.blueprints.base import Segment
from envs.checks import check_integer
from envs.networks.modules import Transpose, fill


class TextHost:
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

    topology = "transformer"
    channels_last = True
    pool: Layer = Program()  # nothing: a gate opens at every position by what is there alone

    def __init__(
        self,
        tokens: int,
        channels: Sequence[int] = (48, 48, 48, 12),
        blueprints: Mapping[str, Blueprint] = TEXT_BLUEPRINTS,
    ) -> None:
        self.num_classes = check_integer("tokens", tokens)
        for i, each in enumerate(channels):
            check_integer(f"channels[{i}]", each)
        if len(channels) < 2:
            raise ValueError(
                "channels must have a width for the embedding and one for each of at least one "
                f"block, got {tuple(channels)}"
            )
        self.blueprints = blueprints
        self.slot_channels: Sequence[int] = tuple(channels[1:])
        blocks: list[list[Layer]] = []
        for inputs, outputs in pairwise(channels):
            block: list[Layer] = [Linear("linear", inputs, outputs)]
            if len(blocks) < len(channels) - 2:
                block.append(LayerNorm("norm", outputs, relu=True))
            blocks.append(block)
        blocks[0].insert(0, Embedding("embedding", tokens, channels[0]))
        narrow = channels[-1]
        head: list[Layer] = [
            LayerNorm("norm", narrow),
            Linear("linear", narrow, tokens),
            OnlyPositions(),
        ]
        self.segments: Sequence[Segment] = tuple(Program(*layers) for layers in [*blocks, head])
        self.activation_size = 32 * max(tokens, 3 * max(channels))
        """Of sequences of 32 tokens; longer ones only take more memory."""

    def modules(self, params: Sequence[Tensor]) -> list[nn.Module]:
        """One network's segments as ordinary modules; they give logits ``[B, tokens, T]``."""
        first = next(iter(self.segments[0].layout.entries)).shape[0]
        widths = [first, *self.slot_channels]
        made: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers: list[nn.Module] = [nn.Embedding(self.num_classes, first)] if i == 0 else []
            layers.append(nn.Linear(inputs, outputs))
            if i < len(self.slot_channels) - 1:
                layers += [nn.LayerNorm(outputs), nn.ReLU()]
            made.append(nn.Sequential(*layers))
        narrow = widths[-1]
        head = [nn.LayerNorm(narrow), nn.Linear(narrow, self.num_classes), Transpose()]
        made.append(nn.Sequential(*head))
        for segment, module, flat in zip(self.segments, made, params, strict=True):
            named = {n: x[0] for n, x in segment.layout.unflatten(flat[None]).items()}
            values = [x.T if name == "embedding" else x for name, x in named.items()]
            fill(module.to(flat.dtype), values)
        return made

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
