"""Every blueprint at every width: size, initial state, function, gradient, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from envs.actions import BLUEPRINTS
from envs.batched.randomness import fold
from envs.blueprints import CONV_BLUEPRINTS
from tests.support.plain import load_flat, plain_seed
from tests.support.populations import batch_first, batch_last, flat, make_population

CHANNELS = [8, 16, 32]
NAMES = ["conv_light", "attention", "norm", "depthwise", "bottleneck", "conv_small", "conv_heavy"]
IDENTITIES = ["attention", "norm", "bottleneck", "conv_small"]
STARTS_AT_ZERO = {"attention": "excite", "bottleneck": "up", "conv_small": "conv"}
ROWS, SIZE, BATCH = 3, 4, 6

every_blueprint = pytest.mark.parametrize("name", NAMES)
every_width = pytest.mark.parametrize("channels", CHANNELS)


def features(channels: int, seed: int = 0) -> Tensor:
    """What comes out of a host's block: not negative."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, channels, SIZE, SIZE, BATCH)
    return torch.randn(shape, dtype=torch.float64, generator=generator).clamp(min=0)


def initial(name: str, channels: int, seed: int = 0) -> Tensor:
    """Fresh parameters of all rows."""
    return CONV_BLUEPRINTS[name](channels).layout.draw(fold(torch.arange(ROWS), seed)).double()


def noisy(name: str, channels: int, scale: float = 0.3) -> Tensor:
    """Fresh parameters and noise, so that none has a special value."""
    start = initial(name, channels, seed=1)
    generator = torch.Generator().manual_seed(2)
    return start + scale * torch.randn(start.shape, dtype=start.dtype, generator=generator)


def apply(name: str, flat: Tensor, h: Tensor) -> Tensor:
    program = CONV_BLUEPRINTS[name](h.shape[1])
    return program(program.layout.unflatten(flat), h)


def test_convolutional_hosts_offer_the_convolutional_blueprints():
    assert sorted(CONV_BLUEPRINTS) == sorted(NAMES)
    offered = make_population().offered
    assert [BLUEPRINTS[i] for i in offered.nonzero().squeeze(1)] == [
        name for name in BLUEPRINTS if name in NAMES
    ]
    assert not offered[BLUEPRINTS.index("noop")]


@every_width
@every_blueprint
def test_parameters_are_those_of_the_plain_module(name, channels):
    entries = CONV_BLUEPRINTS[name](channels).layout.entries
    plain = list(plain_seed(name, channels).parameters())
    assert [math.prod(entry.shape) for entry in entries] == [p.numel() for p in plain]


@every_width
@every_blueprint
def test_parameters_start_as_torchs_or_at_zero(name, channels):
    for entry, parameter in zip(
        CONV_BLUEPRINTS[name](channels).layout.entries,
        plain_seed(name, channels).parameters(),
        strict=True,
    ):
        if entry.name in (STARTS_AT_ZERO.get(name), "excite_bias"):
            assert (entry.bound, entry.value) == (0, 0)
        elif entry.name == "squeeze_bias":
            assert entry.bound == pytest.approx(1 / math.sqrt(channels))
        elif parameter.dim() > 1:
            assert entry.bound == pytest.approx(1 / math.sqrt(parameter[0].numel()))
        else:
            assert entry.bound == 0
            assert (parameter == entry.value).all()


@every_width
@every_blueprint
def test_initial_state(name, channels):
    h = features(channels)
    change = (apply(name, initial(name, channels), h) - h).abs()
    if name in IDENTITIES:
        assert (change == 0).all()
    else:
        assert (change.flatten(1).amax(1) > 0.1).all()


@every_blueprint
def test_seeds_of_different_keys_differ(name):
    h = features(16)
    entries = CONV_BLUEPRINTS[name](16).layout.entries
    if any(entry.bound > 0 for entry in entries):
        assert not initial(name, 16).equal(initial(name, 16, seed=1))
    h[:] = h[0].clone()
    outputs = apply(name, initial(name, 16), h)
    assert outputs[0].equal(outputs[1]) == (name in IDENTITIES)


@every_width
@every_blueprint
def test_function_and_gradients_are_those_of_the_plain_module(name, channels):
    params, h = noisy(name, channels).requires_grad_(), features(channels).requires_grad_()
    out = apply(name, params, h)
    upstream = torch.randn_like(out, generator=torch.Generator().manual_seed(3))
    params_gradient, h_gradient = torch.autograd.grad(out, [params, h], upstream)

    for row in range(ROWS):
        plain = plain_seed(name, channels).double()
        load_flat(list(plain.parameters()), params[row])
        x = h[row].detach().requires_grad_()
        expected = batch_last(plain(batch_first(x)))
        gradients = torch.autograd.grad(expected, [x, *plain.parameters()], upstream[row])
        torch.testing.assert_close(out[row], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(h_gradient[row], gradients[0], rtol=1e-9, atol=1e-10)
        plain_gradient = torch.cat([g.flatten() for g in gradients[1:]])
        torch.testing.assert_close(params_gradient[row], plain_gradient, rtol=1e-9, atol=1e-9)


@every_width
@every_blueprint
def test_it_learns(name, channels):
    """From its initial state it comes close to another seed of its kind, and all of it moves.

    All of it in one row at least: the few ReLUs of ``attention`` may be silent in another.
    """
    h = features(channels)
    target = apply(name, noisy(name, channels), h)
    start = initial(name, channels)
    params = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([params], lr=0.2, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = (apply(name, params, h) - target).square().flatten(1).mean(1)
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert (losses[-1] < 0.5 * losses[0]).all()
    moved = (params.detach() - start).abs()
    for tensor, change in CONV_BLUEPRINTS[name](channels).layout.unflatten(moved).items():
        assert change.max() > 1e-3, tensor


def test_flat_parameters_of_a_row_are_the_plain_modules():
    plain = plain_seed("conv_heavy", 8)
    values = noisy("conv_heavy", 8)[0].float()
    load_flat(list(plain.parameters()), values)
    assert flat(plain).equal(values)
