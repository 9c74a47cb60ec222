"""Every layer against torch, one network at a time, in double precision.

Each in both forms: in PyTorch for many networks, and compiled for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.layers import (
    Conv3x3,
    DepthwiseConv3x3,
    DrawnConv,
    GlobalAverage,
    Linear,
    Norm,
    PointwiseConv,
    PointwiseStem,
    ReLU,
    Reshape,
    Sigmoid,
)
from envs.batched.programs import Layer, Mix, Program, Residual, ScaleChannels
from envs.batched.sequences import LayerNorm
from tests.support.layers import NETWORKS, assert_same, both_forms, draw, results
from tests.support.populations import batch_first, batch_last

IN, OUT, HEIGHT, WIDTH, BATCH = 5, 6, 4, 6, 7
FEATURES = (IN, HEIGHT, WIDTH, BATCH)


def conv(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)


def pointwise(x: Tensor, kernel: Tensor) -> Tensor:
    return conv(x, kernel[:, :, None, None])


def depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(x, kernel, padding=1, groups=len(kernel))


def drawn(x: Tensor, coin: Tensor, small: Tensor, large: Tensor) -> Tensor:
    return conv(x, large) if coin > 0 else pointwise(x, small)


def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.group_norm(x, 1, scale, shift)


def norm_relu(*args: Tensor) -> Tensor:
    return F.relu(norm(*args))


def norm_pool_relu(*args: Tensor) -> Tensor:
    return F.relu(F.max_pool2d(norm(*args), 2))


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x.movedim(1, -1), (IN,), scale, shift).movedim(-1, 1)


def attention(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x * F.linear(x.mean((2, 3)), weight, bias).sigmoid()[:, :, None, None]


def mixed(x: Tensor, mix: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x + mix.tanh()[:, None, None] * (norm(x, scale, shift) - x)


# name: layer, the same in torch, shape of an input without examples
LAYERS: dict[str, tuple[Layer, Callable[..., Tensor], tuple[int, ...]]] = {
    "1×1 conv": (PointwiseConv("w", IN, OUT), pointwise, FEATURES),
    "1×1 conv, odd": (PointwiseConv("w", 9, 3), pointwise, (9, 2, 2, BATCH)),
    "1×1 conv from 0": (PointwiseConv("w", IN, OUT, zero=True), pointwise, FEATURES),
    "1×1 conv of one channel": (PointwiseConv("w", 1, 1), pointwise, (1, 1, 2, BATCH)),
    "3×3 conv": (Conv3x3("w", IN, OUT), conv, FEATURES),
    "3×3 conv of 2 by 2": (Conv3x3("w", 8, 8), conv, (8, 2, 2, BATCH)),
    "3×3 conv of 1 by 3": (Conv3x3("w", 4, 3), conv, (4, 1, 3, BATCH)),
    "3×3 conv of 3 by 1": (Conv3x3("w", 4, 3), conv, (4, 3, 1, BATCH)),
    "3×3 conv of 300 examples": (Conv3x3("w", 4, 3), conv, (4, 2, 3, 300)),
    "drawn conv": (DrawnConv("w", IN, OUT), drawn, FEATURES),
    "drawn conv of 1 by 3": (DrawnConv("w", 8, 3), drawn, (8, 1, 3, BATCH)),
    "depthwise conv": (DepthwiseConv3x3("w", IN), depthwise, FEATURES),
    "depthwise conv of 1 by 2": (DepthwiseConv3x3("w", 3), depthwise, (3, 1, 2, BATCH)),
    "norm": (Norm("n", IN), norm, FEATURES),
    "norm and ReLU": (Norm("n", IN, relu=True), norm_relu, FEATURES),
    "norm, pool and ReLU": (Norm("n", IN, pool=True), norm_pool_relu, FEATURES),
    "linear": (Linear("w", IN, OUT), F.linear, (IN, BATCH)),
    "linear from 0": (Linear("w", IN, OUT, zero=True), F.linear, (IN, BATCH)),
    "linear at every pixel": (
        Linear("w", IN, OUT),
        lambda x, *weights: F.linear(x.movedim(1, -1), *weights).movedim(-1, 1),
        FEATURES,
    ),
    "layer norm": (LayerNorm("n", IN), layer_norm, FEATURES),
    "layer norm and ReLU": (
        LayerNorm("n", IN, relu=True),
        lambda *args: F.relu(layer_norm(*args)),
        FEATURES,
    ),
    "average": (GlobalAverage(), lambda x: x.mean((2, 3)), FEATURES),
    "ReLU": (ReLU(), F.relu, (IN, BATCH)),
    "sigmoid": (Sigmoid(), torch.sigmoid, (IN, BATCH)),
    "2 sigmoid": (Sigmoid(times=2), lambda x: 2 * torch.sigmoid(x), FEATURES),
    "residual": (
        Residual(Conv3x3("w", IN, IN), Norm("n", IN, relu=True)),
        lambda x, kernel, *rest: x + norm_relu(conv(x, kernel), *rest),
        FEATURES,
    ),
    "residual of a residual": (
        Residual(Residual(PointwiseConv("w", IN, IN))),
        lambda x, kernel: 2 * x + pointwise(x, kernel),
        FEATURES,
    ),
    "residual of nothing": (Residual(), lambda x: 2 * x, FEATURES),
    "scaled channels": (
        ScaleChannels(GlobalAverage(), Linear("w", IN, IN), Sigmoid()),
        attention,
        FEATURES,
    ),
    "mix": (Mix("m", IN, Norm("n", IN)), mixed, FEATURES),
    "program": (
        Program(Reshape(2, 3, 4), PointwiseConv("w", 2, IN), Norm("n", IN, relu=True)),
        lambda x, kernel, *rest: norm_relu(pointwise(x.unflatten(1, (2, 3, 4)), kernel), *rest),
        (24, BATCH),
    ),
    "nothing": (Program(), lambda x: x.clone(), FEATURES),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
ARGUMENTS = [
    (name, i) for name, (layer, *_) in LAYERS.items() for i in range(1 + len(layer.parameters))
]


def run_torch(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As :func:`run_plain`, one network after the other in torch."""
    return lambda *args: torch.stack(
        [batch_last(reference(batch_first(x), *params)) for x, *params in zip(*args, strict=True)]
    )


def arguments(name: str) -> list[Tensor]:
    layer, _, shape = LAYERS[name]
    return draw(shape, *(entry.shape for entry in layer.parameters))


@both_forms
@every_layer
def test_layer_is_torchs(name, form):
    layer, reference, _ = LAYERS[name]
    args = arguments(name)
    assert_same(results(form(layer), args), results(run_torch(reference), args))


@both_forms
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_nan_and_infinity_pass_as_in_torch_and_harm_no_other_network(name, argument, bad, form):
    """All numbers of one argument of one network, or a single one.

    What torch leaves open is left out: a weight that meets nothing but padding, ∞ − ∞ by the order
    of operations in a norm.
    """
    layer, reference, _ = LAYERS[name]
    for place in (slice(None), 0):
        args = arguments(name)
        expected = results(form(layer), args)
        args[argument][1].flatten()[place] = bad
        actual, theirs = results(form(layer), args), results(run_torch(reference), args)
        for mine, old in zip(actual, expected, strict=True):
            assert mine[[0, 2]].equal(old[[0, 2]])
        if argument == 0 or (math.isnan(bad) and " conv" not in name):
            assert actual[0].isfinite().equal(theirs[0].isfinite())


@pytest.mark.parametrize("name", ["drawn conv", "drawn conv of 1 by 3"])
def test_both_kernels_of_a_drawn_conv_are_compared(name):
    assert set((arguments(name)[1] > 0).flatten().tolist()) == {True, False}


@both_forms
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equal_pixels_share_no_gradient(levels, form):
    """Max pooling gives all of it to the first of equal pixels, as torch does."""
    layer, reference, _ = LAYERS["norm, pool and ReLU"]
    x, scale, shift = arguments("norm, pool and ReLU")
    x = torch.randint(0, levels, x.shape, generator=torch.Generator().manual_seed(0)).double()
    args = [x, scale, shift]
    assert_same(results(form(layer), args), results(run_torch(reference), args))


@both_forms
def test_normalisation_at_a_constant_input(form):
    """Variance 0: only the epsilon keeps it finite, and it must be torch's."""
    x, scale, shift = arguments("norm")
    x[:] = 3.0
    x[0] += 1e-3 * draw(FEATURES)[0][0]
    expected = results(run_torch(norm), [x, scale, shift])
    for mine, theirs in zip(
        results(form(LAYERS["norm"][0]), [x, scale, shift]), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@both_forms
@pytest.mark.parametrize("name", ["norm and ReLU", "norm, pool and ReLU"])
def test_relu_passes_no_gradient_at_exactly_zero(name, form):
    x, scale, shift = arguments(name)
    scale[:], shift[:] = 0.0, 0.0
    _, *gradients = results(form(LAYERS[name][0]), [x, scale, shift])
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@both_forms
def test_the_stem_is_the_layers_that_it_stands_for(form, signs):
    """Kernels and scales of both signs, so that the largest and the smallest pixel matter."""
    images, kernel, scale, shift = draw((HEIGHT, WIDTH, BATCH), (OUT, 1), (OUT,), (OUT,))
    weights = [kernel.abs() * signs[0], scale.abs() * signs[1], shift]
    pixels = images.flatten(1, 2)
    windows = images.view(NETWORKS, HEIGHT // 2, 2, WIDTH // 2, 2, BATCH)
    examples = torch.cat(
        [
            windows.amax((2, 4)).flatten(1, 2),
            windows.amin((2, 4)).flatten(1, 2),
            pixels.mean(1, keepdim=True),
            pixels.var(1, correction=0, keepdim=True),
        ],
        dim=1,
    )

    def layers(x: Tensor, kernel: Tensor, *rest: Tensor) -> Tensor:
        return norm_pool_relu(pointwise(x.unsqueeze(1), kernel), *rest)

    stem = form(PointwiseStem(OUT, HEIGHT // 2, WIDTH // 2))
    expected = results(lambda *args: run_torch(layers)(images, *args), weights)
    assert_same(results(lambda *args: stem(examples, *args), weights), expected)
