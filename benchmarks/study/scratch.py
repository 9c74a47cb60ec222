"""The grown architecture from scratch, and hosts of its size that never grow.

Each is a host of its own that only waits in the same world, so it has the same engine, data, loss
and optimizer. Learning rates are chosen on other hosts. It trains for as many epochs as growth
took, or for as many as cost what growth did: in multiply-adds, or in seconds on this machine.
Growth pays for its watching, too: in every epoch it validates without each set of its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.envs import TransformedEnv
from tqdm import tqdm

from benchmarks.seeds import Run, write_json
from benchmarks.study.runs import CHOOSING_SEED, Tested
from benchmarks.study.settings import FOLDER, read_results, read_runs, settings
from benchmarks.study.worlds import NOTHING, training_part
from benchmarks.transfer import SIGNAL_SEEDS, images, signals
from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from envs.networks.blueprints import CONV_BLUEPRINTS
from esper_rl.evaluation import EVALUATION_SEED, evaluate
from esper_rl.evaluation.schedule_search import Schedule, schedule_policy
from esper_rl.growing.baselines import WaitPolicy

FILE = FOLDER / "scratch.json"
LEARNING_RATES = (0.5, 1.0, 2.0, 4.0)
"""Times the task's own."""

BACKWARD = 2
"""A backward pass takes about twice the multiply-adds of a forward pass."""

CHANNELS = {"digits": (8, 16, 32), "mnist1d": (8, 16, 32)}
Seeds = Sequence[str]
"""What has grown in each slot, :data:`NOTHING` for nothing."""


def host_of(task: str) -> nn.Sequential:
    """An ordinary module that is a host of the task: three blocks, then the head."""
    made = images(list(CHANNELS[task]), 1) if task == "digits" else signals()
    assert isinstance(made, nn.Sequential)
    return made


def grown(task: str, seeds: Seeds) -> nn.Sequential:
    """The host with seeds after its blocks, as they are at the end of an episode."""
    blueprints = CONV_BLUEPRINTS if task == "digits" else SIGNAL_SEEDS
    layers: list[nn.Module] = []
    for number, layer in enumerate(host_of(task)):
        layers.append(layer)
        if number < len(seeds) and seeds[number] != NOTHING:
            layers.append(blueprints[seeds[number]](CHANNELS[task][number]))
    return nn.Sequential(*layers)


def wider(kernel_size: int, parameters: int) -> nn.Sequential:
    """A host of ``digits`` with about so many parameters, as wide as that takes."""
    widths = ([width, 2 * width, 4 * width] for width in range(2, 200))
    hosts = (images(channels, kernel_size) for channels in widths)
    best = min(hosts, key=lambda host: abs(size(host) - parameters))
    assert isinstance(best, nn.Sequential)
    return best


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, example: Tensor) -> int:
    """Of a forward pass of one example, in convolutions and linear layers."""
    counted = 0

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        nonlocal counted
        taps = layer.weight.numel() // layer.weight.shape[0]
        counted += output[0].numel() * taps

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        module.eval()(example)
    for hook in hooks:
        hook.remove()
    return counted


def as_host(task: ArrayTask, factory: Callable[[], nn.Module], lr: float, epochs: int) -> ArrayTask:
    """A task whose hosts are these modules, which only learn."""
    example = task.host.prepare(task.train.inputs[:1])
    last = str(len(list(factory().children())) - 3)  # before flattening
    host = ModuleHost(factory, [last], example, {"none": lambda c: nn.Identity()}, channel_dim=1)
    return replace(
        task,
        host=host,
        topology=host.topology,
        num_slots=1,
        host_lr=task.host_lr * lr,
        max_epochs=epochs,
        parameter_budget=1,
    )


def play(name: str, task: ArrayTask, policy: Callable, slots: int, hosts: int, seed: int) -> Run:
    """Episodes on fresh hosts: what they come to, and seconds."""
    env = MorphogenesisEnv(task, num_envs=hosts, num_slots=slots, seed=seed)
    world = TransformedEnv(env)
    tested = Tested(name, world)
    start = perf_counter()
    found = tested.play(partial(evaluate, policy(env), world, hosts))
    return found | {"seconds": perf_counter() - start}


def from_scratch(name: str, factory: Callable[[], nn.Module], epochs: int) -> Run:
    """With the learning rate that does best on the choosing hosts."""
    task, hosts = training_part(name), settings()["hosts"][name]
    assert isinstance(task, ArrayTask)

    def at(lr: float, seed: int) -> Run:
        made = as_host(task, factory, lr, epochs)
        return play(name, made, lambda env: WaitPolicy(), 1, hosts, seed)

    tried = {lr: at(lr, CHOOSING_SEED)["final_accuracy"] for lr in LEARNING_RATES}
    best = max(tried, key=lambda lr: tried[lr])
    found = at(best, EVALUATION_SEED)
    return {
        "epochs": epochs,
        "lr": best,
        "parameters": size(factory()),
        "test_accuracy": found["test_accuracy"],
        "seconds": found["seconds"],
    }


def compare(name: str, seeds: Seeds, planted: Sequence[int]) -> dict[str, Run]:
    """Growth of an architecture, and the same from scratch at equal costs."""
    task, hosts = training_part(name), settings()["hosts"][name]
    assert isinstance(task, ArrayTask)
    schedule: Schedule = tuple(
        (slot, seed, planted[slot]) for slot, seed in enumerate(seeds) if seed != NOTHING
    )
    growth = play(
        name, task, partial(schedule_policy, [schedule]), len(seeds), hosts, EVALUATION_SEED
    )
    factory = partial(grown, name, seeds)
    example = task.host.prepare(task.train.inputs[:1])
    whole = multiply_adds(factory(), example)
    alive = [[s if planted[i] <= epoch else NOTHING for i, s in enumerate(seeds)]
             for epoch in range(task.max_epochs)]  # fmt: skip
    forward = [multiply_adds(grown(name, live), example) for live in alive]
    sets = [2 ** sum(s != NOTHING for s in live) for live in alive]
    learned = (1 + BACKWARD) * task.batches_per_epoch * task.minibatch_size
    validated = task.validation_size
    cost = sum(
        each * (learned + number * validated) for each, number in zip(forward, sets, strict=True)
    )
    by_work = math.ceil(cost / (whole * (learned + validated)))
    same = from_scratch(name, factory, task.max_epochs)
    by_time = math.ceil(task.max_epochs * growth["seconds"] / same["seconds"])
    found = {
        "grown": {
            "epochs": task.max_epochs,
            "parameters": size(factory()),
            "test_accuracy": growth["test_accuracy"],
            "seconds": growth["seconds"],
        },
        "from scratch, equal epochs": same,
        "from scratch, equal multiply-adds": from_scratch(name, factory, by_work),
        "from scratch, equal time": from_scratch(name, factory, by_time),
    }
    if name == "digits":
        for kernel in (1, 3):
            found[f"a host of equal size, {kernel}×{kernel} kernels"] = from_scratch(
                name, partial(wider, kernel, size(factory())), task.max_epochs
            )
    return found


def measure_scratch(tasks: Sequence[str]) -> None:
    """Of each task's V2 policies the architecture that most networks have in the end."""
    report: dict[str, dict[str, dict[str, Run]]] = read_results(FILE)
    for name in tqdm([task for task in tasks if task in CHANNELS], desc="tasks"):
        report.setdefault(name, {})
        for run in read_runs("policies", name, "v2").values():
            player = run["players"]["greedy"]
            architecture = next(iter(player["grown"]))
            seeds = architecture.split(", ")
            if architecture in report[name] or set(seeds) == {NOTHING}:
                continue
            planted = [round(epoch or 0) for epoch in player["planted"]]
            report[name][architecture] = compare(name, seeds, planted)
            write_json(FILE, report)
