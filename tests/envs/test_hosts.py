"""Hosts against torch: function, sizes, training and errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import ArrayTask, ConvHost, MorphogenesisEnv
from envs.actions import Stage
from envs.batched.instructions import Field, Opcode
from envs.batched.optimizers import SGD
from envs.batched.randomness import fold
from envs.networks.blueprints import CONV_BLUEPRINTS
from envs.populations import SlotInputs
from envs.populations.compiled import CompiledPasses, window_extremes
from envs.populations.data import LabelledData
from envs.populations.trained import TrainedPopulation
from tests.support.plain import PlainBlock, PlainNetwork, load_flat
from tests.support.populations import flat, small_task, use_plain_passes

ROWS, BATCH = 4, 9
CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(kind: str, *shape: int) -> Tensor:
    x = draw(*shape)
    return {
        "noise": x,
        "ties": x.round(),
        "black and white": (x > 0).double(),
        "one dot": torch.zeros_like(x).index_fill_(3, torch.tensor(1), 1.0),
        "constant": torch.ones_like(x) * x[..., :1, :1],
    }[kind]


def population(host: ConvHost, x: Tensor, *, plain: bool = False) -> TrainedPopulation:
    """Hosts in double precision on images, with an epoch of one minibatch of all of them."""
    examples = x, torch.arange(len(x)) % host.num_classes
    data = LabelledData(
        examples, examples, host.prepare, batches_per_epoch=1, minibatch_size=len(x), device=CPU
    )
    slots = len(host.slot_channels)
    made = TrainedPopulation(host, data, SGD(momentum=0.0), ROWS, slots, CPU)
    assert isinstance(made.passes, CompiledPasses)
    made.params, made.buffers = made.params.double(), made.buffers.double()
    return use_plain_passes(made) if plain else made


def nothing_grows(made: TrainedPopulation) -> SlotInputs:
    shape = (ROWS, made.num_slots)
    zeros, stage = torch.zeros(shape), torch.full(shape, int(Stage.DORMANT))
    return SlotInputs(stage, stage * 0 - 1, stage * 0, zeros, torch.full((ROWS,), 0.1), zeros)


@pytest.mark.parametrize("plain", [False, True], ids=["compiled", "plain"])
@pytest.mark.parametrize("kind", ["noise", "ties", "black and white", "one dot", "constant"])
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
def test_host_is_torchs(
    kernel_size, image_shape, channels, pooled, classes, kind: str, plain: bool
) -> None:
    """Logits, loss, and the gradient of every parameter, with kernels and scales of all signs."""
    host, x = ConvHost(kernel_size, image_shape, channels, pooled, classes), None
    x = images(kind, BATCH, *image_shape)
    made = population(host, x, plain=plain)
    made.params[:, : made.host_size] = before = draw(ROWS, made.host_size, seed=1)
    inputs, rows = nothing_grows(made), torch.arange(ROWS)
    networks = [made.network(row, inputs) for row in range(ROWS)]
    validation = made.validate(inputs, rows, ablate=False)
    made.train_on(inputs, torch.arange(BATCH).expand(ROWS, 1, -1))
    gradient = (before - made.host_params) / 0.1
    assert host.slot_channels == channels
    targets = torch.arange(BATCH) % classes
    for row in range(ROWS):
        blocks = [
            PlainBlock(*pair, kernel_size, pool)
            for pair, pool in zip(
                itertools.pairwise([image_shape[0], *channels]), pooled, strict=True
            )
        ]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes)]
        reference = nn.Sequential(*blocks, *head).double()
        assert sum(p.numel() for p in reference.parameters()) == made.host_size
        load_flat(list(reference.parameters()), before[row])
        logits = reference(x)
        torch.testing.assert_close(networks[row](x), logits, rtol=1e-12, atol=1e-12)
        loss = F.cross_entropy(logits, targets)
        torch.testing.assert_close(validation.loss[row], loss.detach(), rtol=1e-7, atol=1e-8)
        loss.backward()
        wanted = torch.cat([p.grad.flatten() for p in reference.parameters()])
        # What rounding leaves of a constant image is as large as 1 / sqrt(epsilon) allows.
        tolerance = 1e-4 if kind in ("constant", "one dot") else 1e-6
        torch.testing.assert_close(gradient[row], wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["digits", "digits_full", "digits_varied"])
def test_only_pixels_of_one_channel_take_the_closed_form(name: str) -> None:
    task = small_task(name)
    made = population(task.host, draw(BATCH, 1, 8, 8))
    opcodes = made.passes.network.lines[:, Field.OPCODE]
    assert (Opcode.STEM in opcodes) == (name == "digits")
    assert made.passes._inputs.shape[1] == (34 if name == "digits" else 64)


@pytest.mark.parametrize(
    ("name", "kernel_sizes", "total"),
    [
        ("digits", (1, 1, 1), 1090),
        ("digits_full", (3, 3, 3), 6274),
        ("digits_varied", (None, 1, None), 6274 - 8 * 128 + 2 + 8 + 512),
    ],
)
def test_hosts_of_the_tasks(name, kernel_sizes, total):
    host = small_task(name).host
    assert host.kernel_sizes == kernel_sizes
    assert sum(segment.size for segment in host.segments) == total
    if None not in kernel_sizes:
        assert len(flat(PlainNetwork(kernel_sizes, []))) == total
    assert host.slot_channels == (8, 16, 32)
    assert host.blueprints is CONV_BLUEPRINTS


@pytest.mark.parametrize("name", ["digits", "digits_full", "digits_varied"])
def test_slots_come_after_the_pooling(name):
    host = small_task(name).host
    features = host.features(host.prepare(torch.randn(5, 1, 8, 8)))
    assert [tuple(h.shape) for h in features[1:-1]] == [(5, 8, 4, 4), (5, 16, 2, 2), (5, 32, 2, 2)]


@pytest.mark.parametrize("name", ["digits", "digits_full"])
def test_hosts_start_as_torchs_do(name):
    """Every drawn weight lies in its torch layer's bounds and comes near to them."""
    host = small_task(name).host
    plain, keys = PlainNetwork(host.kernel_sizes, []), torch.arange(500)
    drawn = torch.cat([segment.draw(keys)[0] for segment in host.segments], dim=1)
    parts = drawn.split([p.numel() for p in plain.host_parameters()], dim=1)
    for values, parameter in zip(parts, plain.host_parameters(), strict=True):
        if parameter.dim() > 1 or len(parameter) == 10:
            bound = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 32**-0.5
            assert 0.99 * bound < values.abs().max() <= bound * (1 + 1e-6)
        else:
            assert (values == parameter[0]).all()


def test_window_extremes():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    largest, smallest = [5, 7, 13, 15], [0, 2, 8, 10]
    assert window_extremes(image).tolist() == [[*largest, *smallest, 7.5, 21.25]]


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
    coins = [s.draw(fold(keys, i))[0][:, :1] > 0 for i, s in enumerate(host.segments[:-1])]
    counts = torch.cat(coins, dim=1).int() @ torch.tensor([1, 2, 4], dtype=torch.int32)
    assert ((counts.bincount(minlength=8) - 1000).abs() < 4 * 1000**0.5).all()


@pytest.mark.parametrize("image_shape", [(1, 6, 8), (1, 8, 6), (3, 7, 7)])
def test_images_that_cannot_be_halved_are_refused(image_shape):
    with pytest.raises(ValueError, match=r"image_shape must .* of 4, to be halved 2 times"):
        ConvHost(1, image_shape)


def test_a_channel_is_drawn_and_the_other_one_is_never_seen():
    host = ConvHost((None, 1, 1), image_shape=(2, 8, 8), drawn_channel=True)
    pictures, classes = torch.randn(60, 2, 8, 8), torch.arange(60) % 10
    task = ArrayTask(name="two", host=host, train=(pictures, classes), validation=20)
    env = MorphogenesisEnv(
        task, num_envs=12, max_epochs=2, batches_per_epoch=2, minibatch_size=8, seed=0
    )
    env.rollout(2)
    seen = []
    for row in range(env.num_envs):
        network, x = env.network(row), pictures[:5].requires_grad_()
        (grad,) = torch.autograd.grad(network(x).square().sum(), x)
        seen.append(tuple((grad != 0).flatten(2).any(2).any(0).tolist()))
    assert set(seen) == {(True, False), (False, True)}


def test_a_channel_is_drawn_of_two():
    with pytest.raises(ValueError, match=r"image_shape must have 2 channels, .* got \(1, 8, 8\)"):
        ConvHost(1, drawn_channel=True)


def test_every_block_must_say_whether_it_pools():
    with pytest.raises(ValueError, match=r"pooled must have one entry for each .* got 1 for 2"):
        ConvHost(1, channels=(8, 16), pooled=(True,))
