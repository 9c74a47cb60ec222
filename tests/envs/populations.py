"""Populations in every state of growth, and what compares them with plain networks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from envs.actions import BLUEPRINTS, Algorithm, Stage
from envs.blueprints import CONV_BLUEPRINTS
from envs.growth import Growth
from envs.population import Population
from envs.randomness import fold
from envs.tasks import Task, make_task

CPU = torch.device("cpu")
KERNEL_SIZE = {"digits": 1, "digits_full": 3}
CONV_INDICES = tuple(BLUEPRINTS.index(name) for name in CONV_BLUEPRINTS)
MIXED = (Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
NO_SEED = (Stage.DORMANT, Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING)


def batch_first(x: Tensor) -> Tensor:
    """One network's features ``[…, B]`` as torch wants them: ``[B, …]``."""
    return x.movedim(-1, 0)


def batch_last(x: Tensor) -> Tensor:
    """The inverse of :func:`batch_first`."""
    return x.movedim(0, -1)


def flat(parameters: list[nn.Parameter] | nn.Module) -> Tensor:
    """Parameters of a torch module in one vector."""
    if isinstance(parameters, nn.Module):
        parameters = list(parameters.parameters())
    return torch.cat([p.detach().flatten() for p in parameters])


@cache
def small_task(name: str, dtype: torch.dtype) -> Task:
    """A task with a seed learning rate of its own, in ``dtype``."""
    task = make_task(name)
    return replace(
        task,
        train_inputs=task.train_inputs.to(dtype),
        validation_inputs=task.validation_inputs.to(dtype),
        seed_lr=0.03,
    )


def make_population(
    name: str = "digits",
    num_rows: int = 4,
    *,
    num_slots: int = 3,
    validation_size: int = 60,
    dtype: torch.dtype = torch.float32,
) -> Population:
    """Fresh hosts."""
    task = small_task(name, dtype)
    population = task.make_hosts(num_rows, num_slots, CPU, validation_size=validation_size)
    rows = torch.arange(num_rows)
    population.reset_hosts(rows, host_keys(rows))
    population.host_params = population.host_params.to(dtype)
    population.host_velocity = population.host_velocity.to(dtype)
    cast_seeds(population, dtype)
    return population


def host_keys(rows: Tensor) -> Tensor:
    """The keys that :func:`make_population` draws its hosts from."""
    return fold(rows, 1000)


def cast_seeds(population: Population, dtype: torch.dtype) -> None:
    population.seed_params = [params.to(dtype) for params in population.seed_params]
    population.seed_velocity = [velocity.to(dtype) for velocity in population.seed_velocity]


def make_growth(
    num_rows: int,
    num_slots: int = 3,
    *,
    stage: Stage = Stage.DORMANT,
    blueprint: str | None = None,
    algorithm: Algorithm = Algorithm.ADD,
    alpha: float = 0.0,
    seed_lr: float = 0.03,
    dtype: torch.dtype = torch.float32,
) -> Growth:
    """The same in every slot; change single entries afterwards."""
    shape = (num_rows, num_slots)
    return Growth(
        stage=torch.full(shape, int(stage)),
        blueprint=torch.full(shape, -1 if blueprint is None else BLUEPRINTS.index(blueprint)),
        algorithm=torch.full(shape, int(algorithm)),
        alpha=torch.full(shape, alpha, dtype=dtype),
        seed_lr=torch.full(shape, seed_lr, dtype=dtype),
    )


def every_growth(dtype: torch.dtype = torch.float32) -> Growth:
    """28 rows of 3 slots: every blueprint with every algorithm, in training, and idle slots."""
    kinds = [
        (MIXED[i % len(MIXED)], blueprint, algorithm)
        for i, (blueprint, algorithm) in enumerate(product(CONV_INDICES, Algorithm))
    ] * 3
    kinds += [(Stage.TRAINING, b, Algorithm(b % 3)) for b in CONV_INDICES]
    kinds += [(Stage.GERMINATED, b, Algorithm.ADD) for b in CONV_INDICES[:3]]
    kinds += [(stage, -1, Algorithm.ADD) for stage in (*NO_SEED, *NO_SEED, *NO_SEED[:3])]
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(len(kinds), generator=generator)
    stage, blueprint, algorithm = torch.tensor(kinds)[order].view(-1, 3, 3).unbind(2)
    mixed = (stage >= Stage.BLENDING) & (stage <= Stage.FOSSILIZED)
    alpha = torch.rand(stage.shape, generator=generator).add(0.1).clamp(max=1.0)
    rate = torch.rand(stage.shape, generator=generator) * 0.05
    rate[stage == Stage.FOSSILIZED] = small_task("digits", dtype).host_lr
    return Growth(
        stage, blueprint, algorithm, torch.where(mixed, alpha, 0.0).to(dtype), rate.to(dtype)
    )


def take(growth: Growth, rows: Tensor | slice) -> Growth:
    """The growth of some rows."""
    return Growth(**{name: value[rows] for name, value in vars(growth).items()})


def copy_growth(growth: Growth, **changes: Tensor) -> Growth:
    return Growth(**{**{k: v.clone() for k, v in vars(growth).items()}, **changes})


def plant_seeds(population: Population, growth: Growth, noise: float = 0.1) -> None:
    """Seeds for all of ``growth``, noisy, so that none is the identity and no gate is at ½."""
    dtype = population.host_params.dtype
    cast_seeds(population, torch.float32)
    for row, slot in (growth.blueprint >= 0).nonzero().tolist():
        index = torch.tensor([row])
        population.plant_at(index, slot, int(growth.blueprint[row, slot]), fold(index, slot))
    for slot, params in enumerate(population.seed_params):
        params += noise * torch.randn(params.shape, generator=torch.Generator().manual_seed(slot))
    cast_seeds(population, dtype)


def make_every_population(
    name: str = "digits", dtype: torch.dtype = torch.float32, num_slots: int = 3
) -> tuple[Population, Growth]:
    """All of :func:`every_growth`, planted."""
    growth = every_growth(dtype)
    growth = Growth(**{k: v[:, :num_slots].contiguous() for k, v in vars(growth).items()})
    population = make_population(name, len(growth.stage), num_slots=num_slots, dtype=dtype)
    plant_seeds(population, growth)
    return population, growth


def copy_rows(population: Population, rows: Tensor, name: str = "digits") -> Population:
    """A population of some of the rows, in that order."""
    copied = make_population(
        name,
        len(rows),
        num_slots=population.num_slots,
        dtype=population.host_params.dtype,
    )
    copied.host_params[:] = population.host_params[rows]
    copied.host_velocity[:] = population.host_velocity[rows]
    for target, source in (
        (copied.seed_params, population.seed_params),
        (copied.seed_velocity, population.seed_velocity),
    ):
        for mine, theirs in zip(target, source, strict=True):
            mine[:] = theirs[rows]
    return copied


def minibatches(num_rows: int, batches: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Training examples for an epoch, other ones for every row: ``[N, batches, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1297, (num_rows, batches, size), generator=generator)
