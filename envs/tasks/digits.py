"""The 1,797 real 8×8 digits that scikit-learn ships, and two hosts for them."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from envs.hosts import ConvHost
from envs.reward import RewardConfig
from envs.tasks.arrays import ArrayTask, Examples, hold_out

VALIDATION_SIZE = 500


def digits() -> ArrayTask:
    """1×1 kernels only: a host that can't see shape until it grows spatial kernels."""
    return _digits("digits", kernel_size=1, description="8×8 digits, host with 1×1 kernels only")


def digits_full() -> ArrayTask:
    """3×3 kernels: the control. The right policy is to leave the host alone.

    Neither contributing fossils nor helpers are paid for: a host that could do without its seeds
    comes to lean on them, so they contribute, and help each other, where nothing is gained.
    """
    return _digits(
        "digits_full",
        kernel_size=3,
        description="8×8 digits, host with 3×3 kernels",
        reward=RewardConfig(bonus=0.0, hindsight=0.0),
    )


def _digits(
    name: str, kernel_size: int, description: str, reward: RewardConfig | None = None
) -> ArrayTask:
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1)
    validation, train = hold_out(Examples(images, torch.from_numpy(data.target)), VALIDATION_SIZE)
    mean, std = train.inputs.mean(), train.inputs.std()
    return ArrayTask(
        name=name,
        description=description,
        reward=reward or RewardConfig(),
        host=ConvHost(kernel_size),
        train=((train.inputs - mean) / std, train.targets),
        validation=((validation.inputs - mean) / std, validation.targets),
    )
