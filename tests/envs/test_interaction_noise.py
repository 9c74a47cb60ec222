"""How far chance reaches in an interaction, and that it isn't remembered as help."""

from __future__ import annotations

import pytest
import torch

from envs import MorphogenesisEnv
from envs.credit import interaction_noise, interactions, record_measurements
from envs.populations.base import Validation
from tests.support.environments import GROW, play, small_env
from tests.support.slots import make


def test_noise_is_that_of_four_counted_accuracies():
    """By drawing answers of so many questions, each right by its own chance."""
    generator = torch.Generator().manual_seed(0)
    shares, answers, draws = torch.tensor([0.9, 0.6, 0.5, 0.1]), 200, 20_000
    chances = shares.expand(draws, answers, 4)
    right = torch.bernoulli(chances, generator=generator).sum(1)
    accuracy = right * 100 / answers
    found = interactions(accuracy[:, :1] - accuracy, 2)[:, 0, 1]
    variance = shares * (1 - shares) / answers * 100**2
    noise = interaction_noise(variance[None], 2)
    assert noise.shape == (1, 2, 2)
    assert noise[0, 0, 1].item() == pytest.approx(found.std().item(), rel=0.02)


def test_what_may_be_chance_is_no_help():
    """Interactions a little below and a little above two standard errors of 500 answers."""
    for points, remembered in ((8.8, False), (9.0, True)):
        slots = make(num_slots=2)
        lost = torch.tensor([[0.0, points, 0.0, 0.0]])
        half = torch.full((1, 4), 0.25 / 500 * 100**2)
        validation = Validation(torch.ones(1), torch.ones(1), lost, half, lost[:, :2] >= 0)
        record_measurements(slots, validation, torch.tensor([True]))
        assert slots.interaction[0, 0, 1] == pytest.approx(points)
        assert slots.peak[0].any() == remembered


def test_validation_tells_how_far_chance_reaches():
    env = small_env(max_epochs=40, validation_size=200)
    play(env, [{**heads, "slot": slot} for slot in range(3) for heads in GROW])
    inputs, rows = env.slot_inputs(env.state.slots), torch.arange(env.num_envs)
    found = env.population.validate(inputs, rows, ablate=True)
    share = (found.accuracy[:, None] - found.lost).double() / 100
    expected = share * (1 - share) / 200 * 100**2
    torch.testing.assert_close(found.variance.double(), expected, rtol=1e-4, atol=1e-4)
    assert found.lost[:, 1:].any()


def test_formulas_are_exact():
    world = MorphogenesisEnv("scaffold", num_envs=2, seed=0)
    offered = int(world.population.offered.nonzero()[0])
    play(world, [{**heads, "blueprint": offered} for heads in GROW])
    inputs = world.slot_inputs(world.state.slots)
    assert inputs.mixed.any()
    found = world.population.validate(inputs, torch.arange(2), ablate=True)
    assert not found.variance.any()
