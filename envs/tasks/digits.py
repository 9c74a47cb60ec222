"""The 1,797 real 8×8 digits that scikit-learn ships, and two hosts for them."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from envs.hosts import ConvHost
from envs.tasks.base import DataTask

VALIDATION_SIZE = 500


def digits() -> DataTask:
    """1×1 kernels only: a host that can't see shape until it grows spatial kernels."""
    return _digits("digits", kernel_size=1, description="8×8 digits, host with 1×1 kernels only")


def digits_full() -> DataTask:
    """3×3 kernels: the control. The right policy is to leave the host alone."""
    return _digits("digits_full", kernel_size=3, description="8×8 digits, host with 3×3 kernels")


def _digits(name: str, kernel_size: int, description: str) -> DataTask:
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1)
    targets = torch.from_numpy(data.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, targets = images[order], targets[order]
    validation, train = slice(VALIDATION_SIZE), slice(VALIDATION_SIZE, None)
    images = (images - images[train].mean()) / images[train].std()
    host = ConvHost(kernel_size)
    return DataTask(
        name=name,
        description=description,
        topology="convolutional",
        num_slots=len(host.slot_channels),
        max_epochs=50,
        host=host,
        train_inputs=images[train],
        train_targets=targets[train],
        validation_inputs=images[validation],
        validation_targets=targets[validation],
        num_classes=10,
        host_lr=0.05,
        seed_lr=0.05,
        momentum=0.9,
        batches_per_epoch=5,
        minibatch_size=64,
        parameter_budget=8 * sum(segment.layout.size for segment in host.segments),
        loss_limit=10.0,
    )
