"""Arrays of all kinds as data of a task: taken, or refused by name when the task is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

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
        (
            np.array(["a", "b"] * 20),
            CLASSES,
            "train inputs must be .*: it holds <U1",
        ),
        (
            IMAGES,
            np.array([None, 1] * 20),
            "train targets must be .* got nan in example 0",
        ),
        (
            IMAGES,
            CLASSES + 0.5,
            "train targets must be .*whole numbers, got 0.5",
        ),
        (IMAGES, CLASSES + 1j, "train targets must be .*: it holds complex128"),
        (SimpleNamespace(), CLASSES, "train inputs must be .*SimpleNamespace"),
        ([[1.0], [1.0, 2.0]], CLASSES, "train inputs must be an array or tensor of numbers"),
    ],
)
def test_these_are_refused_by_name(inputs: Any, targets: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make(inputs, targets)


BYTES = (IMAGES * 40 + 128).clip(0, 255).astype("uint8")
COLOURS = np.random.default_rng(1).integers(256, size=(40, 4, 4, 3)).astype("uint8")
COLOUR_HOST = ConvHost(1, image_shape=(3, 4, 4), channels=(3,), pooled=(True,), classes=3)


@pytest.mark.parametrize(
    ("given", "host", "wanted"),
    [
        (BYTES, CONV, BYTES.astype("float32") / 255),
        (BYTES[:, 0], MODULE, BYTES.astype("float32") / 255),
        (BYTES[:, 0, :, :, None], CONV, BYTES.astype("float32") / 255),
        (COLOURS, COLOUR_HOST, COLOURS.transpose(0, 3, 1, 2).astype("float32") / 255),
        (IMAGES.astype("float64"), MODULE, IMAGES),
        (IMAGES[:, 0], CONV, IMAGES),
    ],
    ids=["bytes", "grey bytes", "grey, last", "colours, last", "double", "grey floats"],
)
def test_images_come_as_people_have_them(given: Any, host: Any, wanted: np.ndarray) -> None:
    task = make(given, host=host)
    data = task.make_population(1, 1, torch.device("cpu")).data
    both = make(wanted, host=host).make_population(1, 1, torch.device("cpu")).data
    assert data.inputs.equal(both.inputs)
    assert data.validation_inputs().equal(both.validation_inputs())
    assert data.inputs.abs().sum() > 0


WORDS = np.array(["cat", "bird", "dog"])


@pytest.mark.parametrize(
    "targets",
    [
        CLASSES.astype("float32"),
        CLASSES.astype("int8"),
        CLASSES.astype(object),
        list(CLASSES),
        torch.from_numpy(CLASSES).double(),
    ],
    ids=["floats", "bytes", "objects", "numpy integers", "doubles"],
)
def test_classes_come_as_people_have_them(targets: Any) -> None:
    task = make(targets=targets)
    assert task.train.targets.equal(make().train.targets)
    assert task.train.targets.dtype == torch.int64


@pytest.mark.parametrize("kind", [np.array, list, Series, lambda x: np.array(x, dtype=object)])
def test_words_are_classes_in_alphabetical_order(kind: Any) -> None:
    task = make(targets=kind(WORDS[CLASSES]))
    assert task.class_names == ("bird", "cat", "dog")
    assert task.train.targets.equal(make(targets=np.array([1, 0, 2])[CLASSES]).train.targets)
    again = replace(task, seed_lr=0.01)
    assert (again.class_names, again.train.targets.tolist()) == (
        task.class_names,
        task.train.targets.tolist(),
    )


def test_words_may_have_an_order_of_their_own_but_no_unknown_one() -> None:
    data: dict[str, Any] = {
        "train": (IMAGES, WORDS[CLASSES]),
        "validation": (IMAGES, WORDS[CLASSES]),
    }
    task = ArrayTask(name="mine", host=CONV, class_names=("dog", "cat", "bird"), **data)
    assert task.train.targets[:3].tolist() == [1, 2, 0]
    data["validation"] = IMAGES, ["cow"] * 40
    with pytest.raises(ValueError, match=r"validation targets .*'bird', .*got 'cow' in example 0"):
        ArrayTask(name="mine", host=CONV, **data)


class Pairs(Dataset):
    """What a data set of images gives, and a word for each."""

    def __init__(self, targets: Any = CLASSES) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> tuple[np.ndarray, Any]:
        return IMAGES[i], self.targets[i]


@pytest.mark.parametrize(
    "data",
    [
        Pairs(),
        Pairs(WORDS[[1, 0, 2]][CLASSES]),
        Subset(Pairs(), range(40)),
        ConcatDataset([Subset(Pairs(), range(25)), Subset(Pairs(), range(25, 40))]),
    ],
    ids=["data set", "words", "subset", "several"],
)
def test_a_data_set_is_its_examples(data: Dataset) -> None:
    task = ArrayTask(name="mine", host=CONV, train=data, validation=10)
    assert task.train.inputs.equal(make().train.inputs)
    assert task.train.targets.equal(make().train.targets)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        yield from Pairs()


class Alone(Pairs):
    def __getitem__(self, i: int) -> Any:
        return IMAGES[i]


class Odd(Pairs):
    def __getitem__(self, i: int) -> Any:
        return SimpleNamespace(), 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Stream(), "train must be inputs and targets, .*data set .* have numbers, got Stream"),
        (Alone(), "train must have examples that are pairs"),
        (Odd(), "train must have examples of tensors, arrays or numbers: .*SimpleNamespace"),
    ],
)
def test_a_data_set_without_pairs_of_numbers_is_refused(data: Dataset, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        ArrayTask(name="mine", host=CONV, train=data, validation=10)


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
