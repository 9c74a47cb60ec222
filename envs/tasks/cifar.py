"""CIFAR-10 (Krizhevsky 2009) from the files of its binary version, which are only read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from envs.checks import check_integer
from envs.hosts import ConvHost
from envs.tasks.arrays import ArrayTask
from envs.tasks.examples import Examples, hold_out

FOLDER_VARIABLE = "CIFAR10"
"""Environment variable that names the folder, where nothing else does."""

DEFAULT_FOLDER = "data/cifar-10-batches-bin"

TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"

_SHAPE = (3, 32, 32)
_BYTES = 1 + 3 * 32 * 32
"""Of an image: its class, then the pixels, plane by plane and row by row."""


def cifar10(
    folder: str | Path | None = None,
    width: int = 8,
    train_size: int = 10_000,
    images_a_file: int = 10_000,
) -> ArrayTask:
    """32×32 colour images of ten classes, and a host with 3×3 kernels.

    Nothing is downloaded: fetch ``cifar-10-binary.tar.gz`` and unpack it. 500 images of the test
    file are for validation.

    Args:
        folder: with ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``; default:
            the environment variable ``CIFAR10``, or ``data/cifar-10-batches-bin`` if it isn't set.
        width: channels of the host's first block; the second and third have two and four times as
            many.
        train_size: training images, the first ones; all 50,000 take 0.6 GB.
        images_a_file: of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one has another size, or a class that doesn't exist.

    Examples:
        >>> task = cifar10("data/cifar-10-batches-bin", width=32)  # doctest: +SKIP
    """
    check_integer("width", width)
    path = Path(os.environ.get(FOLDER_VARIABLE, DEFAULT_FOLDER) if folder is None else folder)
    _check_files(path, images_a_file)
    check_integer("train_size", train_size, most=len(TRAIN_FILES) * images_a_file)
    wanted = -(-train_size // images_a_file)
    parts = [read_images(path / name) for name in TRAIN_FILES[:wanted]]
    inputs, targets = (torch.cat(each)[:train_size] for each in zip(*parts, strict=True))
    mean, std = inputs.mean((0, 2, 3), keepdim=True), inputs.std((0, 2, 3), keepdim=True)
    test = read_images(path / TEST_FILE)
    validation, _ = hold_out(test, min(500, len(test.targets)))
    return ArrayTask(
        name="cifar10",
        description="32×32 colour images in ten classes, host with 3×3 kernels",
        host=ConvHost(
            3, _SHAPE, (width, 2 * width, 4 * width), pooled=(True, True, True), classes=10
        ),
        train=((inputs - mean) / std, targets),
        validation=((validation.inputs - mean) / std, validation.targets),
    )


def read_images(file: Path) -> Examples:
    """Images in [0, 1], float32 ``[M, 3, 32, 32]``, and classes of a file of the right size.

    Raises:
        ValueError: if a class isn't from 0 to 9.
    """
    records = torch.from_numpy(np.fromfile(file, np.uint8)).view(-1, _BYTES)
    targets = records[:, 0].long()
    bad = (targets > 9).nonzero()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{file} must hold classes from 0 to 9, got {int(targets[first])} for image {first}; "
            "is it the binary version for ten classes?"
        )
    return Examples(records[:, 1:].view(-1, *_SHAPE).float() / 255, targets)


def _check_files(folder: Path, images: int) -> None:
    files = [folder / name for name in (*TRAIN_FILES, TEST_FILE)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} must hold the binary version of CIFAR-10, {TRAIN_FILES[0]} to "
            f"{TRAIN_FILES[-1]} and {TEST_FILE}; missing: {', '.join(missing)}. Name its folder by "
            f"the environment variable {FOLDER_VARIABLE}, or unpack cifar-10-binary.tar.gz in data/"
        )
    for file in files:
        size, expected = file.stat().st_size, images * _BYTES
        if size != expected:
            problem = "is cut off" if size < expected else "is too long"
            raise ValueError(
                f"{file} {problem}: expected {expected:,} bytes, {images:,} images of {_BYTES:,}, "
                f"got {size:,}; unpack it again"
            )
