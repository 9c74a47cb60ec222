"""Every batched layer against torch, one network at a time, in double precision.

Layers with a kernel for CPUs have another path on other devices; it is tested here too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from envs.batched.layers import (
    conv3x3,
    depthwise_conv3x3,
    global_average,
    group_norm,
    group_norm_pool_relu,
    linear,
    permute_rows,
    pointwise_conv,
    pointwise_stem,
)
from tests.support.layers import NETWORKS, assert_same, draw, results
from tests.support.populations import batch_first, batch_last

IN, OUT, HEIGHT, WIDTH, BATCH = 4, 5, 4, 6, 7
FEATURES = (IN, HEIGHT, WIDTH, BATCH)
SMALL_FEATURES = (IN, 4, 3, BATCH)  # convolutions take another path


def norm_of_one(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return batch_last(F.group_norm(batch_first(x), 1, scale, shift))


def conv_of_one(x: Tensor, kernel: Tensor) -> Tensor:
    return batch_last(F.conv2d(batch_first(x), kernel, padding=1))


def pointwise_of_one(x: Tensor, kernel: Tensor) -> Tensor:
    return batch_last(F.conv2d(batch_first(x), kernel[:, :, None, None]))


def depthwise_of_one(x: Tensor, kernel: Tensor) -> Tensor:
    return batch_last(F.conv2d(batch_first(x), kernel[:, None], padding=1, groups=IN))


def norm_relu(x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
    return group_norm(x, scale, shift, relu=True, residual=residual)


def norm_relu_of_one(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | float = 0.0
) -> Tensor:
    return F.relu(norm_of_one(x, scale, shift)) + residual


def norm_pool_relu_of_one(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.relu(batch_last(F.max_pool2d(batch_first(norm_of_one(x, scale, shift)), 2)))


# name: batched layer, the same for one network, shapes of its arguments for one network
LAYERS: dict[str, tuple[Callable, Callable, list[tuple[int, ...]]]] = {
    "group_norm": (group_norm, norm_of_one, [FEATURES, (IN,), (IN,)]),
    "group_norm and ReLU": (norm_relu, norm_relu_of_one, [FEATURES, (IN,), (IN,)]),
    "group_norm, ReLU and residual": (
        norm_relu,
        norm_relu_of_one,
        [FEATURES, (IN,), (IN,), FEATURES],
    ),
    "group_norm_pool_relu": (
        group_norm_pool_relu,
        norm_pool_relu_of_one,
        [FEATURES, (IN,), (IN,)],
    ),
    "pointwise_conv": (pointwise_conv, pointwise_of_one, [FEATURES, (OUT, IN)]),
    "conv3x3": (conv3x3, conv_of_one, [FEATURES, (OUT, IN, 3, 3)]),
    "conv3x3 on a small map": (conv3x3, conv_of_one, [SMALL_FEATURES, (OUT, IN, 3, 3)]),
    "depthwise_conv3x3": (depthwise_conv3x3, depthwise_of_one, [FEATURES, (IN, 3, 3)]),
    "depthwise_conv3x3 on a small map": (
        depthwise_conv3x3,
        depthwise_of_one,
        [SMALL_FEATURES, (IN, 3, 3)],
    ),
    "linear": (
        linear,
        lambda x, weight, bias: batch_last(F.linear(batch_first(x), weight, bias)),
        [(IN, BATCH), (OUT, IN), (OUT,)],
    ),
    "global_average": (
        global_average,
        lambda x: batch_last(F.adaptive_avg_pool2d(batch_first(x), 1).flatten(1)),
        [FEATURES],
    ),
}
WITH_WEIGHTS = [name for name, (_, _, shapes) in LAYERS.items() if len(shapes) > 1]
ARGUMENTS = [(name, i) for name, (_, _, shapes) in LAYERS.items() for i in range(len(shapes))]


def one_by_one(reference: Callable) -> Callable:
    """The reference of one network for all of them."""
    return lambda *args: torch.stack([reference(*one) for one in zip(*args, strict=True)])


@pytest.fixture(params=["kernels", "plain"])
def either_path(request, monkeypatch):
    """The layers as they run on a CPU, and as they run where there are no kernels."""
    if request.param == "plain":
        monkeypatch.setattr("envs.batched.layers._KERNEL_DEVICE", "none")


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_torchs(name):
    layer, reference, shapes = LAYERS[name]
    args = draw(*shapes)
    assert_same(results(layer, args), results(one_by_one(reference), args))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_same_without_gradients(name):
    layer, _, shapes = LAYERS[name]
    args = draw(*shapes)
    given = [arg.clone() for arg in args]
    with torch.no_grad():
        out = layer(*args)
    torch.testing.assert_close(out, layer(*args), rtol=1e-12, atol=1e-12)
    assert not out.requires_grad
    assert all(arg.equal(before) for arg, before in zip(args, given, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_takes_any_memory_format(name):
    """Features with the batch outermost in memory, and a gradient without any memory."""
    layer, reference, shapes = LAYERS[name]
    args = draw(*shapes)
    strange = [batch_last(batch_first(args[0]).contiguous()), *args[1:]]
    assert not strange[0].is_contiguous()
    upstream = torch.ones((), dtype=torch.float64).expand_as(layer(*args))
    assert_same(results(layer, strange, upstream), results(one_by_one(reference), args, upstream))


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_get_their_gradient_where_the_input_needs_none(name):
    layer, _, shapes = LAYERS[name]
    x, *weights = draw(*shapes)
    leaves = [weight.requires_grad_() for weight in weights]
    upstream = torch.randn(layer(x, *leaves).shape, dtype=x.dtype)
    layer(x, *leaves).backward(upstream)
    expected = results(layer, [x, *weights], upstream)
    assert x.grad is None
    assert_same([leaf.grad for leaf in leaves], expected[2:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_bad_network_harms_no_other(name, argument, bad):
    layer, _, shapes = LAYERS[name]
    args = draw(*shapes)
    expected = results(layer, args)
    args[argument][1] = bad
    others = [0, 2]
    for mine, theirs in zip(results(layer, args), expected, strict=True):
        assert mine[others].equal(theirs[others])


def test_normalisation_at_a_constant_input():
    """Variance 0: only the epsilon keeps it finite, and it must be torch's."""
    x, scale, shift = draw(FEATURES, (IN,), (IN,))
    x[:] = 3.0
    x[0] += 1e-3 * draw(FEATURES)[0][0]
    expected = results(one_by_one(norm_of_one), [x, scale, shift])
    for mine, theirs in zip(results(group_norm, [x, scale, shift]), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("either_path")
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equal_pixels_share_no_gradient(levels):
    """Max pooling gives all of it to the first of equal pixels, as torch does."""
    x, scale, shift = draw(FEATURES, (IN,), (IN,))
    x = torch.randint(0, levels, x.shape, generator=torch.Generator().manual_seed(0)).double()
    args = [x, scale, shift]
    assert_same(
        results(group_norm_pool_relu, args), results(one_by_one(norm_pool_relu_of_one), args)
    )


@pytest.mark.parametrize("layer", [norm_relu, group_norm_pool_relu])
def test_relu_passes_no_gradient_at_exactly_zero(layer):
    x, scale, shift = draw(FEATURES, (IN,), (IN,))
    scale[:], shift[:] = 0.0, 0.0
    _, *gradients = results(layer, [x, scale, shift])
    assert all((gradient == 0).all() for gradient in gradients)


def stem_of_one(x: Tensor, kernel: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The four layers that the stem is, on images ``[H, W, B]``."""
    return norm_pool_relu_of_one(kernel[:, None, None, None] * x, scale, shift).flatten(1, 2)


@pytest.mark.usefixtures("either_path")
def test_the_stem_is_the_layers_that_it_stands_for():
    images, kernel, scale, shift = draw((HEIGHT, WIDTH, BATCH), (OUT,), (OUT,), (OUT,))
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
    weights = [kernel, scale, shift]
    expected = results(lambda *args: one_by_one(stem_of_one)(images, *args), weights)
    assert_same(results(lambda *args: pointwise_stem(examples, *args), weights), expected)
    shared = results(lambda *args: pointwise_stem(examples[:1], *args), weights)
    repeated = [images[:1].expand_as(images)]
    assert_same(shared, results(lambda *args: one_by_one(stem_of_one)(*repeated, *args), weights))


@pytest.mark.parametrize("features", [FEATURES, SMALL_FEATURES])
def test_networks_can_share_the_input_of_conv3x3(features):
    shared, kernel = draw(features, (OUT, IN, 3, 3))
    shared = shared[:1]
    alone = results(lambda k: conv3x3(shared, k), [kernel])
    repeated = results(lambda k: conv3x3(shared.expand(NETWORKS, -1, -1, -1, -1), k), [kernel])
    assert_same(alone, repeated)


def test_permute_rows_is_indexing():
    (x,) = draw(FEATURES)
    order = torch.tensor([2, 0, 1])
    assert_same(results(lambda x: permute_rows(x, order), [x]), results(lambda x: x[order], [x]))
