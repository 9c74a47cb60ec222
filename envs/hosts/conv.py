"""Convolutional hosts: blocks of convolution, group norm, ReLU and pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from envs.checks import check_choice, check_integer, check_memory
from envs.hosts.module import ModuleHost
from envs.networks.blueprints import CONV_BLUEPRINTS, Blueprint
from envs.networks.layers import DrawnChannel, DrawnConv, conv
from envs.typed import typed


class ConvHost(ModuleHost):
    """Blocks of convolution with a slot after each, then a linear classifier.

    Args:
        kernel_size: 1 or 3, of every convolution; or one for each block, where None stands for one
            of the two that every network draws with its parameters, as likely as the other.
        image_shape: channels, height and width of the input.
        channels: output channels of the blocks.
        pooled: for every block, does 2×2 max pooling follow?
        classes: number of classes.
        blueprints: what can be planted, by name.
        drawn_channel: every network sees one of two channels of the input only, which is drawn
            with its parameters, as likely as the other.

    Raises:
        TypeError: if a size isn't an integer.
        ValueError: on another kernel size, a size below 1, lists of different lengths, an image
            that can't be halved often enough, or one without the two channels to draw from.

    Examples:
        >>> host = ConvHost(3, image_shape=(3, 32, 32), channels=(8, 16), pooled=(True, True))
        >>> host.slot_channels
        (8, 16)
    """

    @typed
    def __init__(
        self,
        kernel_size: int | Sequence[int | None] = 1,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        channels: Sequence[int] = (8, 16, 32),
        pooled: Sequence[bool] = (True, True, False),
        classes: int = 10,
        blueprints: Mapping[str, Blueprint] = CONV_BLUEPRINTS,
        drawn_channel: bool = False,
    ) -> None:
        if isinstance(kernel_size, Sequence):
            kernel_sizes = tuple(kernel_size)
            for i, each in enumerate(kernel_sizes):
                check_choice(f"kernel_size[{i}]", each, (1, 3, None))
        else:
            check_choice("kernel_size", kernel_size, (1, 3))
            kernel_sizes = (kernel_size,) * len(channels)
        for name, sizes_given in (("image_shape", image_shape), ("channels", channels)):
            for i, each in enumerate(sizes_given):
                check_integer(f"{name}[{i}]", each)
        check_integer("classes", classes)
        if len(pooled) != len(channels) or not channels:
            raise ValueError(
                "pooled must have one entry for each of at least one block in channels, got "
                f"{len(pooled)} for {len(channels)}"
            )
        if len(kernel_sizes) != len(channels):
            raise ValueError(
                "kernel_size must be one number, or have one for each block in channels, got "
                f"{len(kernel_sizes)} for {len(channels)}"
            )
        in_channels, height, width = image_shape
        halvings = 2 ** sum(pooled)
        if height % halvings or width % halvings:
            raise ValueError(
                f"image_shape must have a height and width that are multiples of {halvings}, to be "
                f"halved {sum(pooled)} times, got {image_shape}"
            )
        self.kernel_sizes, self.image_shape = kernel_sizes, image_shape
        widths, sizes = pairwise((in_channels, *channels)), (each or 3 for each in kernel_sizes)
        weights = sum(a * b * k * k for (a, b), k in zip(widths, sizes, strict=True))
        check_memory(f"channels={tuple(channels)}", 4 * weights)

        shapes = tuple(zip(kernel_sizes, channels, pooled, strict=True))
        if drawn_channel and in_channels != 2:
            raise ValueError(
                f"image_shape must have 2 channels, of which one is drawn, got {image_shape}"
            )
        network = partial(_network, in_channels, shapes, classes, drawn_channel)
        slots = [f"block{i + 1}" for i in range(len(channels))]
        super().__init__(
            network, slots, torch.zeros(1, *image_shape), blueprints, topology="convolutional"
        )


def _network(
    inputs: int,
    shapes: Sequence[tuple[int | None, int, bool]],
    classes: int,
    drawn_channel: bool,
) -> nn.Module:
    """Blocks of these kernel sizes, channels and pooling, and a classifier."""
    blocks = OrderedDict[str, nn.Module]()
    if drawn_channel:
        blocks["channel"], inputs = DrawnChannel(), 1
    for i, (size, outputs, pool) in enumerate(shapes):
        kernel = DrawnConv(inputs, outputs) if size is None else conv(inputs, outputs, size)
        norm = [nn.GroupNorm(1, outputs), nn.ReLU(), *[nn.MaxPool2d(2)] * pool]
        blocks[f"block{i + 1}"] = nn.Sequential(kernel, *norm)
        inputs = outputs
    average = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    blocks["classifier"] = nn.Sequential(*average, nn.Linear(inputs, classes))
    return nn.Sequential(blocks)
