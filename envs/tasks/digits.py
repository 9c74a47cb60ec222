"""The 1,797 real 8×8 digits that scikit-learn ships, and three hosts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from envs.actions import Op
from envs.hosts import ConvHost
from envs.reward import RewardConfig
from envs.tasks.arrays import ArrayTask
from envs.tasks.examples import Examples, hold_out

VALIDATION_SIZE = 500

_DEAR = RewardConfig(
    rent=0.05,
    intervention={**RewardConfig().intervention, Op.GERMINATE: 1.2},
    bonus=0.0,
    hindsight=0.0,
    upkeep=0.003,
)
"""Prices at which planting has to be decided host by host. A seed that contributes, or helps
another one, isn't paid for that: a host comes to lean on seeds that it could do without."""


def digits() -> ArrayTask:
    """1×1 kernels only: a host that can't see shape until it grows spatial kernels."""
    return _digits("digits", kernel_size=1, description="8×8 digits, host with 1×1 kernels only")


def digits_full() -> ArrayTask:
    """3×3 kernels: the control. The right policy is to leave the host alone.

    The reward pays neither for contributing fossils nor for helpers. This host could do without
    seeds, but it comes to lean on those that it has: they contribute, and help each other, and its
    accuracy is no better for it.
    """
    return _digits(
        "digits_full",
        kernel_size=3,
        description="8×8 digits, host with 3×3 kernels",
        reward=RewardConfig(bonus=0.0, hindsight=0.0),
    )


def digits_varied(kernel_size: Sequence[int | None] = (None, 1, None)) -> ArrayTask:
    """1×1 or 3×3 kernels in the first and in the last block, drawn in every episode.

    The agent isn't told which of the four variants it has, but how well a host does after the ten
    epochs that it learns alone. A seed with spatial kernels near the input is worth much where the
    host has none in its first block, and costs more than it brings where it has. So planting and
    size cost far more than in ``digits``: always planting earns hardly more than always waiting,
    and nearly all that is earned beyond that is earned by watching.

    Args:
        kernel_size: of every block, 1, 3 or None, which is drawn: ``(1, 1, 3)`` is one variant.
    """
    return _digits(
        "digits_varied",
        kernel_size=kernel_size,
        description="8×8 digits, host with 1×1 or 3×3 kernels, drawn block by block",
        reward=_DEAR,
        warm_up=10,
    )


def digits_mixed(kernel_size: int | None = None, channel: int | None = None) -> ArrayTask:
    """Two kinds of pictures and two kinds of hosts, drawn in every episode.

    A network sees the digits themselves, told apart by their **shape**, or pictures in which one or
    two bright quarters tell the digit by their **place**, in noise. Its first block has 1×1 or 3×3
    kernels. Shape asks for spatial kernels near the input, where the host has none there, and for
    nothing where it has; place asks for them further up, where a pixel is a quarter. The agent
    isn't told which of the four variants it has, but sees how well a host does after the ten epochs
    that it learns alone, and what the seeds contribute that it tries.

    Args:
        kernel_size: of the first block, 1 or 3; default: drawn.
        channel: 0 for shape, 1 for place; default: drawn.
    """
    shapes, classes = _load()
    kinds = [_split(shapes, classes), _split(_places(classes), classes)]
    first, second = kinds if channel is None else [kinds[channel]] * 2
    train, validation = (
        Examples(torch.cat([one.inputs, other.inputs], 1), one.targets)
        for one, other in zip(first, second, strict=True)
    )
    return ArrayTask(
        name="digits_mixed",
        description="8×8 digits, told apart by shape or place, host with or without 3×3 kernels",
        host=ConvHost((kernel_size, 1, 1), image_shape=(2, 8, 8), drawn_channel=True),
        train=train,
        validation=validation,
        reward=_DEAR,
        warm_up=10,
    )


_QUARTERS = [
    (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0),
    (0, 0, 1, 1), (1, 0, 1, 0), (0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0),
]  # fmt: skip
"""By class: is the upper left, upper right, lower left and lower right quarter bright?"""


def _places(classes: Tensor) -> Tensor:
    """The bright quarters of classes ``[M]``, 1 in noise of as much: ``[M, 1, 8, 8]``."""
    quarters = torch.tensor(_QUARTERS).float()[classes].view(-1, 1, 2, 2)
    noise = torch.randn(len(classes), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return quarters.repeat_interleave(4, 2).repeat_interleave(4, 3) + noise


def _load() -> tuple[Tensor, Tensor]:
    """The digits ``[M, 1, 8, 8]``, and which ones they are, ``[M]``."""
    data = load_digits()
    return torch.from_numpy(data.images).float().unsqueeze(1), torch.from_numpy(data.target)


def _split(pictures: Tensor, classes: Tensor) -> list[Examples]:
    """Training and validation part, brought to mean 0 and standard deviation 1 by the former."""
    validation, train = hold_out(Examples(pictures, classes), VALIDATION_SIZE)
    mean, std = train.inputs.mean(), train.inputs.std()
    return [Examples((part.inputs - mean) / std, part.targets) for part in (train, validation)]


def _digits(
    name: str,
    kernel_size: int | Sequence[int | None],
    description: str,
    **options: Any,
) -> ArrayTask:
    train, validation = _split(*_load())
    return ArrayTask(
        name=name,
        description=description,
        host=ConvHost(kernel_size),
        train=train,
        validation=validation,
        **options,
    )
