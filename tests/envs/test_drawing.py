"""Fresh parameters of many networks: distributed as their factory's, by their keys alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from envs import ModuleHost
from envs.batched.randomness import fold
from envs.networks.blueprints import CONV_BLUEPRINTS, TEXT_BLUEPRINTS
from envs.networks.drawing import Initialisation


def keys(count: int, seed: int = 0) -> Tensor:
    return fold(torch.arange(count), seed)


def names_of(start: Initialisation) -> dict[str, int]:
    return {name: p.numel() for name, p in start.module.named_parameters()}


def drawn(factory: Callable[[], nn.Module], count: int) -> dict[str, Tensor]:
    start = Initialisation(factory)
    names = names_of(start)
    parts = start.draw(names, keys(count)).split([*names.values()], dim=1)
    return dict(zip(names, parts, strict=True))


def initialised(layer: nn.Module, init: Callable, *args: float) -> nn.Module:
    init(layer.weight, *args)
    return layer


class Direct(nn.Module):
    """Parameters that no layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(1e-4 * torch.ones(4))
        self.ramp = nn.Parameter(torch.linspace(0, 1, 5))
        self.token = nn.Parameter(torch.empty(1, 6).normal_(1.0, 0.02))


SEEN: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(8, 16, 3),
    "depthwise": lambda: nn.Conv2d(32, 32, 3, groups=32, bias=False),
    "linear": lambda: nn.Linear(30, 20),
    "embedding": lambda: nn.Embedding(30, 10),
    "norms": lambda: nn.Sequential(nn.GroupNorm(1, 9), nn.LayerNorm(5), nn.BatchNorm2d(3)),
    "attention": lambda: nn.MultiheadAttention(12, 3),
    "lstm": lambda: nn.LSTM(4, 6),
    "normal": lambda: initialised(nn.Linear(20, 20), nn.init.normal_, 0.5, 0.02),
    "kaiming": lambda: initialised(nn.Conv2d(4, 8, 3), nn.init.kaiming_normal_),
    "xavier": lambda: initialised(nn.Linear(20, 30), nn.init.xavier_uniform_),
    "zero": lambda: initialised(nn.Linear(20, 30), nn.init.zeros_),
    "direct": Direct,
    **{f"seed {name}": (lambda make=make: make(8)) for name, make in CONV_BLUEPRINTS.items()},
    **{f"text {name}": (lambda make=make: make(8)) for name, make in TEXT_BLUEPRINTS.items()},
}


@pytest.mark.parametrize("name", SEEN)
def test_many_are_drawn_as_the_factory_draws_each(name: str) -> None:
    """Mean, spread, extremes, and the share in the middle half of the range."""
    factory = SEEN[name]
    assert Initialisation(factory).laws is not None
    torch.manual_seed(0)
    made = [dict(factory().named_parameters()) for _ in range(200)]
    for parameter, values in drawn(factory, 400).items():
        theirs = torch.stack([each[parameter].detach().flatten() for each in made])
        assert values.dtype == torch.float32
        if theirs.var(0).max() == 0:
            assert values.equal(theirs[:1].expand(400, -1))
            continue
        spread, count = theirs.std(), values.numel() ** 0.5
        assert (values.mean() - theirs.mean()).abs() < 12 * spread / count
        torch.testing.assert_close(values.std(), spread, rtol=0.05, atol=0)
        middle = theirs.mean() + spread * torch.tensor([-0.5, 0.5])
        inside = [((x > middle[0]) & (x < middle[1])).float().mean() for x in (values, theirs)]
        assert abs(inside[0] - inside[1]) < 12 * 0.5 / count
        torch.testing.assert_close(values.max(), theirs.max(), rtol=0.4, atol=0)


class Random(nn.Module):
    """Made in a way that isn't seen through."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(4, 4), nn.Parameter(make())


def partly() -> Tensor:
    values = torch.zeros(4, 4)
    values[:2].uniform_(-1, 1)
    return values


UNSEEN: dict[str, Callable[[], Tensor]] = {
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(4, 4)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(4, 4)),
    "scaled": lambda: 0.1 * torch.randn(4, 4),
    "in part": partly,
    "sorted": lambda: torch.rand(16).sort().values,
    "permuted": lambda: torch.randperm(8).float(),
    "scaled in place": lambda: torch.empty(4, 4).normal_().mul_(0.1),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_is_drawn_otherwise_is_drawn_by_the_factory(name: str) -> None:
    def factory() -> nn.Module:
        return Random(UNSEEN[name])

    start = Initialisation(factory)
    assert start.laws is None
    rows = start.draw(names_of(start), torch.tensor([3, 8, 3]))
    assert rows[0].equal(rows[2])
    for seed, row in ((3, rows[0]), (8, rows[1])):
        torch.manual_seed(seed)
        wanted = [p.detach().flatten() for p in factory().parameters()]
        assert row.equal(torch.cat(wanted))


@pytest.mark.parametrize("factory", [SEEN["conv"], lambda: Random(UNSEEN["orthogonal"])])
def test_a_row_depends_on_its_key_alone(factory: Callable[[], nn.Module]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    start = Initialisation(factory)
    names = names_of(start)
    together = start.draw(names, keys(7))
    for i in (0, 3, 6):
        assert start.draw(names, keys(7)[i : i + 1]).equal(together[i : i + 1])
    assert start.draw(names, keys(7).flip(0)).equal(together.flip(0))
    assert len(together.unique(dim=0)) == 7
    assert torch.get_rng_state().equal(before)


def test_rows_share_nothing() -> None:
    start = Initialisation(lambda: nn.Linear(20, 20, bias=False))
    rows = start.draw({"weight": 400}, keys(50))
    correlation = torch.corrcoef(rows) - torch.eye(50)
    assert correlation.abs().max() < 5 / 20


def test_only_torchs_random_numbers_are_allowed() -> None:
    with pytest.raises(ValueError, match="from torch's random numbers alone, but 'other' differs"):
        Initialisation(lambda: Random(lambda: torch.from_numpy(np.random.rand(4))))


def test_a_factory_makes_a_module() -> None:
    with pytest.raises(TypeError, match=r"factory must make a torch.nn.Module, got int"):
        Initialisation(lambda: 3)


def test_lazy_modules_are_those_that_they_become() -> None:
    def lazy() -> nn.Module:
        layers = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.LazyLinear(10))

    def eager() -> nn.Module:
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(144, 10))

    seeds = {
        "lazy": lambda channels: nn.LazyConv2d(channels, 3, padding=1),
        "eager": lambda channels: nn.Conv2d(channels, channels, 3, padding=1),
    }
    keys = fold(torch.arange(3), 1)
    rows = []
    for factory in (lazy, eager):
        host = ModuleHost(factory, ["1"], torch.zeros(1, 1, 8, 8), seeds)
        drawn = [segment.draw(keys) for segment in (*host.segments, *host.seeds[0].values())]
        rows.append([values for pair in drawn for values in pair])
    for mine, theirs in zip(*rows, strict=True):
        assert mine.equal(theirs)
    assert rows[0][-2].equal(rows[0][-4])


def unused() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(256, 10))
    network[0].spare = nn.LazyLinear(3)
    return network


@pytest.mark.parametrize(
    "factory", [unused, lambda: nn.Linear(4, 4).to("meta")], ids=["lazy", "meta"]
)
def test_modules_without_numbers_are_refused(factory: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="factory must make a module with its numbers, got none"):
        Initialisation(factory, torch.zeros(1, 1, 8, 8))
