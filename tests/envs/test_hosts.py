"""Hosts against torch: function, gradients, sizes and errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.batched.layers import PointwiseStem
from envs.batched.programs import Program
from envs.batched.randomness import fold
from envs.blueprints import CONV_BLUEPRINTS
from envs.hosts import ConvHost
from envs.hosts.conv import Classifier, ConvBlock, window_extremes
from tests.support.plain import PlainBlock, PlainNetwork, load_flat
from tests.support.populations import batch_first, batch_last, flat, small_task

ROWS, BATCH = 4, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(kind: str) -> Tensor:
    """``[ROWS, BATCH, 1, 8, 8]``."""
    x = draw(ROWS, BATCH, 1, 8, 8)
    return {
        "noise": x,
        "ties": x.round(),
        "black and white": (x > 0).double(),
        "one dot": torch.zeros_like(x).index_fill_(4, torch.tensor(3), 1.0),
        "constant": torch.ones_like(x) * x[..., :1, :1],
    }[kind]


def stem_params(channels: int) -> Tensor:
    """Kernels and scales of both signs, so that the largest and the smallest pixel matter."""
    params = draw(ROWS, 3 * channels, seed=1)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(channels // 4, 1)
    params[:, : 2 * channels] = params[:, : 2 * channels].abs() * signs.T.flatten()
    return params


def run(segment, params: Tensor, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Output of a segment and the gradient of its parameters."""
    leaf = params.clone().requires_grad_()
    out = segment(segment.layout.unflatten(leaf), x)
    return out.detach(), torch.autograd.grad(out, leaf, upstream)[0]


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("kind", ["noise", "ties", "black and white", "one dot", "constant"])
def test_stem_in_closed_form_is_the_ordinary_block(kind, channels):
    x, params = images(kind), stem_params(channels)
    upstream = draw(ROWS, channels, 4, 4, BATCH, seed=2)
    prepared = torch.stack([window_extremes(one) for one in x]).transpose(1, 2)
    out, gradient = run(Program(PointwiseStem(channels, 4, 4)), params, prepared, upstream)

    block = ConvBlock(1, channels, 1, True, (8, 8))
    ordinary = run(block, params, x.flatten(2).transpose(1, 2), upstream)
    torch.testing.assert_close(out, ordinary[0], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(gradient, ordinary[1], rtol=1e-8, atol=1e-8)

    for row in range(ROWS):
        plain = PlainBlock(1, channels, 1, pool=True).double()
        load_flat(list(plain.parameters()), params[row])
        expected = batch_last(plain(x[row]))
        gradients = torch.autograd.grad(expected, list(plain.parameters()), upstream[row])
        torch.testing.assert_close(out[row], expected, rtol=1e-8, atol=1e-9)
        plain_gradient = torch.cat([g.flatten() for g in gradients])
        torch.testing.assert_close(gradient[row], plain_gradient, rtol=1e-8, atol=1e-8)


def test_stem_and_block_have_the_same_parameters():
    stem, block = PointwiseStem(8, 4, 4).parameters, ConvBlock(1, 8, 1, True, (8, 8)).parameters
    assert stem == block


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_block_is_torchs(kernel_size, pool, first):
    """Also as a host's first block, which gets flat images."""
    block = ConvBlock(2, 5, kernel_size, pool, (4, 6) if first else None)
    x, params = draw(ROWS, 2, 4, 6, BATCH), draw(ROWS, block.layout.size, seed=1)
    upstream = draw(ROWS, 5, *((2, 3) if pool else (4, 6)), BATCH, seed=2)
    out, gradient = run(block, params, x.flatten(1, 3) if first else x, upstream)
    for row in range(ROWS):
        plain = PlainBlock(2, 5, kernel_size, pool).double()
        load_flat(list(plain.parameters()), params[row])
        expected = batch_last(plain(batch_first(x[row])))
        gradients = torch.autograd.grad(expected, list(plain.parameters()), upstream[row])
        torch.testing.assert_close(out[row], expected, rtol=1e-9, atol=1e-10)
        plain_gradient = torch.cat([g.flatten() for g in gradients])
        torch.testing.assert_close(gradient[row], plain_gradient, rtol=1e-9, atol=1e-9)


def host_logits(host: ConvHost, params: Tensor, x: Tensor) -> Tensor:
    """Logits of images ``[B, …]`` for all rows ``[n, classes, B]``, nothing in the slots."""
    h = host.prepare(x).T[None].expand(len(params), -1, -1)
    sizes = [segment.layout.size for segment in host.segments]
    for segment, part in zip(host.segments, params.split(sizes, dim=1), strict=True):
        h = segment(segment.layout.unflatten(part), h)
    return h


def drawn_host(host: ConvHost) -> Tensor:
    keys = torch.arange(ROWS)
    return torch.cat([s.layout.draw(10 * keys + i) for i, s in enumerate(host.segments)], 1)


@pytest.mark.parametrize(
    ("kernel_size", "image_shape", "channels", "pooled", "classes"),
    [
        (1, (1, 8, 8), (8, 16, 32), (True, True, False), 10),
        (3, (1, 8, 8), (8, 16, 32), (True, True, False), 10),
        (1, (3, 8, 4), (6, 4), (True, True), 7),
        (1, (1, 8, 8), (4, 6), (False, True), 5),
        (3, (2, 6, 5), (4, 5, 3), (False, False, False), 4),
        (1, (1, 2, 6), (4,), (True,), 3),
    ],
)
def test_host_is_torchs(kernel_size, image_shape, channels, pooled, classes):
    host = ConvHost(kernel_size, image_shape, channels, pooled, classes)
    params = drawn_host(host).double()
    params += 0.1 * draw(*params.shape, seed=4)
    params.requires_grad_()
    x = draw(BATCH, *image_shape)
    targets = torch.arange(BATCH) % classes
    logits = host_logits(host, params, x)
    F.cross_entropy(logits, targets.expand(ROWS, -1), reduction="none").mean(1).sum().backward()
    assert host.slot_channels == channels

    for row in range(ROWS):
        blocks = [
            PlainBlock(*pair, kernel_size, pool)
            for pair, pool in zip(
                itertools.pairwise([image_shape[0], *channels]), pooled, strict=True
            )
        ]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)]
        plain = nn.Sequential(*blocks, *head).double()
        assert sum(p.numel() for p in plain.parameters()) == params.shape[1]
        load_flat(list(plain.parameters()), params[row])
        expected = plain(x)
        F.cross_entropy(expected, targets).backward()
        torch.testing.assert_close(logits[row].T, expected, rtol=1e-8, atol=1e-9)
        gradient = torch.cat([p.grad.flatten() for p in plain.parameters()])
        torch.testing.assert_close(params.grad[row], gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kernel_sizes", "total"),
    [
        ("digits", (1, 1, 1), 1090),
        ("digits_full", (3, 3, 3), 6274),
        ("digits_varied", (None, None, None), 3 + 8 + 128 + 512 + 6274),
    ],
)
def test_hosts_of_the_tasks(name, kernel_sizes, total):
    host = small_task(name).host
    assert host.kernel_sizes == kernel_sizes
    assert isinstance(host.segments[0].layers[0], PointwiseStem) == (name == "digits")
    assert sum(segment.layout.size for segment in host.segments) == total
    if None not in kernel_sizes:
        assert len(flat(PlainNetwork(kernel_sizes, []))) == total
    assert host.slot_channels == (8, 16, 32)
    assert host.blueprints is CONV_BLUEPRINTS


@pytest.mark.parametrize("name", ["digits", "digits_full", "digits_varied"])
def test_slots_come_after_the_pooling(name):
    host = small_task(name).host
    h = host.prepare(torch.randn(5, 1, 8, 8)).T[None].expand(ROWS, -1, -1)
    sizes = []
    for segment in host.segments[:-1]:
        h = segment(segment.layout.unflatten(segment.layout.draw(torch.arange(ROWS))), h)
        sizes.append(tuple(h.shape[1:]))
    assert sizes == [(8, 4, 4, 5), (16, 2, 2, 5), (32, 2, 2, 5)]


@pytest.mark.parametrize("name", ["digits", "digits_full"])
def test_hosts_start_as_torchs_do(name):
    """Every drawn weight lies in its torch layer's bounds and comes near to them."""
    host = small_task(name).host
    plain = PlainNetwork(host.kernel_sizes, [])
    entries = [entry for segment in host.segments for entry in segment.layout.entries]
    for entry, parameter in zip(entries, plain.host_parameters(), strict=True):
        if parameter.dim() > 1:
            assert entry.bound == pytest.approx(parameter[0].numel() ** -0.5)
        elif entry.name == "linear_bias":
            assert entry.bound == pytest.approx(32**-0.5)
        else:
            assert entry.bound == 0
            assert (parameter == entry.value).all()


def test_window_extremes():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    largest, smallest = [5, 7, 13, 15], [0, 2, 8, 10]
    assert window_extremes(image).tolist() == [[*largest, *smallest, 7.5, 21.25]]


def test_classifier_is_torchs():
    segment = Classifier(6, 4)
    x, params = draw(ROWS, 6, 2, 3, BATCH), draw(ROWS, segment.layout.size, seed=1)
    logits = segment(segment.layout.unflatten(params), x)
    for row in range(ROWS):
        plain = nn.Linear(6, 4).double()
        load_flat(list(plain.parameters()), params[row])
        torch.testing.assert_close(logits[row].T, plain(batch_first(x[row]).mean((2, 3))))


def test_pool_is_the_mean_over_positions():
    h = draw(2, 3, 4, 4, 5)
    torch.testing.assert_close(ConvHost(1).pool({}, h), h.flatten(2, 3).mean(2))


@pytest.mark.parametrize("kernel_size", [0, 2, 5])
def test_other_kernel_sizes_are_refused(kernel_size):
    with pytest.raises(ValueError, match=f"kernel_size must be one of 1, 3, got {kernel_size}"):
        ConvHost(kernel_size)


@pytest.mark.parametrize(
    ("kernel_size", "message"),
    [
        ((1, 5, 3), r"kernel_size\[1\] must be one of 1, 3, None, got 5"),
        ((1, 3), "kernel_size must be one number, or have one for each block .* got 2 for 3"),
    ],
)
def test_kernel_sizes_that_fit_no_block_are_refused(kernel_size, message):
    with pytest.raises(ValueError, match=message):
        ConvHost(kernel_size)


def test_every_variant_is_drawn_as_often_as_the_others():
    host = ConvHost((None, None, None))
    keys = torch.arange(8000)
    coins = [
        s.layout.unflatten(s.layout.draw(fold(keys, i)))["conv_coin"] > 0
        for i, s in enumerate(host.segments[:-1])
    ]
    counts = torch.cat(coins, dim=1).int() @ torch.tensor([1, 2, 4], dtype=torch.int32)
    assert ((counts.bincount(minlength=8) - 1000).abs() < 4 * 1000**0.5).all()


@pytest.mark.parametrize("image_shape", [(1, 6, 8), (1, 8, 6), (3, 7, 7)])
def test_images_that_cannot_be_halved_are_refused(image_shape):
    with pytest.raises(ValueError, match=r"image_shape must .* of 4, to be halved 2 times"):
        ConvHost(1, image_shape)


def test_every_block_must_say_whether_it_pools():
    with pytest.raises(ValueError, match=r"pooled must have one entry for each .* got 1 for 2"):
        ConvHost(1, channels=(8, 16), pooled=(True,))
