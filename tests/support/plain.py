"""The same networks as ordinary torch modules, one at a time: the yardstick and the reference.

:func:`plain_network` copies one row of a population into a :class:`PlainNetwork`. The throughput
benchmark trains such networks in a plain loop, and the tests hold the batched layers against
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.actions import BLUEPRINTS, Algorithm, Stage
from envs.hosts import ConvHost
from envs.populations import SlotInputs
from envs.populations.trained import TrainedPopulation


class PlainBlock(nn.Module):
    """Convolution, group norm, ReLU, max pooling."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, pool: bool) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.norm = nn.GroupNorm(1, out_channels)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.conv(x))))


class PlainNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, h: Tensor) -> Tensor:
        return h + torch.tanh(self.mix)[:, None, None] * (self.norm(h) - h)


class PlainAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // 4, 1)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, h: Tensor) -> Tensor:
        factor = 2 * torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3))))))
        return h * factor[:, :, None, None]


class PlainResidual(nn.Module):
    """h + layers(h)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _conv(channels: int, out_channels: int, kernel_size: int, groups: int = 1) -> nn.Conv2d:
    padding = kernel_size // 2
    return nn.Conv2d(
        channels, out_channels, kernel_size, padding=padding, groups=groups, bias=False
    )


def plain_seed(name: str, channels: int) -> nn.Module:
    """A blueprint as a torch module; its parameters are in the batched blueprint's order."""

    def norm_relu(size: int) -> tuple[nn.Module, nn.Module]:
        return nn.GroupNorm(1, size), nn.ReLU()

    heavy = (_conv(channels, channels, 3), *norm_relu(channels))
    if name == "norm":
        return PlainNorm(channels)
    if name == "attention":
        return PlainAttention(channels)
    if name == "conv_light":
        return PlainResidual(*heavy)
    if name == "conv_heavy":
        return PlainResidual(*heavy, _conv(channels, channels, 3), *norm_relu(channels))
    if name == "conv_small":
        return PlainResidual(*norm_relu(channels), _conv(channels, channels, 1))
    if name == "depthwise":
        depthwise = _conv(channels, channels, 3, groups=channels)
        return PlainResidual(depthwise, _conv(channels, channels, 1), *norm_relu(channels))
    if name == "bottleneck":
        narrow = max(channels // 4, 8)
        return PlainResidual(
            _conv(channels, narrow, 1),
            *norm_relu(narrow),
            _conv(narrow, narrow, 3),
            *norm_relu(narrow),
            _conv(narrow, channels, 1),
        )
    raise ValueError(f"no convolutional blueprint is called {name!r}")


class PlainSlot(nn.Module):
    """A seed and how it acts on the features at its slot.

    Args:
        seed: a module.
        channels: of the features.
        stage: of the seed.
        algorithm: how it is mixed in.
        alpha: how much.
    """

    def __init__(
        self, seed: nn.Module, channels: int, stage: Stage, algorithm: Algorithm, alpha: float
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, 1)
        self.seed = seed
        self.stage = stage
        self.algorithm = algorithm
        self.alpha = alpha

    def openness(self, h: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(h.mean((2, 3))))[:, :, None, None]

    def forward(self, h: Tensor) -> Tensor:
        if self.stage is Stage.TRAINING:
            seed = self.seed(h.detach())
            return h + (seed - seed.detach())
        if not Stage.BLENDING <= self.stage <= Stage.FOSSILIZED:
            return h
        alpha: float | Tensor = self.alpha
        if self.algorithm is Algorithm.MULTIPLY:
            return h * (1 + alpha * torch.tanh(self.seed(h) - h))
        if self.algorithm is Algorithm.GATE:
            alpha = alpha * self.openness(h)
        return h + alpha * (self.seed(h) - h)


Slot = TypeVar("Slot", bound=PlainSlot)


class PlainNetwork(nn.Module):
    """A convolutional host with its slots.

    Args:
        kernel_sizes: 1 or 3, of every block.
        slots: what sits in each slot, None for nothing.
    """

    def __init__(self, kernel_sizes: Sequence[int], slots: list[PlainSlot | None]) -> None:
        super().__init__()
        channels = (1, 8, 16, 32)
        self.blocks = nn.ModuleList(
            PlainBlock(channels[i], channels[i + 1], kernel_sizes[i], pool=i < 2) for i in range(3)
        )
        self.classifier = nn.Linear(channels[-1], 10)
        self.slots = nn.ModuleList(slot or nn.Identity() for slot in slots)

    def forward(self, x: Tensor, without: Collection[int] = ()) -> Tensor:
        """Logits of images ``[B, 1, H, W]``, leaving out the seeds of the slots ``without``."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < len(self.slots) and i not in without:
                x = self.slots[i](x)
        return self.classifier(x.mean((2, 3)))

    def host_parameters(self) -> list[nn.Parameter]:
        return [*self.blocks.parameters(), *self.classifier.parameters()]


def plain_network(population: TrainedPopulation, growth: SlotInputs, row: int) -> PlainNetwork:
    """One row of a population of :class:`~envs.ConvHost`, with the same weights."""
    host = population.host
    assert isinstance(host, ConvHost)
    slots = plain_slots(population, growth, row, PlainSlot, plain_seed)
    kernel_sizes, used = drawn_kernels(host, population.host_params[row])
    network = PlainNetwork(kernel_sizes, slots).to(population.params.dtype)
    load_flat(network.host_parameters(), population.host_params[row][used])
    return network


def plain_slots(
    population: TrainedPopulation,
    growth: SlotInputs,
    row: int,
    make_slot: Callable[..., Slot],
    make_seed: Callable[[str, int], nn.Module],
) -> list[Slot | None]:
    """The slots of one row with the same weights, None where nothing is planted.

    Args:
        population, growth, row: as for :func:`plain_network`.
        make_slot: :class:`PlainSlot`, or one derived from it.
        make_seed: makes a module of a blueprint's name and channels.
    """
    slots: list[Slot | None] = []
    for slot in range(population.num_slots):
        blueprint = int(growth.blueprint[row, slot])
        if blueprint < 0:
            slots.append(None)
            continue
        channels = population.host.slot_channels[slot]
        plain = make_slot(
            make_seed(BLUEPRINTS[blueprint], channels),
            channels,
            Stage(int(growth.stage[row, slot])),
            Algorithm(int(growth.algorithm[row, slot])),
            float(growth.alpha[row, slot]),
        )
        plain.to(population.params.dtype)
        load_flat(list(plain.parameters()), population.seed_params[slot][row])
        slots.append(plain)
    return slots


def drawn_kernels(host: ConvHost, params: Tensor) -> tuple[list[int], Tensor]:
    """Kernel sizes of one host's blocks, and which of its parameters ``[P]`` they leave in use."""
    sizes, used = [], torch.ones(len(params), dtype=torch.bool)
    start = 0
    for segment, size in zip(host.segments, (*host.kernel_sizes, 1), strict=True):
        for name, shape in segment.shapes.items():
            stop = start + math.prod(shape)
            here, start = slice(start, stop), stop
            if name.endswith("coin"):
                size, used[here] = 3 if params[here] > 0 else 1, False
            elif "small" in name or "large" in name:
                used[here] = ("large" in name) == (size == 3)
        sizes.append(size)
    return sizes[:-1], used


def load_flat(parameters: list[nn.Parameter], flat: Tensor) -> None:
    """Fill parameters, in order, from the front of a flat vector."""
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.copy_(flat[start:stop].view_as(parameter))
            start = stop
