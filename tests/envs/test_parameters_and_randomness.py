"""Parameter rows and their init against torch's; draws that depend on their keys alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from envs.batched.parameters import Parameter, ParameterLayout, bias, norm, weight, zeros
from envs.batched.randomness import Stream, fold, random_bits, shuffled, uniform

ENTRIES = [
    weight("conv", 6, 4, 3, 3),
    *norm("norm", 6),
    weight("linear", 10, 6),
    bias("linear_bias", 10, 6),
    zeros("mix", 5),
]


def keys(count: int, seed: int = 0) -> Tensor:
    return fold(torch.arange(count), seed)


def chi_square(counts: Tensor) -> float:
    """How far counts are from equal, in standard deviations of a true χ² (about −3 to 4)."""
    expected = counts.sum() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


# -- parameters -------------------------------------------------------------------------------


def test_layout_round_trip():
    layout = ParameterLayout(ENTRIES)
    rows = torch.arange(3 * layout.size).view(3, -1).float()
    named = layout.unflatten(rows)
    assert list(named) == [entry.name for entry in ENTRIES]
    assert [tensor.shape[1:] for tensor in named.values()] == [e.shape for e in ENTRIES]
    assert torch.cat([tensor.flatten(1) for tensor in named.values()], dim=1).equal(rows)
    assert layout.size == 6 * 4 * 9 + 6 + 6 + 60 + 10 + 5


def test_unflatten_makes_no_copy():
    rows = torch.zeros(2, ParameterLayout(ENTRIES).size)
    ParameterLayout(ENTRIES).unflatten(rows)["linear"][1] = 1.0
    assert rows[0].sum() == 0
    assert rows[1].sum() == 60


@pytest.mark.parametrize(
    ("module", "entry"),
    [
        (nn.Conv2d(32, 64, 3, bias=False), weight("w", 64, 32, 3, 3)),
        (nn.Conv2d(64, 64, 1, bias=False), weight("w", 64, 64)),
        (nn.Conv2d(256, 256, 3, groups=256, bias=False), weight("w", 256, 1, 3, 3)),
        (nn.Linear(32, 200), weight("w", 200, 32)),
    ],
    ids=["3x3", "1x1", "depthwise", "linear"],
)
def test_weights_start_as_torchs_do(module, entry):
    torch.manual_seed(0)
    module.reset_parameters()
    ours = ParameterLayout([entry]).draw(keys(4))
    assert ours[0].numel() == module.weight.numel()
    largest = module.weight.abs().max().item()
    assert largest <= entry.bound <= 1.01 * largest
    assert ours.std().item() == pytest.approx(module.weight.std().item(), rel=0.05)


def test_biases_start_as_torchs_do():
    torch.manual_seed(0)
    largest = nn.Linear(32, 2000).bias.abs().max().item()
    assert largest <= bias("b", 2000, 32).bound <= 1.01 * largest


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_drawn_values_are_uniform_in_their_bounds(entry):
    drawn = ParameterLayout(ENTRIES).unflatten(ParameterLayout(ENTRIES).draw(keys(500)))
    values = drawn[entry.name].flatten()
    assert values.dtype == torch.float32
    if entry.bound == 0:
        assert (values == entry.value).all()
        return
    inside = (values - entry.value) / entry.bound
    assert inside.min() >= -1
    assert inside.max() < 1
    assert inside.mean().abs() < 4 / math.sqrt(3 * len(inside))
    assert abs(chi_square(inside.histc(20, -1, 1))) < 5


def test_values_are_shifted_by_their_constant():
    entry = Parameter("p", (1000,), bound=0.5, value=2.0)
    drawn = ParameterLayout([entry]).draw(keys(1))
    assert drawn.min() >= 1.5
    assert drawn.max() < 2.5
    assert drawn.mean().item() == pytest.approx(2.0, abs=0.05)


def test_a_row_draws_the_same_parameters_whoever_else_draws():
    layout = ParameterLayout(ENTRIES)
    together = layout.draw(keys(7))
    for i in (0, 3, 6):
        assert layout.draw(keys(7)[i : i + 1]).equal(together[i : i + 1])
    assert layout.draw(keys(7).flip(0)).equal(together.flip(0))


def test_rows_draw_different_parameters():
    drawn = ParameterLayout([weight("w", 20, 20)]).draw(keys(50))
    correlation = torch.corrcoef(drawn) - torch.eye(50)
    assert correlation.abs().max() < 5 / math.sqrt(400)


# -- randomness -------------------------------------------------------------------------------


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
    for draw in (lambda k: random_bits(k, 9), lambda k: uniform(k, 9), lambda k: shuffled(k, 9, 5)):
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
