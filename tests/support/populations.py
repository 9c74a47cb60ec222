"""Populations in every state of growth, and what compares them with plain networks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from envs.actions import BLUEPRINTS, Algorithm, Stage
from envs.batched.randomness import fold
from envs.networks.blueprints import CONV_BLUEPRINTS
from envs.populations import SlotInputs
from envs.populations.compiled import CompiledPasses
from envs.populations.data import LabelledData
from envs.populations.plain import PlainPasses
from envs.populations.trained import TrainedPopulation
from envs.registration import make_task
from envs.tasks import ArrayTask
from tests.support.plain import PlainNetwork, drawn_kernels, plain_network

CPU = torch.device("cpu")
HOST_LR = 0.05
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
def small_task(name: str) -> ArrayTask:
    """A task with a seed learning rate of its own."""
    task = make_task(name)
    assert isinstance(task, ArrayTask)
    return replace(task, seed_lr=0.03)


def make_population(
    name: str = "digits",
    num_rows: int = 4,
    *,
    num_slots: int = 3,
    validation_size: int = 60,
    dtype: torch.dtype = torch.float32,
) -> TrainedPopulation:
    """Fresh hosts."""
    task = small_task(name)
    data = LabelledData(
        task.train,
        (task.validation.inputs[:validation_size], task.validation.targets[:validation_size]),
        lambda images: task.host.prepare(images.to(dtype)),
        batches_per_epoch=task.batches_per_epoch,
        minibatch_size=task.minibatch_size,
        device=CPU,
    )
    population = TrainedPopulation(task.host, data, task.optimizer, num_rows, num_slots, CPU)
    rows = torch.arange(num_rows)
    population.params = population.params.to(dtype)
    population.buffers = population.buffers.to(dtype)
    population.reset_hosts(rows, host_keys(rows))
    return population


def host_keys(rows: Tensor) -> Tensor:
    """The keys that :func:`make_population` draws its hosts from."""
    return fold(rows, 1000)


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
) -> SlotInputs:
    """The same in every slot; change single entries afterwards."""
    shape = (num_rows, num_slots)
    return SlotInputs(
        stage=torch.full(shape, int(stage)),
        blueprint=torch.full(shape, -1 if blueprint is None else BLUEPRINTS.index(blueprint)),
        algorithm=torch.full(shape, int(algorithm)),
        alpha=torch.full(shape, alpha, dtype=dtype),
        host_lr=torch.full((num_rows,), HOST_LR, dtype=dtype),
        seed_lr=torch.full(shape, seed_lr, dtype=dtype),
    )


def every_growth(dtype: torch.dtype = torch.float32) -> SlotInputs:
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
    rate[stage == Stage.FOSSILIZED] = HOST_LR
    return SlotInputs(
        stage,
        blueprint,
        algorithm,
        torch.where(mixed, alpha, 0.0).to(dtype),
        torch.full((len(stage),), HOST_LR, dtype=dtype),
        rate.to(dtype),
    )


def take(growth: SlotInputs, rows: Tensor | slice) -> SlotInputs:
    """The growth of some rows."""
    return SlotInputs(**{name: value[rows] for name, value in vars(growth).items()})


def copy_growth(growth: SlotInputs, **changes: Tensor) -> SlotInputs:
    return SlotInputs(**{**{k: v.clone() for k, v in vars(growth).items()}, **changes})


def plant_seeds(population: TrainedPopulation, growth: SlotInputs, noise: float = 0.1) -> None:
    """Seeds for all of ``growth``, noisy, so that none is the identity and no gate is at ½."""
    for row, slot in (growth.blueprint >= 0).nonzero().tolist():
        index = torch.tensor([row])
        population.plant_at(index, slot, int(growth.blueprint[row, slot]), fold(index, slot))
    for slot, params in enumerate(population.seed_params):
        params += noise * torch.randn(params.shape, generator=torch.Generator().manual_seed(slot))


def make_every_population(
    name: str = "digits",
    dtype: torch.dtype = torch.float32,
    num_slots: int = 3,
    *,
    plain: bool = False,
) -> tuple[TrainedPopulation, SlotInputs]:
    """All of :func:`every_growth`, planted; ``plain`` in PyTorch instead of compiled."""
    growth = every_growth(dtype)
    growth = SlotInputs(
        **{k: v[:, :num_slots] if v.dim() == 2 else v for k, v in vars(growth).items()}
    )
    population = make_population(name, len(growth.stage), num_slots=num_slots, dtype=dtype)
    assert isinstance(population.passes, CompiledPasses)
    population = use_plain_passes(population) if plain else population
    plant_seeds(population, growth)
    return population, growth


def copy_rows(
    population: TrainedPopulation, rows: Tensor, name: str = "digits"
) -> TrainedPopulation:
    """A population of some of the rows, in that order."""
    copied = make_population(
        name,
        len(rows),
        num_slots=population.num_slots,
        dtype=population.params.dtype,
    )
    if isinstance(population.passes, PlainPasses):
        use_plain_passes(copied)
    for mine, theirs in zip(matrices(copied), matrices(population), strict=True):
        mine[:] = theirs[rows]
    return copied


def matrices(population: TrainedPopulation) -> list[Tensor]:
    """All that a population learns and remembers, each with one row a network."""
    parts = [slice(population.host_size), *population.networks.slots]
    return [x[:, columns] for x in (population.params, *population.buffers) for columns in parts]


def seed_velocities(population: TrainedPopulation) -> list[Tensor]:
    """For every slot the momentum of its seeds, a view."""
    return [population.buffers[0][:, columns] for columns in population.networks.slots]


def use_plain_passes(population: TrainedPopulation) -> TrainedPopulation:
    """The population, which runs in PyTorch from now on."""
    population.passes = PlainPasses(population.networks, population.data, population.optimizer)
    return population


def minibatches(num_rows: int, batches: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Training examples for an epoch, other ones for every row: ``[N, batches, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 1297, (num_rows, batches, size), generator=generator)


WORLDS = [("digits", 3), ("digits_full", 3), ("digits_varied", 3), ("digits", 1)]
INF, NAN = float("inf"), float("nan")


def all_rows(population: TrainedPopulation) -> Tensor:
    return torch.arange(population.num_rows)


def state(population: TrainedPopulation) -> list[Tensor]:
    """Copies of all that a population learns, each with one row a network."""
    return [matrix.clone() for matrix in matrices(population)]


def plain_networks(population: TrainedPopulation, growth: SlotInputs) -> list[PlainNetwork]:
    return [plain_network(population, growth, row) for row in range(population.num_rows)]


def assert_rows_agree(
    population: TrainedPopulation,
    growth: SlotInputs,
    networks: list[PlainNetwork],
    tolerance: float,
) -> None:
    """Hosts, seeds and gates of the population are those of the plain networks."""
    for row, network in enumerate(networks):
        host, mine = flat(network.host_parameters()), population.host_params[row]
        used = drawn_kernels(population.host, mine)[1]
        torch.testing.assert_close(mine[used], host, rtol=tolerance, atol=tolerance)
        for slot, plain in enumerate(network.slots):
            if growth.blueprint[row, slot] >= 0:
                seed = flat(plain)
                mine = population.seed_params[slot][row, : len(seed)]
                torch.testing.assert_close(mine, seed, rtol=tolerance, atol=tolerance)


def spread_predictions(population: TrainedPopulation, growth: SlotInputs, name: str) -> None:
    """Biases that centre the logits: fresh hosts see one class everywhere, whatever is ablated."""
    images = small_task(name).validation.inputs[:60].double()
    with torch.no_grad():
        for row, network in enumerate(plain_networks(population, growth)):
            population.host_params[row, -10:] -= network(images).mean(0)


def assert_close_rows(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the length of a row's vector."""
    for mine, theirs in zip(actual, expected, strict=True):
        mine, theirs = mine.view(len(mine), -1), theirs.view(len(theirs), -1)
        assert ((mine - theirs).norm(dim=1) <= tolerance * theirs.norm(dim=1)).all()
