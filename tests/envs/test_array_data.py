"""Arrays of all kinds as data of a task: taken, or refused by name when the task is made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from envs import ArrayTask, ConvHost, ModuleHost, TextHost

CONV = ConvHost(kernel_size=1, image_shape=(1, 4, 4), channels=(3,), pooled=(True,), classes=3)
MODULE = ModuleHost(
    lambda: nn.Sequential(
        nn.Conv2d(1, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    ),
    ["0"],
    torch.zeros(1, 1, 4, 4),
)
IMAGES = np.random.default_rng(0).normal(size=(40, 1, 4, 4)).astype("float32")
CLASSES = np.arange(40) % 3
HOSTS = {"conv": CONV, "module": MODULE}


def make(inputs: Any = IMAGES, targets: Any = CLASSES, host: Any = CONV) -> ArrayTask:
    return ArrayTask(name="mine", host=host, train=(inputs, targets), validation=10)


class Series:
    """What NumPy makes an array of, as pandas' series and frames are."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)


def read_only(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


@pytest.mark.parametrize(
    "kind",
    [
        torch.from_numpy,
        Series,
        np.ndarray.tolist,
        read_only,
        lambda values: values[::-1][::-1],
        lambda values: np.repeat(values, 2, axis=0)[::2],
        lambda values: values.astype(values.dtype.newbyteorder(">")),
        lambda values: values.astype(values.dtype.newbyteorder("<")),
    ],
    ids=["tensor", "series", "list", "read-only", "flipped", "strided", "big", "little"],
)
def test_these_are_taken_as_what_they_are(kind: Any) -> None:
    task, wanted = make(kind(IMAGES), kind(CLASSES)), make()
    for mine, theirs in ((task.train, wanted.train), (task.validation, wanted.validation)):
        assert mine.inputs.equal(theirs.inputs)
        assert mine.targets.equal(theirs.targets)
    assert (task.train.inputs.dtype, task.train.targets.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("inputs", "targets", "says"),
    [
        (IMAGES, scipy.sparse.csr_array(CLASSES[:, None]), "train targets must be dense, got csr"),
        (torch.from_numpy(IMAGES).to_sparse(), CLASSES, r"train inputs must be .*to_dense\(\)"),
        (IMAGES, np.array(["a", "b"] * 20), "train targets must be .*: it holds <U1; categories"),
        (IMAGES, np.array([None, 1] * 20), "train targets must be .*: it holds object"),
        (IMAGES, CLASSES + 1j, "train targets must be .*: it holds complex128"),
        (SimpleNamespace(), CLASSES, "train inputs must be .*: it holds object"),
        ([[1.0], [1.0, 2.0]], CLASSES, "train inputs must be an array or tensor of numbers"),
    ],
)
def test_these_are_refused_by_name(inputs: Any, targets: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make(inputs, targets)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("shape", ["one-hot", "column"])
def test_targets_of_another_shape_are_refused_when_the_task_is_made(
    host: str, split: str, shape: str
) -> None:
    wrong = np.eye(3, dtype=int)[CLASSES] if shape == "one-hot" else CLASSES[:, None]
    data: dict[str, Any] = {"train": (IMAGES, CLASSES), "validation": (IMAGES, CLASSES)}
    data[split] = (IMAGES, wrong)
    with pytest.raises(ValueError, match=rf"{split} targets must be of shape \[M\], .*argmax"):
        ArrayTask(name="mine", host=HOSTS[host], **data)


def test_a_host_that_answers_at_each_position_wants_as_many_classes() -> None:
    tokens = np.arange(200).reshape(40, 5) % 7
    host = TextHost(tokens=7, channels=(8, 8))
    make(tokens, tokens, host)
    with pytest.raises(ValueError, match=r"must be of shape \[M, 5\], .* got \[40\]"):
        make(tokens, tokens[:, 0], host)
