"""Tasks: data, split, standardisation; from arrays; by name."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from torchrl.envs import check_env_specs

from envs import (
    ArrayTask,
    ConvHost,
    MorphogenesisEnv,
    RewardConfig,
    list_tasks,
    make_task,
    register_task,
)
from envs.actions import Op
from envs.networks.blueprints import CONV_BLUEPRINTS
from envs.registration import registered_only
from envs.tasks.digits import digits_mixed
from tests.support.environments import act
from tests.support.plain import drawn_kernels

NAMES = ["digits", "digits_full", "digits_varied"]


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
    first, *others = (make_task(name) for name in NAMES)
    for other in others:
        assert other.train.inputs.equal(first.train.inputs)
        assert other.train.targets.equal(first.train.targets)


def test_settings(task: ArrayTask):
    assert task.name in NAMES
    assert task.host.num_classes == 10
    assert task.parameter_budget == 8 * sum(s.size for s in task.host.segments)
    assert (task.host_lr, task.seed_lr, task.optimizer.momentum) == (0.05, 0.05, 0.9)
    assert (task.batches_per_epoch, task.minibatch_size) == (5, 64)
    assert task.loss_limit == 10
    assert task.description


def test_every_episode_of_the_varied_digits_draws_its_kernels():
    env = MorphogenesisEnv("digits_varied", num_envs=40, max_epochs=1, batches_per_epoch=1, seed=3)
    drawn = []
    state = env.reset()
    for _ in range(2):
        hosts = env.population.host_params
        drawn.append([tuple(drawn_kernels(env.population.host, host)[0]) for host in hosts])
        _, state = env.step_and_maybe_reset(env.rand_action(state))
    kinds = set(product((1, 3), (1,), (1, 3)))
    assert all(set(variants) == kinds for variants in drawn)
    assert drawn[0] != drawn[1]


def test_mixed_digits_have_a_shape_and_a_place():
    """Each class has bright quarters of its own."""
    mixed, plain = make_task("digits_mixed"), make_task("digits")
    for part in ("train", "validation"):
        got, digits = getattr(mixed, part), getattr(plain, part)
        assert torch.equal(got.inputs[:, :1], digits.inputs)
        assert torch.equal(got.targets, digits.targets)
        quarters = F.avg_pool2d(got.inputs[:, 1], 4)
        means = [quarters[got.targets == each].mean(0) for each in range(10)]
        assert len({tuple((mean > 0.2).flatten().tolist()) for mean in means}) == 10
    places, shapes = digits_mixed(1, 1).train.inputs, digits_mixed(1, 0).train.inputs
    assert torch.equal(places, mixed.train.inputs[:, [1, 1]])
    assert torch.equal(shapes, mixed.train.inputs[:, [0, 0]])


def test_list_tasks():
    digits = ["digits", "digits_full", "digits_mixed", "digits_varied"]
    assert list_tasks()[:7] == ["cifar10", *digits, "pydoc", "scaffold"]


def test_list_tasks_gives_a_list_of_its_own():
    list_tasks().clear()
    assert list_tasks()


def test_unknown_task():
    with pytest.raises(ValueError, match=r"task must be one of cifar10, digits, .*got 'mnist'"):
        make_task("mnist")


# -- tasks from arrays --------------------------------------------------------------------------


HOST = ConvHost(
    kernel_size=1, image_shape=(1, 4, 4), channels=(3, 5), pooled=(True, False), classes=3
)


def examples(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 1, 4, 4)), generator.integers(3, size=count)


def array_task(**changes: object) -> ArrayTask:
    given = {"name": "mine", "host": HOST, "train": examples(), "validation": 10}
    return ArrayTask(**{**given, **changes})


def test_arrays_tensors_and_data_sets_make_the_same_task():
    images, classes = examples()
    tensors = torch.tensor(images), torch.tensor(classes, dtype=torch.int16)
    tasks = [array_task(train=t) for t in ((images, classes), tensors, TensorDataset(*tensors))]
    for task in tasks:
        assert len(task.train.targets) == 30
        assert len(task.validation.targets) == 10
        for mine, theirs in zip(task.train, tasks[0].train, strict=True):
            assert mine.equal(theirs)
        assert task.train.inputs.dtype == torch.float32
        assert task.train.targets.dtype == torch.int64
    seen = torch.cat([*(part.inputs for part in (tasks[0].train, tasks[0].validation))])
    assert sorted(seen.flatten(1).tolist()) == sorted(
        torch.tensor(images).float().flatten(1).tolist()
    )


def test_a_task_from_arrays_says_the_rest_itself():
    task = array_task()
    assert (task.topology, task.num_slots) == ("convolutional", 2)
    assert task.parameter_budget == 8 * sum(s.size for s in HOST.segments)
    assert (task.batches_per_epoch, task.minibatch_size, task.validation_size) == (5, 6, 10)
    assert array_task(minibatch_size=4, num_slots=1).num_slots == 1


def test_a_task_from_arrays_is_grown():
    env = MorphogenesisEnv(array_task(), num_envs=3, num_slots=2, max_epochs=4, validation_size=7)
    assert (env.batches_per_epoch, env.minibatch_size, env.validation_size) == (5, 6, 7)
    check_env_specs(env)
    accuracy = env.rollout(4)["next", "metrics", "val_accuracy"]
    assert (accuracy * 7 / 100 % 1).allclose(torch.zeros(()), atol=1e-4)  # of 7 examples


def spoiled(place: tuple[int, ...], value: float) -> tuple[np.ndarray, np.ndarray]:
    images, classes = examples()
    images[place] = value
    return images, classes


def with_class(index: int, value: int) -> tuple[np.ndarray, np.ndarray]:
    images, classes = examples()
    classes[index] = value
    return images, classes


BAD = {
    "nan": (
        {"train": spoiled((7, 0, 1, 2), np.nan)},
        ValueError,
        "train inputs must be finite, got nan or infinity in example 7",
    ),
    "infinity to validate": (
        {"validation": spoiled((3, 0, 0, 0), np.inf)},
        ValueError,
        "validation inputs must be finite, got nan or infinity in example 3",
    ),
    "too large a class": (
        {"train": with_class(4, 3), "validation": examples(5)},
        ValueError,
        "train targets must be classes from 0 to 2, .* got 3 in example 4",
    ),
    "a negative class": (
        {"train": with_class(39, -1), "validation": examples(5)},
        ValueError,
        "got -1 in example 39",
    ),
    "no examples": (
        {"validation": examples(0)},
        ValueError,
        "validation must have at least one example, got none",
    ),
    "all held out": ({"validation": 40}, ValueError, "validation must be an integer from 1 to 39"),
    "lengths": (
        {"train": (examples(8)[0], examples(9)[1])},
        ValueError,
        r"train must have as many targets as inputs, got shapes \[8, 1, 4, 4\] and \[9\]",
    ),
    "images of another size": (
        {"train": (np.zeros((40, 1, 8, 8)), examples()[1])},
        ValueError,
        r"train inputs don't fit the host: inputs must be floats, .* of shape \['M', 1, 4, 4\]",
    ),
    "images of whole numbers": (
        {"train": (np.zeros((40, 1, 4, 4), dtype=int), examples()[1])},
        ValueError,
        r"train inputs don't fit the host: inputs must be floats, .*inputs.float\(\)",
    ),
    "classes as floats": (
        {"train": (examples()[0], examples()[1] / 2)},
        TypeError,
        "train targets must be classes, whole numbers, got [01].5",
    ),
    "words": (
        {"train": (["a", "b"], [0, 1])},
        TypeError,
        "train inputs must be an array or tensor of numbers, .*: it holds <U1",
    ),
    "no targets": ({"train": examples()[0]}, TypeError, "train must be inputs and targets"),
    "minibatch": ({"minibatch_size": 31}, ValueError, "minibatch_size must be .* 1 to 30"),
    "batches": (
        {"minibatch_size": 10, "batches_per_epoch": 4},
        ValueError,
        "batches_per_epoch must be .* 1 to 3, the minibatches of that size, got 4",
    ),
    "learning rate": (
        {"seed_lr": -0.1},
        ValueError,
        "seed_lr must be a number of at least 0, got -0.1",
    ),
    "term": ({"reward_terms": {"rent": abs}}, ValueError, r"names of their own, got \['rent'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_named(case):
    changes, error, says = BAD[case]
    with pytest.raises(error, match=says):
        array_task(**changes)


# -- further terms of the reward ------------------------------------------------------------------


def test_a_task_has_terms_and_prices_of_its_own():
    """A term from outside is paid, shown and summed like the others."""
    task = replace(
        array_task(),
        reward=RewardConfig(rent=0.25),
        reward_terms={"tidy": lambda t: -(t.after.slots.blueprint >= 0).float().sum(1)},
    )
    env = MorphogenesisEnv(task, num_envs=2, num_slots=2, max_epochs=5)
    check_env_specs(env)
    state = act(env, env.reset(), op=[Op.GERMINATE, Op.WAIT], blueprint=1)
    assert state["reward_terms", "tidy"].tolist() == [[-1.0], [0.0]]
    total = sum(state["reward_terms"].values())
    torch.testing.assert_close(state["reward"], total)
    assert env.reward_config.rent == 0.25
    assert (
        MorphogenesisEnv(task, num_envs=1, num_slots=2, reward=RewardConfig()).reward_config.rent
        != 0.25
    )


# -- names ----------------------------------------------------------------------------------------


def test_a_registered_task_has_a_name():
    register_task("mine", array_task)
    assert list_tasks()[-1] == "mine"
    env = MorphogenesisEnv("mine", num_envs=1, num_slots=2)
    assert env.task.name == "mine"


@pytest.mark.parametrize("name", ["digits", "mine"])
def test_names_are_given_once(name):
    register_task("mine", array_task)
    with pytest.raises(ValueError, match=f"name must be new, got '{name}'"):
        register_task(name, array_task)


NO_NAMES = ["", "../../escaped", "a b", "a\nb", "a" * 65, ".hidden", "-m", "a/b", "é", None, 3]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_stand_on_command_lines_and_in_paths(name):
    with pytest.raises((ValueError, TypeError), match="name must be"):
        register_task(name, array_task)
    with pytest.raises((ValueError, TypeError), match="name must be"):
        array_task(name=name)
    with pytest.raises((ValueError, TypeError), match=r"a term must be|a dictionary of a string"):
        array_task(reward_terms={name: lambda t: t.after.history.accuracy})
    with pytest.raises((ValueError, TypeError), match=r"a name must be|a dictionary of a string"):
        ConvHost(blueprints={name: CONV_BLUEPRINTS["norm"]})
    assert not set(list_tasks()) & {name}


@pytest.mark.parametrize(
    ("formula", "error", "says"),
    [
        (
            lambda t: torch.tensor([0, 0, math.nan]),
            FloatingPointError,
            "reward term 'mine' must be finite, got nan in row 2",
        ),
        (lambda t: torch.ones(3, 1), ValueError, r"must be a tensor \[3\], got \[3, 1\]"),
        (lambda t: 1.0, ValueError, r"must be a tensor \[3\], got 1.0"),
    ],
)
def test_a_term_of_ones_own_that_is_broken_is_named(formula, error, says):
    task = array_task(reward_terms={"mine": formula})
    env = MorphogenesisEnv(task, num_envs=3, num_slots=2, seed=0)
    with pytest.raises(error, match=says):
        env.rollout(3, break_when_any_done=False)


def test_what_is_no_task_is_refused():
    with pytest.raises(TypeError, match="factory must be a function that makes a task, got 3"):
        register_task("three", 3)
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        register_task(3, array_task)
    register_task("nothing", lambda: None)
    with pytest.raises(TypeError, match="factory of task 'nothing' must make a Task, got None"):
        MorphogenesisEnv("nothing")
    with pytest.raises(TypeError, match="task must be a name or a Task, got 3"):
        MorphogenesisEnv(3)


def test_tasks_of_other_packages_are_found(tmp_path, monkeypatch):
    """A package on the path with an entry point, as pip would install it."""
    (tmp_path / "garden.py").write_text(
        "from dataclasses import replace\n"
        "from envs import make_task\n"
        "def plot():\n"
        "    return replace(make_task('scaffold'), name='plot', max_epochs=7)\n"
    )
    info = tmp_path / "garden-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: garden\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[esper_rl.tasks]\nplot = garden:plot\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert list_tasks().count("plot") == 1
    with registered_only({"plot": array_task}):
        assert list_tasks().count("plot") == 1  # what is registered here goes first
        assert make_task("plot").name == "mine"
    assert MorphogenesisEnv("plot", num_envs=1).max_epochs == 7
