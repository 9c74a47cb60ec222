"""Random modules made of the layers that have rules: both engines do the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from envs import ModuleHost
from tests.support.engines import assert_engines_agree, images

SIZE = 9
"""Height and width of the images: odd, so that strides leave something over."""

ACTIVATIONS: Sequence[Callable[[], nn.Module]] = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU)


class Skip(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Scale(nn.Module):
    """Features by a factor for each channel, or by others."""

    def __init__(self, channels: int, alone: bool) -> None:
        super().__init__()
        self.pool = nn.Identity() if alone else nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(self.pool(x)))


class Weighed(nn.Module):
    """Numbers, and parameters for each channel or for all."""

    def __init__(self, channels: int, alone: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(() if alone else (channels, 1, 1)))
        self.shift = nn.Parameter(torch.linspace(-1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return (1 - x * self.scale) / 2 + self.shift[:, None, None]


class Attends(nn.Module):
    """Pixels as positions, which see each other."""

    def __init__(self, channels: int, causal: bool) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(y).chunk(3, -1)
        y = y + F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + y.transpose(1, 2).reshape(x.shape)


def same_shape(draw: st.DrawFn, channels: int) -> Callable[[], nn.Module]:
    """A layer that keeps the features' shape."""
    kinds = ["conv", "depthwise", "norm", "batch norm", "activation", "skip", "scale"]
    kind = draw(st.sampled_from([*kinds, "weighed", "attends"]))
    size, flag = draw(st.sampled_from([1, 3, 5])), draw(st.booleans())
    activation = draw(st.sampled_from(ACTIVATIONS))
    groups = draw(st.sampled_from([n for n in (1, 2, channels) if channels % n == 0]))
    options = {"padding": size // 2, "bias": flag}
    return {
        "conv": lambda: nn.Conv2d(channels, channels, size, **options),
        "depthwise": lambda: nn.Conv2d(channels, channels, size, groups=channels, **options),
        "norm": lambda: nn.GroupNorm(groups, channels),
        "batch norm": lambda: nn.BatchNorm2d(channels, eps=1e-3 if flag else 1e-5),
        "weighed": lambda: Weighed(channels, flag),
        "attends": lambda: Attends(channels, flag),
        "activation": activation,
        "skip": lambda: Skip(nn.Conv2d(channels, channels, size, **options), activation()),
        "scale": lambda: Scale(channels, flag),
    }[kind]


@st.composite
def hosts(draw: st.DrawFn) -> ModuleHost:
    """A chain of layers with slots after some of them, and seeds of one to three layers."""
    makers: list[Callable[[], nn.Module]] = []
    channels, size, chosen = 2, SIZE, 0
    for _ in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["same", "conv", "pool"]))
        stride = draw(st.sampled_from([1, 2]))
        if kind == "same":
            makers.append(same_shape(draw, channels))
        elif kind == "conv":
            outputs, kernel = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 5]))
            # With more, pixels that see nothing but zeros are equal, and rounding would decide
            # which of them max pooling takes.
            padding = draw(st.integers(kernel // 2, max(kernel // 2, kernel - 1)))
            makers.append(
                lambda i=channels, o=outputs, k=kernel, s=stride, p=padding: nn.Conv2d(
                    i, o, k, stride=s, padding=p
                )
            )
            channels, size = outputs, (size + 2 * padding - kernel) // stride + 1
        elif size >= 3:
            # A second one would choose among what the first made equal: rounding would decide.
            pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d][chosen:]))
            chosen = chosen or int(pool is nn.MaxPool2d)
            makers.append(lambda pool=pool, s=stride: pool(3, stride=s, padding=1))
            size = (size - 1) // stride + 1
    slots = sorted(draw(st.sets(st.integers(0, len(makers) - 1), min_size=1, max_size=2)))
    flat = draw(st.booleans())
    inputs = channels * size * size if flat else channels

    def network() -> nn.Module:
        pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
        layers = [make() for make in makers]
        return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(inputs, 3))

    seeds = {}
    for number in range(draw(st.integers(1, 2))):
        kinds = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
        seeds[f"seed{number}"] = _seed_of(kinds)
    example = torch.zeros(1, 2, SIZE, SIZE)
    return ModuleHost(network, [str(slot) for slot in slots], example, seeds)


def _seed_of(numbers: Sequence[int]) -> Callable[[int], nn.Module]:
    """Layers for any number of channels."""

    def seed(channels: int) -> nn.Module:
        layers: list[nn.Module] = []
        for number in numbers:
            kind, number = number % 7, number // 7
            size, flag = (1, 3, 5)[number % 3], number % 2 == 0
            options = {"padding": size // 2, "bias": flag}
            conv = nn.Conv2d(channels, channels, size, **options)
            layers += [
                [conv],
                [nn.Conv2d(channels, channels, size, groups=channels, **options)],
                [nn.GroupNorm(channels if flag else 1, channels)],
                [ACTIVATIONS[number % len(ACTIVATIONS)]()],
                [Skip(conv, nn.Tanh()), Scale(channels, flag)],
                [nn.BatchNorm2d(channels), Weighed(channels, flag)],
                [Attends(channels, flag)],
            ][kind]
        return nn.Sequential(*layers)

    return seed


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(hosts())
def test_both_engines_do_the_same(host: ModuleHost) -> None:
    assert_engines_agree(host, images(SIZE))
