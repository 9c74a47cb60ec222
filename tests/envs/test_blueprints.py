"""Every blueprint at every width: size, initial state, function, gradient, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import ModuleHost
from envs.actions import BLUEPRINTS
from envs.batched.randomness import fold
from envs.networks.blueprints import CONV_BLUEPRINTS, TEXT_BLUEPRINTS, WINDOW
from envs.networks.layers import RelativeAttention
from envs.networks.segments import Segment, make_seed, unflatten
from tests.support.engines import assert_engines_agree
from tests.support.layers import results, run_compiled, run_torch
from tests.support.plain import load_flat, plain_seed
from tests.support.plain_text import parameters_of, plain_text_seed
from tests.support.populations import make_population

IDENTITIES = ["attention", "norm", "bottleneck", "conv_small"]
ROWS, LENGTH, BATCH = 3, 40, 6
CONV = [(False, name, channels) for name in CONV_BLUEPRINTS for channels in (8, 16, 32)]
TEXT = [(True, name, channels) for name in TEXT_BLUEPRINTS for channels in (12, 48)]
every_seed = pytest.mark.parametrize(("text", "name", "channels"), CONV + TEXT)
every_text_seed = pytest.mark.parametrize("name", TEXT_BLUEPRINTS)


def seed_of(text: bool, name: str, channels: int) -> Segment:
    return make_seed((TEXT_BLUEPRINTS if text else CONV_BLUEPRINTS)[name], channels)


def features(text: bool, channels: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    """What comes out of a host's block, for all rows: not negative for images."""
    generator = torch.Generator().manual_seed(seed)
    shape = (length, channels) if text else (channels, 4, 4)
    drawn = torch.randn(ROWS, BATCH, *shape, dtype=torch.float64, generator=generator)
    return drawn if text else drawn.clamp(min=0)


def initial(seed: Segment, key: int = 0) -> Tensor:
    """Fresh parameters of all rows."""
    return seed.draw(fold(torch.arange(ROWS), key))[0].double()


def noisy(seed: Segment) -> Tensor:
    """Fresh parameters and noise, so that none has a special value."""
    start = initial(seed, 1)
    generator = torch.Generator().manual_seed(2)
    return start + 0.3 * torch.randn(start.shape, dtype=start.dtype, generator=generator)


def test_hosts_offer_the_blueprints_of_their_kind() -> None:
    offered = make_population().offered
    assert [BLUEPRINTS[i] for i in offered.nonzero().squeeze(1)] == [
        name for name in BLUEPRINTS if name in CONV_BLUEPRINTS
    ]
    assert set(CONV_BLUEPRINTS) | set(TEXT_BLUEPRINTS) | {"noop"} == set(BLUEPRINTS)


@every_seed
def test_it_is_the_independent_module(text: bool, name: str, channels: int) -> None:
    """Number of parameters, function and all gradients."""
    seed = seed_of(text, name, channels)
    params, h = noisy(seed), features(text, channels)
    for row in range(ROWS):
        plain = (plain_text_seed if text else plain_seed)(name, channels).double()
        own = parameters_of(plain)
        assert [p.numel() for p in own] == [shape.numel() for shape in seed.shapes.values()]
        load_flat(own, params[row])
        out, flat, of_input = results(lambda p, x: seed(p[None], x[None])[0], [params[row], h[row]])
        x = h[row].clone().requires_grad_()
        expected = plain(x)
        upstream = torch.randn(
            out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9)
        )
        gradients = torch.autograd.grad(expected, [x, *own], upstream)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(of_input, gradients[0], rtol=1e-9, atol=1e-9)
        flat_gradient = torch.cat([g.flatten() for g in gradients[1:]])
        torch.testing.assert_close(flat, flat_gradient, rtol=1e-8, atol=1e-8)


@every_seed
def test_compiled_it_is_the_same(text: bool, name: str, channels: int) -> None:
    seed = seed_of(text, name, channels)
    module = seed.module(noisy(seed)[0], torch.zeros(0))
    args = [features(text, channels)[0], *(p.detach() for p in module.parameters())]
    expected, actual = (
        results(run_torch(module), args),
        results(run_compiled(module, last=text), args),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@every_seed
def test_initial_state(text: bool, name: str, channels: int) -> None:
    """The identity; or, with convolutions in front of a norm, something else in every example."""
    seed, h = seed_of(text, name, channels), features(text, channels)
    out = seed(initial(seed), h)
    if text or name in IDENTITIES:
        assert out.equal(h)
    else:
        assert ((out - h).abs().flatten(2).amax(2) > 0.1).all()
    keys = initial(seed), initial(seed, 5)
    assert keys[0].equal(keys[1]) == (name in ("norm", "conv_small"))


@every_seed
def test_it_learns(text: bool, name: str, channels: int) -> None:
    """From its initial state it comes close to another seed of its kind, and all of it moves.

    All of it in one row at least: the few ReLUs of ``attention`` may be silent in another.
    """
    seed, h = seed_of(text, name, channels), features(text, channels, length=12)
    target = seed(noisy(seed), h)
    start = initial(seed)
    params = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([params], lr=0.03)
    losses = []
    for _ in range(60):
        loss = (seed(params, h) - target).square().flatten(1).mean(1)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert (losses[-1] < 0.6 * losses[0]).all()
    moved = (params.detach() - start).abs()
    for tensor, change in unflatten(moved, seed.shapes).items():
        assert change.max() > 1e-3, tensor


@every_text_seed
def test_a_position_sees_nothing_after_it(name: str) -> None:
    seed, x = seed_of(True, name, 12), features(True, 12)
    later = x.clone()
    later[:, :, 20] = later[:, :, 20].flip(1)
    params = noisy(seed)
    before, after = seed(params, x), seed(params, later)
    assert after[:, :, :20].equal(before[:, :, :20])
    assert not after[:, :, 20].allclose(before[:, :, 20])
    changed = (after != before).any(0).any(0).any(-1).nonzero().flatten().tolist()
    last = {"attention": LENGTH, "flex_attention": 20 + WINDOW}.get(name, 21)
    assert changed == list(range(20, last))


def test_heads_of_a_window_start_at_their_own_distance() -> None:
    """Values that are the position's number, read by heads that look one to four places back."""
    attend = RelativeAttention(4, WINDOW)
    numbers = torch.arange(float(LENGTH))[:, None].expand(-1, 4)
    projected = torch.cat([torch.zeros(LENGTH, 8), numbers], dim=1)[None]
    back = 30 - attend(projected)[0, 30]
    share = math.exp(3) / (math.exp(3) + WINDOW - 1)
    wanted = [share * own + (1 - share) / 7 * (sum(range(WINDOW)) - own) for own in (1, 2, 3, 4)]
    assert back.tolist() == pytest.approx(wanted, abs=1e-4)


class Block(nn.Module):
    def __init__(self, text: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8) if text else nn.Conv2d(2, 8, 3, padding=1)
        self.last = nn.Linear(8, 3)
        self.text = text

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        return self.last(h) if self.text else self.last(h.mean((2, 3)))


@pytest.mark.parametrize("text", [False, True])
def test_all_of_them_train_in_a_slot_on_both_engines(text: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (40, 9, 3) if text else (40, 2, 6, 6)
    inputs = torch.randn(shape, generator=generator).double()
    targets = torch.arange(40 * 9).view(40, 9) % 3 if text else None
    for start in range(0, 7, 3):
        chosen = list((TEXT_BLUEPRINTS if text else CONV_BLUEPRINTS).items())[start : start + 3]
        host = ModuleHost(lambda: Block(text), ["first"], inputs[:1].float(), dict(chosen))
        assert_engines_agree(host, inputs, targets=targets)
