"""Whole growing populations against plain networks, and rows against each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import envs.populations.compiled
import envs.populations.plain
import envs.populations.trained
from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from envs.actions import Algorithm, Stage
from envs.credit import contributions
from envs.populations.left_out import SetsLeftOut
from tests.support.plain import PlainSlot, drawn_kernels
from tests.support.populations import (
    CONV_INDICES,
    INF,
    MIXED,
    NAN,
    WORLDS,
    all_rows,
    assert_close_rows,
    assert_rows_agree,
    copy_growth,
    copy_rows,
    every_growth,
    make_every_population,
    minibatches,
    plain_networks,
    small_task,
    spread_predictions,
    state,
    take,
)

both_passes = pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])

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


@both_passes
@pytest.mark.parametrize(("name", "num_slots"), WORLDS)
def test_validation_and_ablation_are_those_of_plain_networks(name, num_slots, plain):
    population, growth = make_every_population(name, torch.float64, num_slots, plain=plain)
    spread_predictions(population, growth, name)
    validation = population.validate(growth, all_rows(population), ablate=True)
    task = small_task(name)
    sets = [
        [slot for slot in range(num_slots) if bits >> slot & 1]
        for bits in SetsLeftOut(num_slots).bits.tolist()
    ]
    assert len(sets) == 2**num_slots
    size = population.data.validation_size
    images, targets = task.validation.inputs[:size].double(), task.validation.targets[:size]

    def accuracy(logits: Tensor) -> float:
        return (logits.argmax(1) == targets).double().mean().item() * 100

    for row, network in enumerate(plain_networks(population, growth)):
        with torch.no_grad():
            logits = network(images)
            loss = F.cross_entropy(logits, targets)
            without = [accuracy(network(images, without=left_out)) for left_out in sets]
        torch.testing.assert_close(validation.loss[row], loss, rtol=1e-9, atol=1e-9)
        assert validation.accuracy[row].item() == pytest.approx(accuracy(logits))
        lost = accuracy(logits) - torch.tensor(without)
        assert validation.lost[row].tolist() == pytest.approx(lost.tolist(), abs=1e-4)
    assert validation.ablated.equal(torch.isin(growth.stage, torch.tensor(MIXED)))
    alone = contributions(validation.lost, num_slots)
    assert (alone != 0)[validation.ablated].float().mean() > 0.5


@both_passes
@pytest.mark.parametrize(("name", "num_slots"), WORLDS)
def test_training_is_that_of_plain_networks(name, num_slots, plain):
    """Two epochs of SGD with momentum, the second one going on where the first one stopped."""
    population, growth = make_every_population(name, torch.float64, num_slots, plain=plain)
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
    for mine, old in zip(population.host_params, before[0], strict=True):
        unused = ~drawn_kernels(population.host, old)[1]
        assert mine[unused].equal(old[unused])
    for slot, params in enumerate(population.seed_params):
        assert (params != before[1 + slot]).any(1).equal(trains[:, slot])


@both_passes
@pytest.mark.parametrize("name", ["digits", "digits_full"])
def test_ablation_is_forcing_alpha_to_zero(name, plain):
    population, growth = make_every_population(name, torch.float64, plain=plain)
    spread_predictions(population, growth, name)
    rows = all_rows(population)
    validation = population.validate(growth, rows, ablate=True)
    slots = torch.arange(population.num_slots)
    for place, bits in enumerate(SetsLeftOut(population.num_slots).bits):
        alpha = torch.where(bits >> slots & 1 == 1, 0.0, growth.alpha)
        brute = population.validate(copy_growth(growth, alpha=alpha), rows, ablate=False)
        torch.testing.assert_close(validation.accuracy - validation.lost[:, place], brute.accuracy)


def test_nothing_is_ablated_unasked():
    population, growth = make_every_population()
    rows = all_rows(population)
    asked = population.validate(growth, rows, ablate=True)
    unasked = population.validate(growth, rows, ablate=False)
    assert not unasked.ablated.any()
    assert not unasked.lost.any()
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
    assert all(len(values) == 0 for values in vars(empty).values())


def test_validation_changes_nothing():
    population, growth = make_every_population()
    before = state(population)
    population.validate(growth, all_rows(population), ablate=True)
    assert all(mine.equal(old) for mine, old in zip(state(population), before, strict=True))


@both_passes
def test_preparing_changes_nothing(plain):
    population, _ = make_every_population(plain=plain)
    before = state(population)
    population.passes.prepare(population.params, population.buffers)
    assert all(mine.equal(old) for mine, old in zip(state(population), before, strict=True))


# -- rows -------------------------------------------------------------------------------------


@both_passes
@pytest.mark.parametrize("name", ["digits", "digits_full"])
def test_a_row_does_not_depend_on_its_neighbours(name, plain):
    """Alone, in a trio, or among all: the same epoch, bitwise where it runs compiled."""
    population, growth = make_every_population(name, plain=plain)
    indices = minibatches(population.num_rows, batches=5)
    trios = list(torch.arange(27).view(3, 9).T[::2])
    parts = [*trios, *(torch.tensor([row]) for row in range(0, 28, 5))]
    copies = [copy_rows(population, rows, name) for rows in parts]
    norms = population.train_on(growth, indices)
    validation = population.validate(growth, all_rows(population), ablate=True)
    tolerance = 1e-5 if plain else 0.0
    for rows, copied in zip(parts, copies, strict=True):
        copied_norms = copied.train_on(take(growth, rows), indices[rows])
        assert_close_rows(state(copied), [x[rows] for x in state(population)], tolerance)
        assert_close_rows(list(copied_norms), [x[rows] for x in norms], tolerance)
        loss = copied.validate(take(growth, rows), torch.arange(len(rows)), ablate=True).loss
        torch.testing.assert_close(loss, validation.loss[rows], rtol=tolerance, atol=0)


def test_the_order_of_rows_does_not_matter():
    population, growth = make_every_population()
    indices = minibatches(population.num_rows)
    order = torch.randperm(population.num_rows, generator=torch.Generator().manual_seed(0))
    shuffled = copy_rows(population, order)
    population.train_on(growth, indices)
    shuffled.train_on(take(growth, order), indices[order])
    for mine, theirs in zip(state(shuffled), state(population), strict=True):
        assert mine.equal(theirs[order])


def test_only_the_rows_asked_for_are_trained():
    population, growth = make_every_population()
    indices, rows = minibatches(population.num_rows), torch.tensor([5, 17, 3])
    whole, _ = make_every_population()
    before = state(population)
    host_norm, _ = population.train_on(growth, indices, rows)
    whole.train_on(growth, indices)
    others = ~torch.isin(all_rows(population), rows)
    for mine, trained, old in zip(state(population), state(whole), before, strict=True):
        assert mine[rows].equal(trained[rows])
        assert mine[others].equal(old[others])
    assert (host_norm > 0).equal(~others)


@pytest.fixture
def threads(request: pytest.FixtureRequest):
    """As many threads as asked for; the old number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def an_epoch(*, plain: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """All that training and validation give."""
    population, growth = make_every_population(dtype=dtype, plain=plain)
    norms = population.train_on(growth, minibatches(28, batches=2, size=16))
    validation = population.validate(growth, all_rows(population), ablate=True)
    return [*state(population), *norms, *vars(validation).values()]


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
def test_threads_change_nothing(threads):
    expected = an_epoch()
    torch.set_num_threads(1)
    for mine, theirs in zip(an_epoch(), expected, strict=True):
        assert mine.equal(theirs)


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_threads_are_as_many_as_before(threads):
    an_epoch()
    an_epoch(plain=True)
    assert torch.get_num_threads() == threads


def test_what_was_just_compiled_and_what_is_read_from_disk_give_the_same(tmp_path):
    code = (
        "import hashlib, torch\n"
        "from tests.envs.test_population import an_epoch\n"
        "digest = hashlib.sha256()\n"
        "for tensor in an_epoch(dtype=torch.float32):\n"
        "    digest.update(tensor.numpy().tobytes())\n"
        "print(digest.hexdigest())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        )
        for _ in range(2)
    ]
    assert ["compiling" in output.stderr for output in outputs] == [True, False]
    assert outputs[0].stdout == outputs[1].stdout


@pytest.mark.parametrize("piece", [1, 7, 59, 60, 1000])
def test_validation_in_pieces_is_the_same(monkeypatch, piece):
    expected = an_epoch()
    monkeypatch.setattr(envs.populations.compiled, "_PIECE", piece)
    for mine, theirs in zip(an_epoch(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("rows_at_once", "threads"), [(1, 1), (5, 2)], indirect=["threads"])
def test_chunks_and_threads_change_nothing_in_plain_passes(monkeypatch, rows_at_once, threads):
    results = []
    for limit in (2**30, rows_at_once * 4 * 256 * 16):
        monkeypatch.setitem(envs.populations.plain._CHUNK_BYTES, "cpu", limit)
        results.append(an_epoch(plain=True))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-11)


@both_passes
@pytest.mark.parametrize(
    ("where", "bad"),
    [("host", NAN), ("host", INF), ("seed", NAN), ("seed", -INF), ("velocity", INF)],
)
def test_a_bad_row_harms_no_other(where, bad, plain):
    population, growth = make_every_population(plain=plain)
    clean, _ = make_every_population(plain=plain)
    row = 11
    slot = int(torch.isin(growth.stage[row], torch.tensor(MIXED)).nonzero()[0])
    {
        "host": population.host_params,
        "seed": population.seed_params[slot],
        "velocity": population.buffers[0][:, : population.host_size],
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


def test_what_has_no_compiled_form_is_named_once(caplog):
    """Of the first layer that has none, and where it is."""
    envs.populations.trained._say_why_not_compiled.cache_clear()
    points, seeds = torch.zeros(9, 2), {"odd": lambda channels: nn.Mish()}
    host = ModuleHost(
        lambda: nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), ["0"], points[:1], seeds
    )
    task = ArrayTask(name="odd", host=host, train=(points, torch.arange(9) % 3), validation=3)
    for _ in range(2):
        MorphogenesisEnv(task, num_envs=1, num_slots=1, batches_per_epoch=1)
    (record,) = caplog.records
    assert record.getMessage() == (
        "the networks run in PyTorch, several times slower than compiled: in blueprint 'odd', "
        "the seed: no compiled form of nn.Mish"
    )
    caplog.clear()
    MorphogenesisEnv("digits", num_envs=1)
    assert not caplog.records
