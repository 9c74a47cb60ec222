"""Growth in a loop of one's own: what it leaves alone, what it refuses, and what people see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from envs import GrowingNetwork
from envs.actions import BLUEPRINTS, Op
from esper_rl import Grower
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    HeuristicPolicy,
    RandomPolicy,
    WaitPolicy,
)
from tests.support.own_loop import BLUEPRINTS_HERE, IMAGES, SGD, SLOTS, OwnLoop, busy, host

# -- what it leaves alone --------------------------------------------------------------------


def test_random_numbers_of_the_loop_are_left_as_they_are() -> None:
    """Also by policies that draw, by seeds that are made, and by further validations."""
    loop = OwnLoop(RandomPolicy(), 10)

    def draws() -> tuple[float, float]:
        torch.rand(3)
        return 1.0, float(torch.rand(())) * 100

    for epoch in range(10):
        generator = torch.Generator().manual_seed(epoch)
        loop.train(torch.randperm(120, generator=generator)[:20].view(1, 20))
        torch.manual_seed(epoch)
        step = loop.grower.step(draws)
        after = torch.rand(())
        torch.manual_seed(epoch)
        draws()
        assert torch.rand(()).equal(after)
        assert not any(step.contributions)  # the same numbers with every seed left out


def test_modes_are_restored_module_by_module() -> None:
    loop = OwnLoop(WaitPolicy(), 3)
    frozen = loop.network.pieces[1]
    loop.train(torch.arange(20).view(1, 20))
    frozen.eval()
    seen = []
    loop.grower.step(lambda: seen.append(loop.network.training) or loop.validate())
    assert seen == [False]
    assert loop.network.training
    assert not frozen.training


def test_contributions_can_be_measured_seldom_and_with_fewer_examples() -> None:
    loop = OwnLoop(FixedSchedulePolicy(blueprint=BLUEPRINTS.index("norm")), 14, measure_every=4)
    calls: list[str] = []

    def whole() -> tuple[float, float]:
        calls.append("whole")
        return loop.validate()

    def compare() -> tuple[float, float]:
        calls.append("compare")
        return loop.validate()

    counts = []
    for epoch in range(14):
        loop.train(torch.arange(20).view(1, 20))
        calls.clear()
        step = loop.grower.step(whole, compare)
        assert calls.count("whole") == 1
        counts.append(calls.count("compare"))
        due = epoch % 4 == 0 and loop.grower.history[-2].alphas[0] > 0 if epoch else False
        fossilized = epoch > 0 and loop.grower.history[-2].op is Op.FOSSILIZE
        assert counts[-1] == (2 if due or fossilized else 0), (epoch, step)
    assert sum(counts) >= 6


# -- misuse ----------------------------------------------------------------------------------


def test_a_step_without_training_is_refused() -> None:
    loop = OwnLoop(WaitPolicy(), 3)
    with pytest.raises(RuntimeError, match=r"must be trained for an epoch .* call begin\(validate"):
        loop.grower.step(loop.validate)
    loop.epoch(0)
    with pytest.raises(RuntimeError, match="must be trained"):
        loop.grower.step(loop.validate)
    with pytest.raises(RuntimeError, match="begin must be called before anything is trained"):
        loop.grower.begin(loop.validate)


def test_a_validation_that_trains_is_refused() -> None:
    loop = OwnLoop(WaitPolicy(), 3)
    loop.epoch(0)
    loop.train(torch.arange(20).view(1, 20))

    def trains() -> tuple[float, float]:
        with torch.enable_grad():
            loop.train(torch.arange(20).view(1, 20))
        return loop.validate()

    with pytest.raises(RuntimeError, match="validate must leave the network as it is"):
        loop.grower.step(trains)
    assert loop.network.training
    assert loop.grower.step(loop.validate).epoch == 1


def test_a_step_that_fails_can_be_made_again() -> None:
    """With the same gradient norms, and as if it hadn't failed."""
    loops = OwnLoop(busy(0), 12, seed=2), OwnLoop(busy(0), 12, seed=2)
    for epoch in range(12):
        for loop in loops:
            loop.train(torch.arange(epoch, epoch + 40).view(2, 20))
        with pytest.raises(ValueError, match="from 0 to 100"):
            loops[0].grower.step(lambda: (1.0, 1000.0))
        steps = [loop.grower.step(loop.validate) for loop in loops]
        assert steps[0] == steps[1]
        mine, theirs = (loop.grower.state for loop in loops)
        assert mine.slots.gradient_norm.equal(theirs.slots.gradient_norm)
        assert mine.host_gradient_norm > 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ((1.0, 101.0), ValueError, "from 0 to 100.*got 101"),
        ((1.0, -1.0), ValueError, "from 0 to 100.*got -1"),
        ((1.0, math.nan), ValueError, "from 0 to 100.*got nan"),
        (0.5, TypeError, "two numbers, loss and score, got 0.5"),
        (None, TypeError, "two numbers, loss and score, got None"),
        ((1.0, 2.0, 3.0), TypeError, "two numbers"),
        ((math.nan, 50.0), ValueError, "first loss of validate must be finite"),
    ],
)
def test_bad_measurements_are_refused(given: object, error: type[Exception], words: str) -> None:
    loop = OwnLoop(WaitPolicy(), 3)
    loop.train(torch.arange(20).view(1, 20))
    with pytest.raises(error, match=words):
        loop.grower.step(lambda: given)
    assert loop.grower.step(loop.validate).epoch == 0


def make_grower(**changes: object) -> Grower:
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], BLUEPRINTS_HERE)
    options = {"network": network, "optimizer": SGD(network.parameters())}
    options |= {"policy": WaitPolicy(), "max_epochs": 5}
    return Grower(**options | changes)


def test_networks_and_optimizers_that_dont_fit_are_refused() -> None:
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], BLUEPRINTS_HERE)
    with pytest.raises(TypeError, match="network must be a GrowingNetwork, got Sequential"):
        make_grower(network=host())
    with pytest.raises(TypeError, match="got OptimizedModule; give the network itself"):
        make_grower(network=torch.compile(network))
    pieces = GrowingNetwork([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="network must know what can be planted"):
        make_grower(network=pieces)
    some = SGD(network.pieces[0].parameters())
    with pytest.raises(ValueError, match=r"all parameters .* none for 'pieces\.1\.2\.weight'"):
        make_grower(network=network, optimizer=some)
    with pytest.raises(ValueError, match="groups of dense parameters, got LBFGS"):
        make_grower(network=network, optimizer=torch.optim.LBFGS(network.parameters()))
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        make_grower(optimizer=network.parameters())
    with pytest.raises(TypeError, match="policy must be the folder of a run, or callable, got 3"):
        make_grower(policy=3)
    with pytest.raises(FileNotFoundError):
        make_grower(policy="no/such/run")
    for name, value in {"max_epochs": 0, "measure_every": 0, "seed_lr": -1.0}.items():
        with pytest.raises(ValueError, match=name):
            make_grower(**{name: value})


def test_blueprints_that_dont_fit_a_slot_are_refused() -> None:
    wide = {"wide": lambda channels: nn.Conv2d(channels, channels + 1, 1)}
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], wide)
    with pytest.raises(ValueError, match="'wide' must give features of the shape that it takes"):
        make_grower(network=network, optimizer=SGD(network.parameters()))


def test_frozen_parameters_need_not_be_in_the_optimizer() -> None:
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], BLUEPRINTS_HERE)
    network.pieces[0].requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    make_grower(network=network, optimizer=SGD(trained))


# -- what people see -------------------------------------------------------------------------


class Writer:
    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.setdefault(tag, []).append((global_step, scalar_value))


def test_it_tells_what_it_does(capsys) -> None:
    writer = Writer()
    policy = HeuristicPolicy(blueprint=BLUEPRINTS.index("norm"), patience=1)
    loop = OwnLoop(policy, 12, verbose=True, writer=writer)
    for epoch in range(12):
        loop.epoch(epoch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    planted = next(line for line in lines if "GERMINATE" in line)
    assert "slot 0 norm" in planted
    history = loop.grower.history
    assert writer.scalars["grow/score"] == [(step.epoch, step.score) for step in history]
    assert [value for _, value in writer.scalars["grow/slot0/alpha"]] == [
        step.alphas[0] for step in history
    ]
