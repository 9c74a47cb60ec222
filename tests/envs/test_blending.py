"""Seeds mixed into features, against each formula with torch's own gradients."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from envs.batched.blending import blend, detach_first
from envs.batched.plan import Mode
from tests.support.layers import assert_same, draw, results

IN, OUT, BATCH = 4, 5, 7
FEATURES = (IN, 4, 2, BATCH)
GROUPS = [
    [(Mode.INCUBATE, 1), (Mode.ADD, 2), (Mode.GATE, 1)],
    [(Mode.MULTIPLY, 2)],
    [(Mode.INCUBATE, 2)],
    [(Mode.MULTIPLY, 1), (Mode.GATE, 2)],
]
MIXTURES = [GROUPS, GROUPS[:1], GROUPS[1:2], GROUPS[2:3]]


def random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def reference(mode: Mode, h: Tensor, seed: Tensor, weight: Tensor) -> Tensor:
    if mode is Mode.INCUBATE:
        return h + (seed - seed.detach())
    if mode is Mode.MULTIPLY:
        return h * (1 + weight.detach() * torch.tanh(seed - h))
    if mode is Mode.ADD:
        weight = weight.detach()
    return (1 - weight) * h + weight * seed


@pytest.mark.parametrize(("passing", "groups"), [*product([0, 2], MIXTURES), (2, [])])
@pytest.mark.parametrize("ablated", [None, [1, 0]])
def test_every_mode_is_its_formula(groups, passing, ablated):
    sizes = [sum(count for _, count in modes) for modes in groups]
    h = random(passing + sum(sizes), *FEATURES, seed=0)
    seeds = [random(n, *FEATURES, seed=1 + n) for n in sizes]
    weights = [random(n, 1, 1, 1, BATCH, seed=9 + n).sigmoid() for n in sizes]
    lanes = None if ablated is None else torch.tensor(ablated)

    def mixed(h: Tensor, *rest: Tensor) -> Tensor:
        return blend(h, rest[: len(groups)], rest[len(groups) :], groups, lanes)

    def one_by_one(h: Tensor, *rest: Tensor) -> Tensor:
        out, lane = list(h[:passing]), passing
        for modes, seed, weight in zip(
            groups, rest[: len(groups)], rest[len(groups) :], strict=True
        ):
            kinds = [mode for mode, count in modes for _ in range(count)]
            for mode, grown, w in zip(kinds, seed, weight, strict=True):
                out.append(reference(mode, h[lane], grown, w))
                lane += 1
        out += [h[i] for i in ablated or []]
        # Weights of a mode that doesn't learn them: a gradient of 0, not None.
        return torch.stack(out) + sum((0 * weight).sum() for weight in rest[len(groups) :])

    args = [h, *seeds, *weights]
    assert_same(results(mixed, args), results(one_by_one, args))


def incubate(features: Tensor, seed: Tensor) -> Tensor:
    weight = torch.zeros(len(seed), *[1] * (seed.dim() - 1), dtype=seed.dtype)
    return blend(features, [seed], [weight], [[(Mode.INCUBATE, len(seed))]])


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_detached_rows_pass_no_gradient_on(count):
    (x,) = draw(FEATURES)
    out, gradient = results(lambda x: detach_first(x, count) + 0 * x, [x])
    assert out.equal(x)
    assert (gradient[:count] == 0).all()
    assert (gradient[count:] != 0).all()


@pytest.mark.parametrize("fill", [None, float("inf"), float("-inf"), float("nan")])
def test_incubation_shows_nothing_and_teaches_the_seed(fill):
    features, seed = draw(FEATURES, FEATURES)
    if fill is not None:
        seed[:] = fill
    upstream = draw(FEATURES, seed=1)[0]
    out, host_gradient, seed_gradient = results(incubate, [features, seed], upstream)
    assert out.equal(features)
    assert host_gradient.equal(upstream)
    assert seed_gradient.equal(upstream)


@pytest.mark.parametrize("fill", [1.0, float("inf"), float("nan")])
def test_incubation_leaves_the_hosts_gradient_alone(fill):
    """A whole little network: host weight, incubated seed, another host weight."""
    x, first, seed, last = draw((IN, BATCH), (IN, IN), (IN, IN), (OUT, IN))
    seed[:] *= fill

    def grown(first: Tensor, seed: Tensor, last: Tensor) -> Tensor:
        h = first @ x
        return last @ incubate(h, seed @ h.detach()).tanh()

    def alone(first: Tensor, last: Tensor) -> Tensor:
        return last @ (first @ x).tanh()

    out, first_gradient, seed_gradient, last_gradient = results(grown, [first, seed, last])
    for mine, theirs in zip(
        [out, first_gradient, last_gradient], results(alone, [first, last]), strict=True
    ):
        assert mine.equal(theirs)
    assert seed_gradient.isfinite().all()
    assert (seed_gradient != 0).any()


def test_an_incubated_seed_learns_as_if_it_were_added():
    """Its gradient is that of ADD at α = 1 where its output happens to be the features."""
    x, seed, last = draw((IN, BATCH), (IN, IN), (OUT, IN))
    seed[:] = torch.eye(IN, dtype=torch.float64)
    incubated = results(lambda s, w: w @ incubate(x, s @ x).tanh(), [seed, last])
    added = results(lambda s, w: w @ (x + 1.0 * (s @ x - x)).tanh(), [seed, last])
    assert_same(incubated, added)
