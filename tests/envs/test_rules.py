"""Ordinary modules, compiled by rules: they do what PyTorch does, and learn what it learns."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import ModuleHost
from envs.batched.optimizers import SGD, AdamW, Optimizer
from envs.networks.blueprints import CONV_BLUEPRINTS, TEXT_BLUEPRINTS
from envs.populations.plain import PlainPasses
from tests.support.engines import assert_engines_agree, images, population
from tests.support.networks import (
    OWN_SEEDS,
    Flat,
    LayerScale,
    Normed,
    NormedNet,
    NormsAndNumbers,
    Numbers,
    Patches,
    Products,
    ResNet,
    Scales,
    Signals,
    TemporalBlock,
    Wide,
)
from tests.support.transformers import (
    GPT,
    ConvNeXt,
    ConvNeXtBlock,
    Encoder,
    FullAttention,
    GPTBlock,
    MaskedAttention,
    Parts,
    PlainAttention,
    SeparateHeads,
    ViT,
)


@dataclass(frozen=True)
class Case:
    factory: Callable[[], nn.Module]
    slots: Sequence[str]
    blueprints: dict[str, Callable[[int], nn.Module]] | None = None
    size: int = 8
    optimizer: Optimizer = field(default_factory=SGD)

    def host(self) -> ModuleHost:
        example = torch.zeros(1, 2, self.size, self.size)
        return ModuleHost(self.factory, self.slots, example, self.blueprints)


@pytest.mark.parametrize(
    "case",
    [
        Case(ResNet, ["pool", "layer1"], OWN_SEEDS),
        Case(ResNet, ["stem", "layer1", "layer2"], None),
        Case(ResNet, ["layer1"], OWN_SEEDS, optimizer=AdamW()),
        *(
            Case(lambda act=act: Wide(act), ["pool", "layer1"], {"products": Products}, size=33)
            for act in (nn.ReLU, nn.SiLU, nn.GELU, nn.Tanh, partial(nn.GELU, approximate="tanh"))
        ),
        Case(NormedNet, ["stem", "layer1"], {"normed": Normed, **OWN_SEEDS}),
        Case(NormedNet, ["layer1", "layer2"], {"normed": Normed}, optimizer=AdamW()),
        Case(Scales, ["stem", "block"], {"scaled": LayerScale}, optimizer=AdamW()),
        Case(Patches, ["embed", "conv"], {"products": Products}, size=18),
        Case(Flat, ["first", "second"], {"mlp": lambda c: nn.Linear(c, c)}, size=4),
        Case(ViT, ["patches", "encoder"], {"attention": FullAttention, "encoder": Encoder}),
        Case(NormsAndNumbers, ["conv", "norm"], {"numbers": Numbers}, size=6),
        Case(ConvNeXt, ["stem", "block1"], {"block": ConvNeXtBlock}),
        Case(Parts, ["conv", "depth"], {"block": ConvNeXtBlock}, optimizer=AdamW()),
    ],
    ids=[
        *("residual", "built-in seeds", "adam"),
        *("relu", "silu", "gelu", "tanh", "gelu by tanh"),
        *("batch norm", "batch norm by adam", "parameters", "patches", "flat"),
        *("vision transformer", "norms and numbers", "convnext", "parts"),
    ],
)
def test_images(case: Case) -> None:
    assert_engines_agree(case.host(), images(case.size), optimizer=case.optimizer)


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()], ids=["sgd", "adam"])
@pytest.mark.parametrize("length", [16, 21])
def test_signals(length: int, optimizer: Optimizer) -> None:
    """Kernels and windows of one row: no zeros above or below, no taps there."""
    seeds = {
        "block": TemporalBlock,
        "depthwise": lambda c: nn.Conv1d(c, c, 3, padding=1, groups=c),
        "scale": lambda c: nn.Sequential(nn.Conv1d(c, c, 1), nn.Tanh()),
    }
    slots = ["first", "second", "third"]
    example = torch.zeros(1, 2, length)
    host = ModuleHost(Signals, slots, example, seeds, channel_dim=1)
    assert_engines_agree(host, images(length)[..., 0], optimizer=optimizer)


class Views(nn.Module):
    """Slots after layers that only look at their input in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.flatten, self.last = nn.Identity(), nn.Flatten(), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.flatten(self.same(x)))


def test_a_seed_does_not_change_the_examples() -> None:
    """Nor the features of the slot before: rows and sets that come later see them, too."""
    for slot in ("same", "flatten"):
        host = ModuleHost(
            Views, [slot], torch.zeros(1, 2, 4, 4), {"tanh": lambda channels: nn.Tanh()}
        )
        assert_engines_agree(host, images(4))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(self.scale)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (lambda channels: nn.Mish(), "1: no compiled form of nn.Mish"),
        (
            lambda channels: Scaled(),
            "tanh: no compiled form of tanh here: it reads 0.1.scale by itself",
        ),
    ],
)
def test_a_step_of_a_seed_is_named(
    layer: Callable[[int], nn.Module], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    seeds = {"mine": lambda channels: nn.Sequential(nn.Identity(), layer(channels))}
    host = ModuleHost(ResNet, ["layer1"], torch.zeros(1, 2, 8, 8), seeds)
    with caplog.at_level(logging.WARNING):
        assert isinstance(population(host, images()).passes, PlainPasses)
    (line,) = caplog.messages
    assert line.endswith(f"in blueprint 'mine', {says}")


class TextBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x)))


class TextNet(nn.Module):
    """Tokens in, a class for each position out; with classes last, or as PyTorch's loss wants."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.block1, self.block2 = TextBlock(6, 8), TextBlock(8, 5)
        self.head = nn.Linear(5, 7)
        self.transposed = transposed

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.head(self.block2(self.block1(self.embedding(tokens))))
        return logits.transpose(1, 2) if self.transposed else logits


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_text(transposed: bool, own: bool) -> None:
    seeds = {"linear": lambda c: nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c))} if own else None
    tokens = torch.randint(0, 7, (40, 4), generator=torch.Generator().manual_seed(0))
    host = ModuleHost(lambda: TextNet(transposed), ["block1", "block2"], tokens[:1], seeds)
    assert (host.slot_channels, host.num_classes) == ((8, 5), 7)
    assert host.topology == ("module" if own else "transformer")
    assert set(host.blueprints) == set(seeds or TEXT_BLUEPRINTS)
    assert_engines_agree(host, tokens, targets=tokens.roll(1, 1))


class Moved(TextNet):
    """Positions take the place of the examples for a while."""

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.block2(self.block1(self.embedding(tokens)))
        return self.head(h.permute(1, 0, 2).permute(1, 0, 2))


def test_positions_may_come_first_for_a_while() -> None:
    tokens = torch.arange(160).view(40, 4) % 7
    assert_engines_agree(ModuleHost(Moved, ["block1"], tokens[:1]), tokens, targets=tokens)


@pytest.mark.parametrize("optimizer", [SGD(), AdamW()])
def test_a_gpt(optimizer: Optimizer) -> None:
    tokens = torch.randint(0, 7, (40, 5), generator=torch.Generator().manual_seed(0))
    seeds = {
        "attention": SeparateHeads,
        "block": lambda channels: GPTBlock(channels, 3),
        "masked": MaskedAttention,
        "plain": PlainAttention,
    }
    host = ModuleHost(GPT, ["h.0", "h.1"], tokens[:1], seeds)
    assert_engines_agree(host, tokens, targets=tokens.roll(1, 1), optimizer=optimizer)


class Dense(nn.Module):
    """Branches that read what an in-place layer changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.fc((self.relu(h) + h).mean((2, 3)))


class Seen(Dense):
    """The same through a layer, and functions, that only look at it in another way."""

    def __init__(self, look: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.same, self.look = nn.Dropout(0.0), look

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        y = self.look(self.same(h).contiguous())
        y.add_(1)
        return self.fc((h + h).mean((2, 3)))


@pytest.mark.parametrize("look", [lambda h: h, lambda h: h.chunk(2, 1)[0]], ids=["all", "part"])
def test_nothing_is_changed_in_place_that_another_step_reads(look: Callable) -> None:
    host = ModuleHost(lambda: Seen(look), ["conv"], torch.zeros(1, 2, 8, 8))
    assert isinstance(population(host, images()).passes, PlainPasses)


class Biased(nn.Module):
    """Attention with terms of the scores that are learned, or that see one position ahead."""

    def __init__(self, channels: int, learned: bool) -> None:
        super().__init__()
        ahead = torch.ones(4, 4, dtype=torch.bool).tril(1)
        self.bias = nn.Parameter(torch.zeros(4, 4)) if learned else nn.Buffer(ahead)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)


@pytest.mark.parametrize(
    ("learned", "says"), [(True, r"a constant \[T, T\]"), (False, "after each")]
)
def test_masks_of_other_kinds_run_in_torch(
    learned: bool, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = torch.arange(28).view(7, 4) % 7
    seeds = {"biased": lambda channels: Biased(channels, learned)}
    host = ModuleHost(TextNet, ["block1"], tokens[:1], seeds)
    with caplog.at_level(logging.WARNING):
        assert isinstance(population(host, tokens, tokens).passes, PlainPasses)
    assert "scaled_dot_product_attention here: a mask must" in caplog.text
    assert re.search(says, caplog.text)


class AddsInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        z = y
        z += 1
        return y + z


def test_a_seed_that_tracing_changes_runs_in_torch(caplog: pytest.LogCaptureFixture) -> None:
    seeds = {"adds": lambda channels: AddsInPlace()}
    host = ModuleHost(lambda: Odd(nn.ReLU()), ["conv"], torch.zeros(1, 2, 8, 8), seeds)
    with caplog.at_level(logging.WARNING):
        assert isinstance(population(host, images()).passes, PlainPasses)
    assert "in blueprint 'adds', torch.fx traces it as something else" in caplog.text


class Odd(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
        self.layer2 = nn.ModuleDict({"act": layer})

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer2["act"](self.conv(x)).mean((2, 3)))


class Named(Odd):
    """A layer that is called with a name for its input."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(input=x).mean((2, 3)))


class Doubled(Odd):
    """A dimension in front of the examples."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x)[None].mean((3, 4))[0])


def test_nothing_may_take_the_place_of_the_examples(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        host = ModuleHost(lambda: Doubled(nn.ReLU()), ["conv"], torch.zeros(1, 2, 8, 8))
        assert isinstance(population(host, images()).passes, PlainPasses)
    assert "mean: no compiled form of Tensor.mean here: channels and positions" in caplog.text


class Turned(nn.Module):
    """Rows in the place of channels, of which there are as many."""

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.widen, self.layer = nn.Conv2d(4, 8, 1), layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.widen(x).permute(0, 2, 3, 1)
        y = y * y.mean((2, 3), keepdim=True) if self.layer is None else self.layer(y)
        return x + y.mean((1, 2, 3), keepdim=True)


class Sized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[0]


class Iterated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(part for part in x.split(4, dim=1))


def hooked() -> nn.Module:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda module, args, result: 2 * result)
    return Odd(layer)


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (lambda: Odd(nn.Mish()), "layer2.act: no compiled form of nn.Mish"),
        (lambda: Odd(nn.GroupNorm(1, 4, affine=False)), "layer2.act: .*GroupNorm here: a learned"),
        (lambda: Odd(Turned(nn.Conv2d(8, 8, 1))), r"Conv2d here: its input must be \[B, C, H, W"),
        (lambda: Odd(Turned(nn.MaxPool2d(2))), "MaxPool2d here: its input must be"),
        (lambda: Odd(Turned(nn.AdaptiveAvgPool2d(1))), "AdaptiveAvgPool2d here: its input must be"),
        (lambda: Odd(Turned(nn.GroupNorm(1, 8))), "GroupNorm here: its input must be"),
        (lambda: Odd(Turned(nn.BatchNorm2d(8))), "BatchNorm2d here: its input must be"),
        (lambda: Odd(Turned()), "mean: no compiled form of Tensor.mean here: the average of all"),
        (lambda: Odd(Sized()), "mul: no compiled form of mul here: it reads a size of its input"),
        (lambda: Odd(Iterated()), "layer2.act: .* Iterated here: it can't be traced: .*iterated"),
        (lambda: Odd(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), "nn.Conv2d here"),
        (Named, "conv: .*nn.Conv2d here: its arguments are"),
        (hooked, "layer2.act: .*nn.ReLU here: it has hooks"),
        (Dense, "relu: .*nn.ReLU here: it changes features that other layers read"),
    ],
)
def test_what_has_no_rule_is_named_and_runs_in_torch(
    factory: Callable[[], nn.Module], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = ModuleHost(factory, ["conv"], torch.zeros(1, 2, 8, 8), dict(CONV_BLUEPRINTS))
    with caplog.at_level(logging.WARNING):
        assert isinstance(population(host, images()).passes, PlainPasses)
    (line,) = caplog.messages
    assert re.search(says, line), line
