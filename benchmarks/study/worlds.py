"""The study's tasks: examples are held out that neither rewards nor masks nor training ever see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs import Transform

from benchmarks.mnist1d import LENGTH, mnist1d
from benchmarks.study.settings import settings
from benchmarks.transfer import SIGNAL_SEEDS, signals
from envs import ArrayTask, ModuleHost, MorphogenesisEnv, Task, make_task, register_task
from envs.actions import Op, Stage
from envs.registration import registered_tasks
from envs.tasks.examples import Examples, hold_out
from esper_rl.config import TrainConfig

MNIST1D, NOTHING = "mnist1d", "–"
_MNIST1D_EXAMPLES, _MNIST1D_VALIDATION = 6000, 1000


def name_of(task: str) -> str:
    """What a task is called in the study."""
    return f"{task}_study"


def register_worlds() -> None:
    """Give the study's tasks their names in this process."""
    for task in settings()["hosts"]:
        if name_of(task) not in registered_tasks():
            register_task(name_of(task), partial(training_part, task))


def in_study(config: TrainConfig, task: str) -> TrainConfig:
    """A run's configuration, on the study's task instead of that outside."""
    register_worlds()
    return replace(config, env=replace(config.env, task=name_of(task)))


def training_part(task: str) -> Task:
    """The task, without the examples that are held out."""
    return _parts(task)[0]


def held_out(task: str) -> Examples | None:
    """Those examples; None for formulas, whose accuracies are exact."""
    return _parts(task)[1]


@cache  # an environment asks for its task again, and its test examples for the task's others
def _parts(task: str) -> tuple[Task, Examples | None]:
    whole = make_mnist1d() if task == MNIST1D else make_task(task)
    if not isinstance(whole, ArrayTask):
        return replace(whole, name=name_of(task)), None
    count = settings()["test_examples"][task]
    if task == "pydoc":  # whole topics, the last ones
        inputs, targets = whole.train
        test = Examples(inputs[-count:], targets[-count:])
        train = Examples(inputs[:-count], targets[:-count])
    else:
        test, train = hold_out(whole.train, count)
    return replace(whole, name=name_of(task), train=train), test


def make_mnist1d() -> ArrayTask:
    """MNIST-1D, 4,000 examples to learn from beside those held out, as published.

    Hosts have kernels of one point, and can't see shape until they grow; seeds do what the
    convolutional ones of the same names do.
    """
    inputs, classes = mnist1d(_MNIST1D_EXAMPLES)
    return ArrayTask(
        name=MNIST1D,
        description="MNIST-1D, host with kernels of one point only",
        host=ModuleHost(
            signals,
            slots=["0", "1", "2"],
            example=torch.zeros(1, 1, LENGTH),
            blueprints=SIGNAL_SEEDS,
            topology="convolutional",
            channel_dim=1,
        ),
        train=(inputs, classes),
        validation=_MNIST1D_VALIDATION,
    )


@torch.no_grad()
def accuracy(network: nn.Module, task: Task, test: Examples) -> float:
    """Share of right answers, in percent."""
    assert isinstance(task, ArrayTask)
    outputs = network.eval()(task.host.prepare(test.inputs))
    right = task.host.channels_of_outputs_first(outputs).argmax(1) == test.targets
    return 100 * right.float().mean().item()


class FinalNetworks(Transform):
    """Tests every network in the last step of its episode, and notes what has grown.

    Args:
        world: with the networks.
        test: what a network has to answer to, in percent; None for formulas.

    Attributes:
        accuracy: of each row's latest episode, ``[N]``; with formulas that of the validation.
        grown: of each row's latest episode, what is fossilized in each slot, in words.
        planted: epoch of the latest planting in each slot, −1 for none, ``[N, S]``.
    """

    def __init__(self, world: MorphogenesisEnv, test: Callable[[nn.Module], float] | None) -> None:
        super().__init__()
        self.world, self.test = world, test
        self.accuracy: Tensor = torch.full((world.num_envs,), torch.nan)
        self.grown = [""] * world.num_envs
        self.planted: Tensor = torch.full((world.num_envs, world.num_slots), -1)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        metrics = next_tensordict["metrics"]
        before = tensordict["metrics", "epoch"]
        self.planted[(before == 0).squeeze(-1)] = -1
        rows = (metrics["executed_op"] == Op.GERMINATE).nonzero().flatten()
        self.planted[rows, tensordict["action", "slot"][rows]] = before[rows, 0]
        ending = next_tensordict["done"].squeeze(-1).nonzero().flatten()
        self.accuracy[ending] = metrics["val_accuracy"][ending, 0]
        for row in ending.tolist():
            stays = metrics["stage"][row] == Stage.FOSSILIZED
            kinds = next_tensordict["blueprint_indices"][row].where(stays, -1).tolist()
            names = self.world.population.blueprints
            self.grown[row] = ", ".join(NOTHING if kind < 0 else names[kind] for kind in kinds)
            if self.test is not None:
                self.accuracy[row] = self.test(self.world.network(row))
        return next_tensordict
