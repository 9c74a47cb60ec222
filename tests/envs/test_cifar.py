"""CIFAR-10's files, small ones that are made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from envs import MorphogenesisEnv, make_task
from envs.tasks.cifar import TEST_FILE, TRAIN_FILES, cifar10

IMAGES = 30
BYTES = 3073


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Random images; the class is the image's number in its file, modulo ten."""
    for number, name in enumerate((*TRAIN_FILES, TEST_FILE)):
        records = np.random.default_rng(number).integers(0, 256, (IMAGES, BYTES), np.uint8)
        records[:, 0] = np.arange(IMAGES) % 10
        records.tofile(tmp_path / name)
    return tmp_path


def test_images_are_those_of_the_files(folder: Path) -> None:
    task = cifar10(folder, train_size=70, images_a_file=IMAGES)
    inputs, targets = task.train
    assert inputs.shape == (70, 3, 32, 32)
    assert targets.tolist() == [i % 30 % 10 for i in range(70)]
    stored = np.fromfile(folder / TRAIN_FILES[2], np.uint8).reshape(IMAGES, BYTES)
    pixels = inputs.std((0, 2, 3), keepdim=True), inputs.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(pixels, (torch.ones(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)))
    # One plane after the other, each row by row, up to scale and shift of its colour.
    for colour, row, column in ((0, 0, 1), (1, 0, 0), (2, 31, 31)):
        mine = inputs[60:, colour, row, column].double()
        theirs = stored[:10, 1 + colour * 1024 + row * 32 + column].astype(float)
        assert np.corrcoef(mine.numpy(), theirs)[0, 1] == pytest.approx(1)


def test_validation_images_are_of_the_test_file(folder: Path) -> None:
    task = cifar10(folder, train_size=IMAGES, images_a_file=IMAGES)
    assert len(task.validation.targets) == IMAGES
    stored = np.fromfile(folder / TEST_FILE, np.uint8).reshape(IMAGES, BYTES)
    red = task.validation.inputs[:, 0].double().sum((1, 2)).argsort()
    wanted = stored[:, 1:1025].sum(1, dtype=np.int64).argsort()
    assert task.validation.targets[red].tolist() == (wanted % 10).tolist()


def test_it_is_grown(folder: Path) -> None:
    task = cifar10(folder, width=4, train_size=40, images_a_file=IMAGES)
    assert task.host.slot_channels == (4, 8, 16)
    env = MorphogenesisEnv(task, num_envs=2, max_epochs=2, batches_per_epoch=1, minibatch_size=8)
    assert env.rollout(2)["next", "reward"].isfinite().all()


def test_the_folder_is_named_by_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10", str(folder))
    with pytest.raises(ValueError, match=f"{folder}/data_batch_1.bin is cut off"):
        make_task("cifar10")  # 30 images a file, not 10,000
    monkeypatch.delenv("CIFAR10")
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match="data/cifar-10-batches-bin must hold"):
        make_task("cifar10")


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: data_batch_2.bin, test_batch.bin\."):
        cifar10(folder, images_a_file=IMAGES)


@pytest.mark.parametrize(("change", "says"), [(-BYTES, "is cut off"), (1, "is too long")])
def test_files_of_another_size_are_named(folder: Path, change: int, says: str) -> None:
    file = folder / "data_batch_3.bin"
    content = file.read_bytes()
    file.write_bytes(content[:change] if change < 0 else content + b"\0")
    found = f"expected 92,190 bytes, 30 images of 3,073, got {92190 + change:,}"
    with pytest.raises(ValueError, match=f"data_batch_3.bin {says}: {found}"):
        cifar10(folder, train_size=1, images_a_file=IMAGES)


def test_a_class_that_does_not_exist_is_named(folder: Path) -> None:
    file = folder / TEST_FILE
    records = np.fromfile(file, np.uint8).reshape(IMAGES, BYTES)
    records[7, 0] = 44
    records.tofile(file)
    with pytest.raises(ValueError, match=r"test_batch.bin must hold classes .* got 44 for image 7"):
        cifar10(folder, train_size=30, images_a_file=IMAGES)


@pytest.mark.parametrize("options", [{"width": 0}, {"train_size": 151}])
def test_bad_options_are_named(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        cifar10(folder, images_a_file=IMAGES, **options)
