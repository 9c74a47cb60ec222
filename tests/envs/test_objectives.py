"""Losses and scores: as PyTorch and scikit-learn compute them, on both engines."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import r2_score
from torch import Tensor, nn

from envs import ArrayTask, ModuleHost, MorphogenesisEnv
from envs.batched.randomness import fold
from envs.populations.compiled import CompiledPasses
from envs.populations.objectives import OBJECTIVES
from envs.populations.plain import PlainPasses
from tests.support.engines import ROWS, assert_engines_agree, growth, population
from tests.support.environments import act

POINTS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
SEQUENCES = torch.randn(40, 5, 6, generator=torch.Generator().manual_seed(1)).double()
IMAGES = torch.randn(40, 2, 4, 4, generator=torch.Generator().manual_seed(2)).double()
WEIGHTS = torch.tensor([0.5, 2.0, 1.0])
SEEDS = {"mlp": lambda channels: nn.Sequential(nn.Linear(channels, channels), nn.Tanh())}


def flat_host() -> ModuleHost:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    return ModuleHost(network, ["0", "1"], torch.zeros(1, 6), SEEDS)


def sequence_host() -> ModuleHost:
    """Three numbers for each of five positions, behind them."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    return ModuleHost(network, ["0", "1"], torch.zeros(1, 5, 6), SEEDS)


def image_host() -> ModuleHost:
    """Three numbers for each pixel, in front."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def seed(channels: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 1)

    return ModuleHost(network, ["0", "1"], torch.zeros(1, 2, 4, 4), {"conv": seed})


HOSTS: dict[str, tuple[Any, Tensor, tuple[int, ...]]] = {
    "flat": (flat_host, POINTS, ()),
    "sequence": (sequence_host, SEQUENCES, (5,)),
    "image": (image_host, IMAGES, (4, 4)),
}
LOSSES: dict[str, nn.Module] = {
    "classes": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(weight=WEIGHTS),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "ignoring": nn.CrossEntropyLoss(ignore_index=1),
    "all of it": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.3, ignore_index=2),
    "labels": nn.BCEWithLogitsLoss(),
    "weighted labels": nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)),
    "squares": nn.MSELoss(),
}
UNCOMPILED: dict[str, nn.Module] = {
    "absolute": nn.L1Loss(),
    "huber": nn.HuberLoss(delta=0.5),
    "smooth": nn.SmoothL1Loss(beta=0.5),
}


def targets(loss: nn.Module, answers: tuple[int, ...], last: bool) -> Tensor:
    """Of 40 examples; three numbers each lie behind the answers if ``last``, else in front."""
    generator = torch.Generator().manual_seed(3)
    if isinstance(loss, nn.CrossEntropyLoss):
        return torch.randint(3, (40, *answers), generator=generator)
    shape = (40, *answers, 3) if last else (40, 3, *answers)
    numbers = torch.randn(shape, generator=generator)
    return (numbers > 0).float() if isinstance(loss, nn.BCEWithLogitsLoss) else numbers * 2 + 1


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", LOSSES)
def test_both_engines_learn_the_same(name: str, host: str) -> None:
    make, inputs, answers = HOSTS[host]
    wanted = targets(LOSSES[name], answers, last=False)
    assert_engines_agree(make(), inputs, targets=wanted, loss=LOSSES[name])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", {**LOSSES, **UNCOMPILED})
def test_a_row_learns_what_a_plain_loop_learns(name: str, host: str) -> None:
    """An epoch by SGD, then loss and score, of networks with and without seeds."""
    make, inputs, answers = HOSTS[host]
    loss = {**LOSSES, **UNCOMPILED}[name]
    own = make()
    wanted = targets(loss, answers, last=own.classes_last)
    made = population(own, inputs, own.channels_of_outputs_first(wanted), loss=loss)
    rows = torch.arange(ROWS)
    made.reset_hosts(rows, fold(rows, 1))
    slots = growth(made)
    made.plant(slots.blueprint >= 0, slots.blueprint, fold(rows[:, None] + torch.arange(2), 2))
    networks = [made.network(row, slots) for row in range(ROWS)]
    examples = made.data.draw(fold(rows, 3))
    made.train_on(slots, examples)
    seen = made.validate(slots, rows, ablate=False)
    for row, network in enumerate(networks):
        seeds = [p for slot in network.slots for p in slot.parameters()]
        host_parameters = {"params": [*network.pieces.parameters()], "lr": 0.05}
        groups = [host_parameters, {"params": seeds, "lr": 0.03}]
        stepper = torch.optim.SGD(groups if seeds else groups[:1], momentum=0.9)
        for chosen in examples[row]:
            stepper.zero_grad()
            double_loss(loss, network.train()(inputs[chosen]), wanted[chosen], own).backward()
            stepper.step()
        with torch.no_grad():
            outputs = network.eval()(inputs)
        expected = double_loss(loss, outputs, wanted, own)
        torch.testing.assert_close(seen.loss[row], expected, rtol=1e-6, atol=1e-9)
        score = score_of(loss, own.channels_of_outputs_first(outputs), wanted, own)
        assert seen.accuracy[row].item() == pytest.approx(score, abs=1e-5)


def double_loss(loss: Any, outputs: Tensor, wanted: Tensor, host: ModuleHost) -> Tensor:
    if isinstance(loss, nn.CrossEntropyLoss):
        outputs = host.channels_of_outputs_first(outputs)
        weight = None if loss.weight is None else loss.weight.double()
        options = {"ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
        return F.cross_entropy(outputs, wanted, weight, **options)
    return loss(outputs, wanted.double())


def score_of(loss: Any, outputs: Tensor, wanted: Tensor, host: ModuleHost) -> float:
    """Percent, independently."""
    if isinstance(loss, nn.CrossEntropyLoss):
        asked = wanted != loss.ignore_index
        return (outputs.argmax(1) == wanted)[asked].double().mean().item() * 100
    wanted = host.channels_of_outputs_first(wanted)
    if isinstance(loss, nn.BCEWithLogitsLoss):
        return ((outputs > 0) == (wanted > 0.5)).double().mean().item() * 100
    theirs, mine = (x.movedim(1, -1).flatten(0, -2).numpy() for x in (wanted, outputs))
    return max(0.0, 100 * r2_score(theirs, mine, multioutput="variance_weighted"))


def test_what_has_no_compiled_form_is_named(caplog: pytest.LogCaptureFixture) -> None:
    wanted = targets(nn.BCEWithLogitsLoss(), (), last=False)
    with caplog.at_level(logging.WARNING):
        made = population(flat_host(), POINTS, wanted, loss=nn.BCEWithLogitsLoss(weight=WEIGHTS))
    assert isinstance(made.passes, PlainPasses)
    assert "no compiled form of nn.BCEWithLogitsLoss with weight" in caplog.text


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
def test_a_minibatch_without_a_target_teaches_nothing(plain: bool) -> None:
    wanted = torch.full((40,), -100)
    wanted[0] = 1
    made = population(flat_host(), POINTS, wanted)
    assert isinstance(made.passes, CompiledPasses)
    if plain:
        made.passes = PlainPasses(made.networks, made.data, made.optimizer)
    rows = torch.arange(ROWS)
    made.reset_hosts(rows, fold(rows, 1))
    before = made.params.clone()
    slots = growth(made)
    slots.blueprint[:] = -1
    made.train_on(slots, torch.arange(1, 17).view(1, 2, 8).expand(ROWS, 2, 8))
    assert made.params.equal(before)
    assert made.validate(slots, rows, ablate=True).accuracy.unique().tolist() in (
        [0],
        [0, 100],
        [100],
    )


def test_a_network_that_explodes_scores_nothing() -> None:
    made = population(flat_host(), POINTS, targets(nn.MSELoss(), (), last=False), loss=nn.MSELoss())
    rows = torch.arange(ROWS)
    made.reset_hosts(rows, fold(rows, 1))
    made.params[0, 0], made.params[1] = math.nan, 1e200
    seen = made.validate(growth(made), rows, ablate=True)
    assert seen.accuracy[:2].tolist() == [0, 0]
    assert all(x.isfinite().all() for x in (seen.accuracy, seen.lost, seen.variance))


# -- tasks ----------------------------------------------------------------------------------------


def task(loss: nn.Module, wanted: Tensor, outputs: int = 1, **options: Any) -> ArrayTask:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))

    host = ModuleHost(network, ["0"], torch.zeros(1, 6), SEEDS)
    return ArrayTask(
        name="mine", host=host, train=(POINTS, wanted), validation=10, loss=loss, **options
    )


def test_a_regression_is_learned_and_scored_in_percent() -> None:
    wanted = (POINTS @ torch.arange(6.0).double() / 5 + 2).float()
    env = MorphogenesisEnv(
        task(nn.MSELoss(), wanted, host_lr=0.01), num_envs=4, num_slots=1, seed=0
    )
    spread = env.task.validation.targets.var(correction=0).item()
    assert env.task.guessing_loss == pytest.approx(spread)
    assert env.task.loss_limit == pytest.approx(4 * spread)
    state = env.reset()
    for _ in range(20):
        state = act(env, state)
    accuracy = env.state.history.accuracy
    assert accuracy.min() > 50
    assert accuracy.max() <= 100


def test_labels_are_guessed_at_ln_2() -> None:
    wanted = (POINTS[:, :3] > 0).float()
    made = task(nn.BCEWithLogitsLoss(), wanted, outputs=3)
    assert made.guessing_loss == pytest.approx(math.log(2))
    assert made.loss_limit == 10
    env = MorphogenesisEnv(made, num_envs=2, num_slots=1)
    env.rollout(3)
    assert env.state.history.accuracy.max() <= 100


Bad = tuple[nn.Module, Tensor, int, type[Exception], str]
ONES = torch.ones(40)
BAD: dict[str, Bad] = {
    "sum": (nn.MSELoss(reduction="sum"), POINTS[:, 0], 1, ValueError, "loss must have reduction"),
    "other": (nn.NLLLoss(), POINTS[:, 0], 1, TypeError, r"loss must be one of nn.*got NLLLoss\(\)"),
    "constant": (nn.MSELoss(), ONES, 1, ValueError, "train targets must be numbers that differ"),
    "columns": (nn.MSELoss(), POINTS[:, :2], 3, ValueError, r"of shape \[M, 3\], a number for"),
    "infinite": (nn.L1Loss(), ONES * math.inf, 1, ValueError, "finite, got inf in example 0"),
    "label": (nn.BCEWithLogitsLoss(), 2 * ONES, 1, ValueError, "labels from 0 to 1, got 2.0"),
    "weights": (nn.CrossEntropyLoss(WEIGHTS), ONES, 2, ValueError, "each of 2 classes, got 3"),
    "ignored": (nn.CrossEntropyLoss(), -100 * ONES, 2, ValueError, "got none but those to be"),
}


@pytest.mark.parametrize("case", BAD)
def test_these_are_refused_by_name(case: str) -> None:
    loss, wanted, outputs, error, says = BAD[case]
    with pytest.raises(error, match=says):
        task(loss, wanted, outputs)


def test_all_losses_are_tried_here() -> None:
    assert {type(loss) for loss in (*LOSSES.values(), *UNCOMPILED.values())} == {*OBJECTIVES}


def test_the_loss_tells_runs_apart() -> None:
    wanted = torch.arange(40) % 3
    losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(WEIGHTS), nn.CrossEntropyLoss(2 * WEIGHTS)]
    assert len({str(task(loss, wanted, 3).numbers()) for loss in losses}) == 3
