"""Every layer that is compiled against torch's, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.networks.layers import (
    CausalAttention,
    DrawnChannel,
    DrawnConv,
    MixedNorm,
    Residual,
    SqueezeExcitation,
    conv,
)
from tests.support.layers import results, run_compiled, run_torch

IN, OUT, BATCH = 5, 6, 7
IMAGES, TEXT = (IN, 4, 6), (9, IN)


class Scaled(nn.Module):
    """Channels by factors, and twice a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(IN, IN)

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * torch.sigmoid(self.linear(x.mean((2, 3)))))[:, :, None, None]


class Weighed(nn.Module):
    """Parameters times features, and added to them, in whatever shape."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(shape) for shape in shapes)
        self.shift = nn.Parameter(torch.zeros(1))
        self.channel = nn.Parameter(torch.zeros(IN))
        self.images = len(shapes[0]) != 2

    def forward(self, x: Tensor) -> Tensor:
        for i, scale in enumerate(self.scales):
            x = x + scale if i % 2 else scale * x
        channel = self.channel[:, None, None] if self.images else self.channel.view(1, 1, -1)
        return x * channel - self.shift


def norm(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.GroupNorm(1, IN), *after)


# name: makes the layer, shape of an input without examples
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1×1 conv": (lambda: conv(IN, OUT, 1), IMAGES),
    "1×1 conv, odd": (lambda: conv(9, 3, 1), (9, 2, 2)),
    "1×1 conv of one channel": (lambda: conv(1, 1, 1), (1, 1, 2)),
    "3×3 conv": (lambda: conv(IN, OUT, 3), IMAGES),
    "3×3 conv of 2 by 2": (lambda: conv(8, 8, 3), (8, 2, 2)),
    "3×3 conv of 1 by 3": (lambda: conv(4, 3, 3), (4, 1, 3)),
    "3×3 conv of 3 by 1": (lambda: conv(4, 3, 3), (4, 3, 1)),
    "5×5 conv with bias, stride 2": (lambda: nn.Conv2d(IN, OUT, 5, 2, 2), IMAGES),
    "drawn conv": (lambda: DrawnConv(IN, OUT), IMAGES),
    "drawn conv of 1 by 3": (lambda: DrawnConv(8, 3), (8, 1, 3)),
    "drawn channel": (DrawnChannel, (2, 4, 6)),
    "depthwise conv": (lambda: conv(IN, IN, 3, groups=IN), IMAGES),
    "depthwise conv of 1 by 2": (lambda: conv(3, 3, 3, groups=3), (3, 1, 2)),
    "norm": (norm, IMAGES),
    "norm and ReLU": (lambda: norm(nn.ReLU()), IMAGES),
    "norm, ReLU and pool": (lambda: norm(nn.ReLU(), nn.MaxPool2d(2)), IMAGES),
    "group norm": (lambda: nn.GroupNorm(2, 6), (6, 2, 3)),
    "linear": (lambda: nn.Linear(IN, OUT), (IN,)),
    "linear at every position": (lambda: nn.Linear(IN, OUT), TEXT),
    "layer norm": (lambda: nn.LayerNorm(IN), TEXT),
    "layer norm and ReLU": (lambda: nn.Sequential(nn.LayerNorm(IN), nn.ReLU()), TEXT),
    "average": (lambda: nn.AdaptiveAvgPool2d(1), IMAGES),
    "ReLU": (nn.ReLU, (IN,)),
    "sigmoid": (nn.Sigmoid, (IN,)),
    "scaled channels": (Scaled, IMAGES),
    "squeeze and excite": (lambda: SqueezeExcitation(8), (8, 2, 3)),
    "residual": (lambda: Residual(conv(IN, IN, 3), *norm(nn.ReLU())), IMAGES),
    "residual of a residual": (lambda: Residual(Residual(conv(IN, IN, 1))), IMAGES),
    "mixed norm": (lambda: MixedNorm(nn.GroupNorm(1, IN), IN), IMAGES),
    "mixed layer norm": (lambda: MixedNorm(nn.LayerNorm(IN), IN, channels_last=True), TEXT),
    "weighed": (lambda: Weighed((IN, 1, 1), (1, IN, 1, 1), (4, 6), (IN, 4, 6), (1,)), IMAGES),
    "weighed text": (lambda: Weighed((9, IN), (1, 9, 1), (1, 9, IN), (IN,), (1, 1)), TEXT),
    "attention": (lambda: CausalAttention(8), (40, 8)),
    "attention in a window": (lambda: CausalAttention(12, window=4), (9, 12)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
ARGUMENTS = [
    (name, i)
    for name, (make, _) in LAYERS.items()
    for i in range(1 + len([*make().parameters()]))
    if "attention" not in name
]


def forms(name: str) -> list[Callable[..., Tensor]]:
    """The layer in torch, and compiled."""
    make, shape = LAYERS[name]
    module = make().double()
    return [run_torch(module), run_compiled(module, last=len(shape) == 2)]


def arguments(name: str, seed: int = 0) -> list[Tensor]:
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, *shape), *(p.shape for p in make().parameters())]
    return [torch.randn(each, dtype=torch.float64, generator=generator) for each in shapes]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@every_layer
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_layer_is_torchs(name: str, seed: int) -> None:
    expected, actual = (results(form, arguments(name, seed)) for form in forms(name))
    assert_same(actual, expected)


@pytest.mark.parametrize("name", ["drawn conv", "drawn conv of 1 by 3"])
def test_both_kernels_of_a_drawn_conv_are_compared(name: str) -> None:
    assert {bool(arguments(name, seed)[1] > 0) for seed in range(3)} == {True, False}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_nan_and_infinity_pass_as_in_torch(name: str, argument: int, bad: float) -> None:
    """All numbers of one argument, or a single one.

    What torch leaves open is left out: a weight that meets nothing but padding, ∞ − ∞ by the order
    of operations in a norm, scores of attention that are all −∞.
    """
    for place in (slice(None), 0):
        args = arguments(name)
        args[argument].flatten()[place] = bad
        theirs, mine = (results(form, args)[0].isfinite() for form in forms(name))
        if argument == 0 or (math.isnan(bad) and " conv" not in name):
            assert mine.equal(theirs)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equal_pixels_share_no_gradient(levels: int) -> None:
    """Max pooling gives all of it to the first of equal pixels, as torch does."""
    x, *params = arguments("norm, ReLU and pool")
    x = torch.randint(0, levels, x.shape, generator=torch.Generator().manual_seed(0)).double()
    expected, actual = (results(form, [x, *params]) for form in forms("norm, ReLU and pool"))
    if levels > 1:  # of a constant image both give what rounding leaves
        assert_same(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


def test_normalisation_at_a_constant_input() -> None:
    """Variance 0: only the epsilon keeps it finite, and it must be torch's."""
    x, *params = arguments("norm")
    x[:] = 3.0
    x[0] += 1e-3 * torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))
    expected, actual = (results(form, [x, *params]) for form in forms("norm"))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["norm and ReLU", "norm, ReLU and pool"])
def test_relu_passes_no_gradient_at_exactly_zero(name: str) -> None:
    x, scale, shift = arguments(name)
    scale[:], shift[:] = 0.0, 0.0
    _, *gradients = results(forms(name)[1], [x, scale, shift])
    assert all((gradient == 0).all() for gradient in gradients)


def test_sums_are_torchs() -> None:
    """A layer that is used twice, and what it gives added to its input in place."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(IN, IN, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(F.relu(self.conv(x)))
            h += x
            return h

    module = Twice().double()
    args = [arguments("3×3 conv")[0], torch.randn(IN, IN, 3, 3).double()]
    assert_same(results(run_compiled(module), args), results(run_torch(module), args))
