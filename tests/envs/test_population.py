"""Whole growing populations against plain networks, and rows against each other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import envs.populations.trained
from envs import MorphogenesisEnv
from envs.actions import BLUEPRINTS, Algorithm, Op, Stage
from envs.populations import SlotInputs
from envs.populations.trained import TrainedPopulation
from envs.registration import make_task
from tests.support.plain import PlainNetwork, PlainSlot, plain_network, plain_seed
from tests.support.populations import (
    CONV_INDICES,
    MIXED,
    NO_SEED,
    copy_growth,
    copy_rows,
    every_growth,
    flat,
    host_keys,
    make_every_population,
    make_growth,
    make_population,
    matrices,
    minibatches,
    plant_seeds,
    small_task,
    take,
)

WORLDS = [("digits", 3), ("digits_full", 3), ("digits", 1)]
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
        host = flat(network.host_parameters())
        torch.testing.assert_close(
            population.host_params[row], host, rtol=tolerance, atol=tolerance
        )
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


# -- against plain networks -------------------------------------------------------------------


def test_every_growth_has_everything():
    """What the comparisons below rest on."""
    growth = every_growth()
    assert set(growth.stage.unique().tolist()) == set(Stage) - {Stage.UNKNOWN}
    mixed = torch.isin(growth.stage, torch.tensor(MIXED))
    pairs = torch.stack([growth.blueprint, growth.algorithm], dim=2)
    assert len(pairs[mixed].unique(dim=0)) == len(CONV_INDICES) * len(Algorithm)
    training = growth.stage == Stage.TRAINING
    assert set(growth.blueprint[training].tolist()) == set(CONV_INDICES)
    assert set(growth.algorithm[training].tolist()) == set(Algorithm)
    assert (growth.alpha[mixed] > 0).all()
    assert (growth.alpha[~mixed] == 0).all()


@pytest.mark.parametrize(("name", "num_slots"), WORLDS)
def test_validation_and_ablation_are_those_of_plain_networks(name, num_slots):
    population, growth = make_every_population(name, torch.float64, num_slots)
    spread_predictions(population, growth, name)
    validation = population.validate(growth, all_rows(population), ablate=True)
    task = small_task(name)
    size = population.data.validation_size
    images, targets = task.validation.inputs[:size].double(), task.validation.targets[:size]

    def accuracy(logits: Tensor) -> float:
        return (logits.argmax(1) == targets).double().mean().item() * 100

    for row, network in enumerate(plain_networks(population, growth)):
        with torch.no_grad():
            logits = network(images)
            loss = F.cross_entropy(logits, targets)
            without = [accuracy(network(images, without=slot)) for slot in range(num_slots)]
        torch.testing.assert_close(validation.loss[row], loss, rtol=1e-9, atol=1e-9)
        assert validation.accuracy[row].item() == pytest.approx(accuracy(logits))
        assert validation.accuracy_without[row].tolist() == pytest.approx(without)
    assert validation.ablated.equal(torch.isin(growth.stage, torch.tensor(MIXED)))
    changed = validation.accuracy_without != validation.accuracy[:, None]
    assert changed[validation.ablated].float().mean() > 0.5


@pytest.mark.parametrize(("name", "num_slots"), WORLDS)
def test_training_is_that_of_plain_networks(name, num_slots):
    """Two epochs of SGD with momentum, the second one going on where the first one stopped."""
    population, growth = make_every_population(name, torch.float64, num_slots)
    before = state(population)
    networks = plain_networks(population, growth)
    optimizers = [
        torch.optim.SGD(
            [{"params": network.host_parameters(), "lr": growth.host_lr[row].item()}]
            + [
                {"params": list(plain.parameters()), "lr": growth.seed_lr[row, slot].item()}
                for slot, plain in enumerate(network.slots)
                if isinstance(plain, PlainSlot)
            ],
            momentum=population.optimizer.momentum,
        )
        for row, network in enumerate(networks)
    ]
    task = small_task(name)
    for epoch in range(2):
        indices = minibatches(population.num_rows, batches=2, seed=epoch)
        host_norm, seed_norm = population.train_on(growth, indices)
        for row, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
            norms = torch.zeros(1 + num_slots, dtype=torch.float64)
            for chosen in indices[row]:
                loss = F.cross_entropy(
                    network(task.train.inputs[chosen].double()), task.train.targets[chosen]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for i, part in enumerate([network.host_parameters(), *network.slots]):
                    parameters = part if isinstance(part, list) else list(part.parameters())
                    gradients = [p.grad for p in parameters if p.grad is not None]
                    norms[i] += torch.nn.utils.get_total_norm(gradients) / len(indices[row])
            torch.testing.assert_close(host_norm[row], norms[0], rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(seed_norm[row], norms[1:], rtol=1e-8, atol=1e-8)
        assert_rows_agree(population, growth, networks, 1e-8)

    trains = torch.isin(growth.stage, torch.tensor([Stage.TRAINING, *MIXED]))
    assert (population.host_params != before[0]).any(1).all()
    for slot, params in enumerate(population.seed_params):
        assert (params != before[1 + slot]).any(1).equal(trains[:, slot])


@pytest.mark.parametrize("name", ["digits", "digits_full"])
def test_ablation_is_forcing_alpha_to_zero(name):
    population, growth = make_every_population(name, torch.float64)
    spread_predictions(population, growth, name)
    rows = all_rows(population)
    validation = population.validate(growth, rows, ablate=True)
    for slot in range(population.num_slots):
        alpha = growth.alpha.clone()
        alpha[:, slot] = 0.0
        brute = population.validate(copy_growth(growth, alpha=alpha), rows, ablate=False)
        torch.testing.assert_close(validation.accuracy_without[:, slot], brute.accuracy)


def test_nothing_is_ablated_unasked():
    population, growth = make_every_population()
    rows = all_rows(population)
    asked = population.validate(growth, rows, ablate=True)
    unasked = population.validate(growth, rows, ablate=False)
    assert not unasked.ablated.any()
    assert unasked.accuracy_without.equal(unasked.accuracy[:, None].expand(-1, 3))
    torch.testing.assert_close(unasked.loss, asked.loss)
    torch.testing.assert_close(unasked.accuracy, asked.accuracy)


def test_validation_of_some_rows_in_any_order():
    population, growth = make_every_population(dtype=torch.float64)
    whole = population.validate(growth, all_rows(population), ablate=True)
    rows = torch.tensor([17, 3, 20, 4])
    part = population.validate(growth, rows, ablate=True)
    for field, values in vars(part).items():
        torch.testing.assert_close(values, getattr(whole, field)[rows])


def test_validation_of_no_rows():
    population, growth = make_every_population()
    empty = population.validate(growth, torch.zeros(0, dtype=torch.int64), ablate=True)
    assert [len(values) for values in vars(empty).values()] == [0, 0, 0, 0]


def test_validation_changes_nothing():
    population, growth = make_every_population()
    before = state(population)
    population.validate(growth, all_rows(population), ablate=True)
    assert all(mine.equal(old) for mine, old in zip(state(population), before, strict=True))


# -- rows -------------------------------------------------------------------------------------


def assert_close_rows(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the length of a row's vector."""
    for mine, theirs in zip(actual, expected, strict=True):
        mine, theirs = mine.view(len(mine), -1), theirs.view(len(theirs), -1)
        assert ((mine - theirs).norm(dim=1) <= tolerance * theirs.norm(dim=1)).all()


@pytest.mark.parametrize("name", ["digits", "digits_full"])
def test_a_row_does_not_depend_on_its_neighbours(name):
    """Alone, in a trio, or among all: the same epoch up to rounding in single precision."""
    population, growth = make_every_population(name)
    indices = minibatches(population.num_rows, batches=5)
    trios = list(torch.arange(27).view(3, 9).T[::2])
    parts = [*trios, *(torch.tensor([row]) for row in range(0, 28, 5))]
    copies = [copy_rows(population, rows, name) for rows in parts]
    norms = population.train_on(growth, indices)
    validation = population.validate(growth, all_rows(population), ablate=True)
    for rows, copied in zip(parts, copies, strict=True):
        copied_norms = copied.train_on(take(growth, rows), indices[rows])
        assert_close_rows(state(copied), [x[rows] for x in state(population)], 1e-5)
        assert_close_rows(list(copied_norms), [x[rows] for x in norms], 1e-5)
        loss = copied.validate(take(growth, rows), torch.arange(len(rows)), ablate=True).loss
        torch.testing.assert_close(loss, validation.loss[rows], rtol=1e-5, atol=0)


def test_the_order_of_rows_does_not_matter():
    population, growth = make_every_population()
    indices = minibatches(population.num_rows)
    order = torch.randperm(population.num_rows, generator=torch.Generator().manual_seed(0))
    shuffled = copy_rows(population, order)
    population.train_on(growth, indices)
    shuffled.train_on(take(growth, order), indices[order])
    assert_close_rows(state(shuffled), [x[order] for x in state(population)], 1e-5)


@pytest.fixture
def threads(request: pytest.FixtureRequest):
    """As many threads as asked for; the old number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows_at_once", "threads"), [(1, 1), (5, 2)], indirect=["threads"])
def test_chunks_and_threads_change_nothing(monkeypatch, rows_at_once, threads):
    indices = minibatches(28, batches=2, size=16)
    results = []
    for limit in (2**30, rows_at_once * 4 * 256 * 16):
        monkeypatch.setitem(envs.populations.trained._CACHE_BYTES, "cpu", limit)
        population, growth = make_every_population(dtype=torch.float64)
        norms = population.train_on(growth, indices)
        validation = population.validate(growth, all_rows(population), ablate=True)
        results.append([*state(population), *norms, *vars(validation).values()])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-11)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("where", "bad"),
    [("host", NAN), ("host", INF), ("seed", NAN), ("seed", -INF), ("velocity", INF)],
)
def test_a_bad_row_harms_no_other(where, bad):
    population, growth = make_every_population()
    clean, _ = make_every_population()
    row = 11
    slot = int(torch.isin(growth.stage[row], torch.tensor(MIXED)).nonzero()[0])
    {
        "host": population.host_params,
        "seed": population.seed_params[slot],
        "velocity": population.host_buffers[0],
    }[where][row] = bad
    others = all_rows(population) != row
    for epoch in range(2):
        indices = minibatches(population.num_rows, batches=1, size=16, seed=epoch)
        norms = population.train_on(growth, indices)
        clean_norms = clean.train_on(growth, indices)
        validation = population.validate(growth, all_rows(population), ablate=True)
        clean_validation = clean.validate(growth, all_rows(population), ablate=True)
        for mine, theirs in zip(
            [*state(population), *norms, *vars(validation).values()],
            [*state(clean), *clean_norms, *vars(clean_validation).values()],
            strict=True,
        ):
            assert mine[others].equal(theirs[others])
    assert not population.host_params[row].isfinite().all()
    assert not validation.loss[row].isfinite()
    assert validation.loss[others].isfinite().all()


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
    assert grown.host_buffers[0].equal(bare.host_buffers[0])
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
    step = task.host_lr * env.population.seed_buffers[0][0][0]
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
    velocity = [buffer for (buffer,) in population.seed_buffers]
    for matrix in (*population.seed_params, *velocity):
        matrix[:] = 5.0
    rows, index = torch.tensor([1, 3]), BLUEPRINTS.index("conv_small")
    before = state(population)
    population.plant_at(rows, 1, index, torch.tensor([8, 9]))

    expected = population.host.blueprints["conv_small"].layout(16).draw(torch.tensor([8, 9]))
    size = 17 + expected.shape[1]
    assert (population.seed_params[1][rows, :17] == 0).all()
    assert population.seed_params[1][rows, 17:size].shape == expected.shape
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
    velocity = [buffer for (buffer,) in population.seed_buffers]
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
    assert validation.accuracy_without.shape == (2, num_slots)
    assert validation.ablated.all()
