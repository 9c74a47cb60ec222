"""Seeds in a population: incubation, learning rates, creation and removal."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from envs import MorphogenesisEnv
from envs.actions import BLUEPRINTS, Algorithm, Op, Stage
from envs.populations import SlotInputs
from envs.populations.trained import TrainedPopulation
from envs.registration import make_task
from tests.support.plain import plain_seed
from tests.support.populations import (
    CONV_INDICES,
    INF,
    MIXED,
    NAN,
    NO_SEED,
    all_rows,
    assert_close_rows,
    copy_growth,
    host_keys,
    make_every_population,
    make_growth,
    make_population,
    minibatches,
    plant_seeds,
    seed_velocities,
    state,
)

# -- incubation -------------------------------------------------------------------------------


def grown_and_bare(
    blueprint: str, fill: float | None = None, num_rows: int = 4, **changes
) -> tuple[TrainedPopulation, SlotInputs, TrainedPopulation, SlotInputs]:
    """A population with the same seed everywhere, and the same hosts without any."""
    growth = make_growth(num_rows, blueprint=blueprint, **{"stage": Stage.TRAINING, **changes})
    dtype = growth.alpha.dtype
    grown, bare = (make_population(num_rows=num_rows, dtype=dtype) for _ in range(2))
    plant_seeds(grown, growth)
    if fill is not None:
        for params in grown.seed_params:
            params[:] = fill
    return grown, growth, bare, make_growth(num_rows, dtype=dtype)


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("fill", [None, INF, NAN])
@pytest.mark.parametrize("blueprint", ["norm", "conv_heavy", "attention"])
def test_an_incubated_seed_never_touches_its_host(blueprint, fill, algorithm):
    grown, growth, bare, nothing = grown_and_bare(blueprint, fill, algorithm=algorithm)
    indices = minibatches(4)
    seeds = [params.clone() for params in grown.seed_params]
    host_norm, seed_norm = grown.train_on(growth, indices)
    bare_norm, _ = bare.train_on(nothing, indices)
    assert grown.host_params.equal(bare.host_params)
    assert grown.buffers[0][:, : grown.host_size].equal(bare.buffers[0][:, : bare.host_size])
    assert host_norm.equal(bare_norm)
    if fill is None:
        assert (seed_norm > 0).all()
        for params, before in zip(grown.seed_params, seeds, strict=True):
            assert (params != before).any(1).all()
    validation = grown.validate(growth, all_rows(grown), ablate=True)
    assert validation.loss.equal(bare.validate(nothing, all_rows(bare), ablate=True).loss)
    assert not validation.ablated.any()


def test_incubated_seeds_of_every_kind_leave_every_host_alone():
    """All blueprints next to each other: other groups, so equal up to rounding only."""
    _, growth = make_every_population()
    stage = torch.where(growth.blueprint >= 0, Stage.TRAINING, growth.stage)
    growth = copy_growth(growth, stage=stage, alpha=torch.zeros_like(growth.alpha))
    grown = make_population(num_rows=len(stage))
    plant_seeds(grown, growth)
    grown.seed_params[0][::2] = INF
    bare = make_population(num_rows=len(stage))
    indices = minibatches(len(stage), batches=5)
    grown.train_on(growth, indices)
    bare.train_on(make_growth(len(stage)), indices)
    assert_close_rows([grown.host_params], [bare.host_params], 1e-5)


@pytest.mark.parametrize("stage", [Stage.GERMINATED, *NO_SEED])
def test_other_stages_are_no_seed_at_all(stage):
    blueprint = "conv_heavy" if stage is Stage.GERMINATED else None
    growth = make_growth(4, stage=stage, blueprint=blueprint)
    grown, bare = make_population(), make_population()
    plant_seeds(grown, growth)
    seeds = [params.clone() for params in grown.seed_params]
    grown.train_on(growth, minibatches(4))
    bare.train_on(make_growth(4), minibatches(4))
    assert grown.host_params.equal(bare.host_params)
    assert all(mine.equal(old) for mine, old in zip(grown.seed_params, seeds, strict=True))


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("stage", MIXED)
def test_a_mixed_seed_at_alpha_zero_is_no_seed_at_all(stage, algorithm):
    grown, growth, bare, nothing = grown_and_bare(
        "conv_light", stage=stage, algorithm=algorithm, dtype=torch.float64
    )
    rows = all_rows(grown)
    before = bare.validate(nothing, rows, ablate=False)
    assert grown.validate(growth, rows, ablate=False).loss.equal(before.loss)
    seeds = [params.clone() for params in grown.seed_params]
    _, seed_norm = grown.train_on(growth, minibatches(4))
    bare.train_on(nothing, minibatches(4))
    torch.testing.assert_close(grown.host_params, bare.host_params, rtol=1e-10, atol=1e-12)
    assert (seed_norm == 0).all()
    assert all(mine.equal(old) for mine, old in zip(grown.seed_params, seeds, strict=True))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_an_identity_at_full_alpha_changes_no_output(algorithm):
    """Fresh ``norm`` seeds: s(h) = h, so every algorithm gives h."""
    growth = make_growth(4, stage=Stage.BLENDING, blueprint="norm", algorithm=algorithm, alpha=1.0)
    grown, bare = make_population(), make_population()
    plant_seeds(grown, growth, noise=0.0)
    loss = grown.validate(growth, all_rows(grown), ablate=False).loss
    assert loss.equal(bare.validate(make_growth(4), all_rows(bare), ablate=False).loss)


def test_a_fresh_gate_is_half_open():
    """GATE at α with a fresh gate is ADD at α/2."""
    results = []
    for algorithm, alpha in ((Algorithm.GATE, 0.8), (Algorithm.ADD, 0.4)):
        growth = make_growth(
            4,
            stage=Stage.HOLDING,
            blueprint="conv_heavy",
            algorithm=algorithm,
            alpha=alpha,
            dtype=torch.float64,
        )
        population = make_population(dtype=torch.float64)
        plant_seeds(population, growth)
        for slot in range(3):
            where = torch.zeros(population.num_rows, 3, dtype=torch.bool)
            where[:, slot] = True
            population.reset_gates(where)
        results.append(population.validate(growth, all_rows(population), ablate=False).loss)
    torch.testing.assert_close(*results, rtol=1e-10, atol=0)


# -- learning rates ---------------------------------------------------------------------------


def test_every_seed_has_its_own_learning_rate():
    """With a rate of 0 exactly the seeds of that slot stand still."""
    population, growth = make_every_population()
    growth.seed_lr[:, 1] = 0.0
    seeds = [params.clone() for params in population.seed_params]
    population.train_on(growth, minibatches(population.num_rows))
    trains = torch.isin(growth.stage, torch.tensor([Stage.TRAINING, *MIXED]))
    trains[:, 1] = False
    moved = [(mine != old).any(1) for mine, old in zip(population.seed_params, seeds, strict=True)]
    assert torch.stack(moved, 1).equal(trains)


def test_a_fossil_learns_at_the_hosts_rate():
    """Through the environment, with a seed learning rate of 0: only the fossil moves."""
    task = replace(make_task("digits"), seed_lr=0.0)
    env = MorphogenesisEnv(
        task, num_envs=1, batches_per_epoch=1, minibatch_size=8, validation_size=20, seed=0
    )
    before_fossil = [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT, Op.WAIT, Op.ADVANCE]
    tensordict = env.reset()
    planted = None
    for op in (*before_fossil, Op.FOSSILIZE):
        action = env.full_action_spec.zero()["action"]
        action["op"][:] = int(op)
        action["blueprint"][:] = BLUEPRINTS.index("conv_light")
        tensordict = env.step(tensordict.set("action", action))["next"]
        assert tensordict["last_action_success"].all()
        seed = env.population.seed_params[0].clone()
        planted = seed if planted is None else planted
        assert seed.equal(planted) == (op != Op.FOSSILIZE)
    moved = (env.population.seed_params[0] - planted)[0]
    step = task.host_lr * seed_velocities(env.population)[0][0]
    torch.testing.assert_close(moved[9:], -step[9:], rtol=1e-3, atol=1e-6)


# -- creation and removal ---------------------------------------------------------------------


def test_rows_are_reset_alone():
    population, growth = make_every_population()
    population.train_on(growth, minibatches(population.num_rows))
    before = state(population)
    rows = torch.tensor([2, 9])
    population.reset_hosts(rows, host_keys(torch.tensor([2, 77])))
    fresh = make_population(num_rows=28)
    others = ~torch.isin(all_rows(population), rows)
    for mine, old in zip(state(population), before, strict=True):
        assert mine[others].equal(old[others])
    host, *cleared = (x[rows] for x in state(population))
    assert host[0].equal(fresh.host_params[2])
    assert not host[1].equal(fresh.host_params[9])
    assert all((x == 0).all() for x in cleared)


def test_a_row_is_reset_to_the_same_host_whatever_the_number_of_rows():
    many, few = make_population(num_rows=7), make_population(num_rows=2)
    few.reset_hosts(torch.arange(2), host_keys(torch.tensor([5, 3])))
    assert few.host_params.equal(many.host_params[[5, 3]])


def test_segments_of_a_host_differ():
    """The same key for all segments would start them with the same numbers."""
    first, second = make_population("digits_full", 1).host_params[0].split([72 + 16, 6186])
    assert not torch.isclose(first[:72] * 3, second[:72] * math.sqrt(72)).any()


def test_planting_is_fresh_and_alone():
    population = make_population()
    velocity = seed_velocities(population)
    for matrix in (*population.seed_params, *velocity):
        matrix[:] = 5.0
    rows, index = torch.tensor([1, 3]), BLUEPRINTS.index("conv_small")
    before = state(population)
    population.plant_at(rows, 1, index, torch.tensor([8, 9]))

    size = 17 + sum(p.numel() for p in plain_seed("conv_small", 16).parameters())
    assert (population.seed_params[1][rows, :17] == 0).all()
    assert (population.seed_params[1][rows, 17:33] == 1).all()
    assert (population.seed_params[1][rows, 33:size] == 0).all()
    assert (velocity[1][rows] == 0).all()
    untouched = [x.clone() for x in state(population)]
    for matrix, old in zip(untouched, before, strict=True):
        matrix[rows], old[rows] = 0, 0
        assert matrix.equal(old)
    assert (population.seed_params[0] == 5).all()
    assert (velocity[2] == 5).all()


@pytest.mark.parametrize("blueprint", ["conv_heavy", "bottleneck", "attention"])
def test_planted_seeds_differ_by_key_and_repeat_by_key(blueprint):
    population, index = make_population(num_rows=5), BLUEPRINTS.index(blueprint)
    population.plant_at(torch.arange(3), 0, index, torch.tensor([8, 9, 8]))
    population.plant_at(torch.tensor([4]), 0, index, torch.tensor([9]))
    params = population.seed_params[0]
    assert params[0].equal(params[2])
    assert params[1].equal(params[4])
    assert not params[0].equal(params[1])


def test_gates_are_reset_alone():
    population = make_population()
    velocity = seed_velocities(population)
    for matrix in (*population.seed_params, *velocity):
        matrix[:] = 5.0
    where = torch.zeros(population.num_rows, 3, dtype=torch.bool)
    where[2, 1] = True
    population.reset_gates(where)
    for group in (population.seed_params, velocity):
        assert (group[1][2, :17] == 0).all()
        group[1][2, :17] = 5.0
        assert all((matrix == 5).all() for matrix in group)


def test_seed_parameters_are_counted():
    growth = make_growth(len(CONV_INDICES) + 1)
    growth.blueprint[:] = torch.tensor([*CONV_INDICES, -1])[:, None]
    population = make_population(num_rows=len(growth.stage))
    for algorithm, gates in ((0, (0, 0, 0)), (1, (0, 0, 0)), (2, (9, 17, 33))):
        counted = population.count_seed_params(
            growth.blueprint, torch.full_like(growth.algorithm, algorithm)
        )
        expected = [
            [
                sum(p.numel() for p in plain_seed(BLUEPRINTS[index], channels).parameters()) + gate
                for channels, gate in zip((8, 16, 32), gates, strict=True)
            ]
            for index in CONV_INDICES
        ]
        assert counted.tolist() == [*expected, [0, 0, 0]]


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_fewer_slots(num_slots):
    population = make_population(num_rows=2, num_slots=num_slots, validation_size=20)
    growth = make_growth(2, num_slots, stage=Stage.HOLDING, blueprint="norm", alpha=0.5)
    plant_seeds(population, growth)
    population.train_on(growth, minibatches(2))
    validation = population.validate(growth, torch.arange(2), ablate=True)
    assert validation.lost.shape == (2, 2**num_slots)
    assert validation.ablated.all()
