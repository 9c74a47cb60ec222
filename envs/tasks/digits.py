"""The 1,797 real 8×8 digits that scikit-learn ships, and three hosts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits

from envs.actions import Op
from envs.hosts import ConvHost
from envs.reward import RewardConfig
from envs.tasks.arrays import ArrayTask
from envs.tasks.examples import Examples, hold_out

VALIDATION_SIZE = 500


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
    size cost far more than in ``digits``: always planting earns no more than always waiting, and
    all that is earned beyond that is earned by watching. A seed that contributes, or helps another
    one, isn't paid for that: a host comes to lean on seeds that it could do without.

    Args:
        kernel_size: of every block, 1, 3 or None, which is drawn: ``(1, 1, 3)`` is one variant.
    """
    return _digits(
        "digits_varied",
        kernel_size=kernel_size,
        description="8×8 digits, host with 1×1 or 3×3 kernels, drawn block by block",
        reward=RewardConfig(
            rent=0.05,
            intervention={**RewardConfig().intervention, Op.GERMINATE: 1.2},
            bonus=0.0,
            hindsight=0.0,
            upkeep=0.003,
        ),
        warm_up=10,
    )


def _digits(
    name: str,
    kernel_size: int | Sequence[int | None],
    description: str,
    **options: Any,
) -> ArrayTask:
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1)
    validation, train = hold_out(Examples(images, torch.from_numpy(data.target)), VALIDATION_SIZE)
    mean, std = train.inputs.mean(), train.inputs.std()
    return ArrayTask(
        name=name,
        description=description,
        host=ConvHost(kernel_size),
        train=((train.inputs - mean) / std, train.targets),
        validation=((validation.inputs - mean) / std, validation.targets),
        **options,
    )
