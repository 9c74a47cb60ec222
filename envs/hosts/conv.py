"""Convolutional hosts: blocks of convolution, group norm, ReLU and pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.layers import (
    Conv3x3,
    DrawnConv,
    GlobalAverage,
    Linear,
    Norm,
    PointwiseConv,
    PointwiseStem,
    Reshape,
)
from envs.batched.programs import Layer, Program
from envs.blueprints import CONV_BLUEPRINTS, Blueprint
from envs.blueprints.base import Segment
from envs.checks import check_choice, check_integer
from envs.networks.modules import conv, fill


class ConvBlock(Program):
    """Convolution without bias, group norm, 2×2 max pooling where asked for, ReLU.

    Args:
        in_channels: channels of its input.
        out_channels: channels of its output.
        kernel_size: 1 or 3; None: every network draws one of them.
        pool: halve height and width.
        image_size: set for the first block of a host, which reshapes flat examples.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | None,
        pool: bool,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        conv = {1: PointwiseConv, 3: Conv3x3, None: DrawnConv}[kernel_size]
        super().__init__(
            *([] if image_size is None else [Reshape(in_channels, *image_size)]),
            conv("conv", in_channels, out_channels),
            Norm("norm", out_channels, relu=True, pool=pool),
        )


def window_extremes(images: Tensor) -> Tensor:
    """Largest and smallest pixel of every 2×2 window, mean and variance of the image.

    Args:
        images: ``[M, 1, H, W]``, H and W even.

    Returns:
        ``[M, H·W/2 + 2]``.
    """
    largest = F.max_pool2d(images, 2).flatten(1)
    smallest = -F.max_pool2d(-images, 2).flatten(1)
    pixels = images.flatten(1)
    mean, variance = pixels.mean(1, keepdim=True), pixels.var(1, correction=0, keepdim=True)
    return torch.cat([largest, smallest, mean, variance], dim=1)


class Classifier(Program):
    """Global average and a linear layer: the logits ``[n, classes, B]``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(GlobalAverage(), Linear("linear", channels, classes))


class ConvHost:
    """Blocks of convolution with a slot after each, then a linear classifier.

    Args:
        kernel_size: 1 or 3, of every convolution; or one for each block, where None stands for one
            of the two that every network draws with its parameters, as likely as the other.
        image_shape: channels, height and width of the input.
        channels: output channels of the blocks.
        pooled: for every block, does 2×2 max pooling follow?
        classes: number of classes.
        blueprints: what can be planted, by name.

    Raises:
        TypeError: if a size isn't an integer.
        ValueError: on another kernel size, a size below 1, lists of different lengths, or an image
            that can't be halved often enough.

    Examples:
        >>> host = ConvHost(3, image_shape=(3, 32, 32), channels=(8, 16), pooled=(True, True))
        >>> host.slot_channels
        (8, 16)
    """

    topology = "convolutional"
    channels_last = False
    pool: Layer = GlobalAverage()

    def __init__(
        self,
        kernel_size: int | Sequence[int | None] = 1,
        image_shape: tuple[int, int, int] = (1, 8, 8),
        channels: Sequence[int] = (8, 16, 32),
        pooled: Sequence[bool] = (True, True, False),
        classes: int = 10,
        blueprints: Mapping[str, Blueprint] = CONV_BLUEPRINTS,
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
        self.num_classes, self.blueprints = classes, blueprints
        self.closed_form_stem = kernel_sizes[0] == 1 and in_channels == 1 and pooled[0]
        self.slot_channels: Sequence[int] = tuple(channels)
        self.pooled = tuple(pooled)
        segments: list[Segment] = []
        sizes = []
        blocks = zip(channels, pooled, kernel_sizes, strict=True)
        for i, (out_channels, pool, kernel) in enumerate(blocks):
            if i == 0 and self.closed_form_stem:
                segments.append(Program(PointwiseStem(out_channels, height // 2, width // 2)))
                sizes.append(out_channels * height * width // 4)
            else:
                size = (height, width) if i == 0 else None
                segments.append(ConvBlock(in_channels, out_channels, kernel, pool, size))
                patch = in_channels * (1 if kernel == 1 else 9)
                sizes.append(max(out_channels, patch) * height * width)
            in_channels, height, width = out_channels, height >> pool, width >> pool
        segments.append(Classifier(in_channels, classes))
        self.segments: Sequence[Segment] = tuple(segments)
        self.activation_size = max(sizes)

    def modules(self, params: Sequence[Tensor]) -> list[nn.Module]:
        """One network's segments as ordinary modules, with the kernels that it has drawn."""
        made: list[nn.Module] = []
        inputs = self.image_shape[0]
        blocks = zip(self.segments, params, self.slot_channels, self.pooled, strict=False)
        for i, (segment, flat, outputs, pool) in enumerate(blocks):
            named = {n: x[0] for n, x in segment.layout.unflatten(flat[None]).items()}
            size = self.kernel_sizes[i] or (3 if named.pop("conv_coin") > 0 else 1)
            if self.kernel_sizes[i] is None:
                named = {"conv": named[f"conv_{size}x{size}"]} | {
                    name: value for name, value in named.items() if name.startswith("norm")
                }
            layers = [conv(inputs, outputs, size), nn.GroupNorm(1, outputs), nn.ReLU()]
            block = nn.Sequential(*layers, *[nn.MaxPool2d(2)] * pool)
            made.append(fill(block.to(flat.dtype), named.values()))
            inputs = outputs
        head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, self.num_classes)
        )
        named = self.segments[-1].layout.unflatten(params[-1][None])
        return [*made, fill(head.to(params[-1].dtype), named.values())]

    def prepare(self, inputs: Tensor) -> Tensor:
        """Make of images ``[M, C, H, W]`` what the first segment takes: ``[M, features]``."""
        if tuple(inputs.shape[1:]) != self.image_shape or not inputs.is_floating_point():
            channels, height, width = self.image_shape
            raise ValueError(
                f"images must be floats of shape [M, {channels}, {height}, {width}], got "
                f"{inputs.dtype} of shape {list(inputs.shape)}"
            )
        return window_extremes(inputs) if self.closed_form_stem else inputs.flatten(1)
