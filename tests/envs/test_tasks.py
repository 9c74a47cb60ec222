"""Tasks: data, split, standardisation, registry."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from envs import ArrayTask, list_tasks, make_task

NAMES = ["digits", "digits_full"]


@pytest.fixture(scope="module", params=NAMES)
def task(request: pytest.FixtureRequest) -> ArrayTask:
    return make_task(request.param)


def test_shapes(task: ArrayTask):
    assert task.train.inputs.shape == (1297, 1, 8, 8)
    assert task.validation.inputs.shape == (500, 1, 8, 8)
    assert task.train.inputs.dtype == task.validation.inputs.dtype == torch.float32
    for targets, size in ((task.train.targets, 1297), (task.validation.targets, 500)):
        assert targets.shape == (size,)
        assert targets.dtype == torch.int64
        assert targets.unique().tolist() == list(range(task.host.num_classes))


def test_training_part_is_standardised(task: ArrayTask):
    assert task.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert task.train.inputs.std().item() == pytest.approx(1, abs=1e-5)
    assert task.validation.inputs.mean() != 0


def test_parts_are_disjoint_and_together_all_digits(task: ArrayTask):
    """Undo the standardisation and compare with the source, as sorted lists of images."""
    standardised = torch.cat([task.train.inputs, task.validation.inputs]).flatten(1).double()
    low, high = standardised.min(), standardised.max()
    pixels = (standardised - low) / (high - low) * 16
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
    targets = torch.cat([task.train.targets, task.validation.targets])
    mine = torch.cat([pixels.round().int(), targets.int()[:, None]], dim=1)
    data = load_digits()
    source = torch.cat([torch.tensor(data.data), torch.tensor(data.target)[:, None]], dim=1)
    assert sorted(mine.tolist()) == sorted(source.int().tolist())
    train, validation = ({tuple(x) for x in part.tolist()} for part in mine.split([1297, 500]))
    assert not train & validation


def test_split_is_fixed(task: ArrayTask):
    again = make_task(task.name)
    assert again.train.inputs.equal(task.train.inputs)
    assert again.validation.targets.equal(task.validation.targets)


def test_tasks_share_their_data():
    a, b = (make_task(name) for name in NAMES)
    assert a.train.inputs.equal(b.train.inputs)
    assert a.train.targets.equal(b.train.targets)


def test_settings(task: ArrayTask):
    assert task.name in NAMES
    assert task.host.num_classes == 10
    assert task.parameter_budget == 8 * sum(s.layout.size for s in task.host.segments)
    assert (task.host_lr, task.seed_lr, task.optimizer.momentum) == (0.05, 0.05, 0.9)
    assert (task.batches_per_epoch, task.minibatch_size) == (5, 64)
    assert task.description


def test_list_tasks():
    assert set(NAMES) <= set(list_tasks())
    assert list_tasks()[0] == "digits"
    assert len(set(list_tasks())) == len(list_tasks())


def test_list_tasks_gives_a_list_of_its_own():
    list_tasks().clear()
    assert list_tasks()


def test_unknown_task():
    with pytest.raises(ValueError, match=r"task must be one of digits, digits_full, .*got 'mnist'"):
        make_task("mnist")
