"""Draws that depend on their keys alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from envs.batched.randomness import Stream, fold, normal, random_bits, shuffled, uniform


def keys(count: int, seed: int = 0) -> Tensor:
    return fold(torch.arange(count), seed)


def chi_square(counts: Tensor) -> float:
    """How far counts are from equal, in standard deviations of a true χ² (about −3 to 4)."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_bits_are_those_of_splitmix64():
    """The published outputs of the generator at state 1234567, their upper 31 bits."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random_bits(torch.tensor([1234567]), 5).tolist() == [[x >> 33 for x in published]]


def test_bits_and_uniform_numbers_depend_on_their_key_alone():
    draws = [lambda k: random_bits(k, 9), lambda k: uniform(k, 9), lambda k: normal(k, 9)]
    for draw in (*draws, lambda k: shuffled(k, 9, 5)):
        together = draw(keys(6))
        for i in range(6):
            assert draw(keys(6)[i : i + 1]).equal(together[i : i + 1])


def test_a_longer_draw_starts_like_a_shorter_one():
    assert uniform(keys(3), 50)[:, :20].equal(uniform(keys(3), 20))


def test_uniform_numbers():
    drawn = uniform(keys(200), 1000)
    assert drawn.dtype == torch.float32
    assert -1 <= drawn.min() < -0.9999
    assert 0.9999 < drawn.max() < 1
    assert abs(chi_square(drawn.histc(100, -1, 1))) < 5
    neighbours = (drawn[:, 1:] * drawn[:, :-1]).mean() * 3
    assert neighbours.abs() < 5 / math.sqrt(drawn.numel())


def test_normal_numbers() -> None:
    """Moments, tails, and a shape: their places in the distribution are uniform."""
    drawn = normal(keys(200), 1000)
    assert drawn.dtype == torch.float32
    assert drawn.mean().abs() < 5 / math.sqrt(drawn.numel())
    assert drawn.var().item() == pytest.approx(1, abs=0.02)
    assert 4 < drawn.abs().max() < 7
    assert abs(chi_square(torch.special.ndtr(drawn.double()).histc(100, 0, 1))) < 5
    neighbours = (drawn[:, 1:] * drawn[:, :-1]).mean()
    assert neighbours.abs() < 5 / math.sqrt(drawn.numel())


def test_every_part_of_a_key_matters():
    """Seeds, rows, episodes, streams, epochs and slots, all against each other."""
    counts = (3, 70, 2, len(Stream), 70, 3)
    grid = torch.cartesian_prod(*(torch.arange(count) for count in counts))
    seed, row, episode, stream, epoch, slot = grid.unbind(1)
    made = fold(fold(seed, row, episode), stream, epoch, slot)
    assert len(made.unique()) == len(grid)
    first = uniform(made, 1).squeeze(1)
    assert abs(chi_square(first.histc(50, -1, 1))) < 5


@pytest.mark.parametrize("position", range(4))
def test_neighbouring_keys_share_nothing(position):
    """Counting any part of a key up by one flips about half of the bits of what it draws."""
    parts = [torch.arange(100, 400), *[torch.full((300,), x) for x in (3, 1, 4)]]
    old = random_bits(fold(*parts), 4)
    parts[position] = parts[position] + 1
    changed = old ^ random_bits(fold(*parts), 4)
    flipped = torch.stack([(changed >> bit) & 1 for bit in range(31)]).double()
    assert flipped.mean().item() == pytest.approx(0.5, abs=0.01)
    assert (flipped.flatten(1).mean(1) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(1200)


def test_the_order_of_a_keys_parts_matters():
    key = torch.tensor([5])
    made = [fold(key, 1, 2), fold(key, 2, 1), fold(key, 1), fold(fold(key, 1), 2), fold(key, 12)]
    assert len({int(x) for x in made}) == len(made)


def test_fold_takes_numbers_and_tensors_that_broadcast():
    rows = torch.arange(4)
    assert fold(rows, 3, Stream.SHUFFLE).equal(fold(rows, torch.full((4,), 3), torch.tensor(2)))
    assert fold(torch.tensor(1), rows).shape == (4,)
    assert fold(rows, -1).dtype == torch.int64


@pytest.mark.parametrize(("size", "count"), [(1, 1), (8, 8), (1297, 320), (1297, 1297)])
def test_shuffles_do_not_repeat(size, count):
    chosen = shuffled(keys(20), size, count)
    assert chosen.shape == (20, count)
    assert chosen.dtype == torch.int64
    ordered = chosen.sort(1).values
    assert (ordered.diff(dim=1) > 0).all()
    assert ordered.min() >= 0
    assert ordered.max() < size
    if count == size:
        assert ordered.equal(torch.arange(size).expand(20, -1))


def test_shuffles_are_uniform():
    """Every value is as likely as any other at every place, and so is every whole order."""
    chosen = shuffled(keys(12000), 4, 4)
    places = torch.stack([chosen[:, place].bincount(minlength=4) for place in range(4)])
    assert all(abs(chi_square(counts.double())) < 5 for counts in places)
    orders = (chosen * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(orders) == 24
    assert abs(chi_square(orders.double())) < 5


def test_shuffles_of_rows_and_epochs_differ():
    together = torch.cat([shuffled(fold(keys(10), epoch), 1297, 64) for epoch in range(5)])
    assert len(together.unique(dim=0)) == 50
