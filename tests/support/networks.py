"""Networks and seeds as people write them, of layers and functions that have rules."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding="same", bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += x
        return self.relu(out)


class ResNet(nn.Module):
    """In torchvision's style."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(1, 6), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.layer1, self.layer2 = Residual(6), Residual(6)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.pool(self.stem(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, 3), nn.Linear(3, channels)

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * factor[:, :, None, None]


class Tied(nn.Module):
    """A layer that is used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.conv(torch.relu(self.conv(x)))).add(x)


OWN_SEEDS: dict[str, Callable[[int], nn.Module]] = {
    "residual": Residual,
    "squeeze": SqueezeExcite,
    "tied": Tied,
    "bare": lambda channels: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
}


class Stage2(nn.Module):
    """A residual block of stride 2, with groups."""

    def __init__(self, inputs: int, outputs: int, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(2, outputs), nn.GroupNorm(4, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 5, padding=2)
        self.down, self.act = nn.Conv2d(inputs, outputs, 1, stride=2), act

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.act(out + self.down(x))


class Wide(nn.Module):
    """Strides, kernels, pooling and activations that the hosts of the package don't have."""

    def __init__(self, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 7, stride=2, padding=3), act())
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = Stage2(4, 8, act())
        self.layer2 = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8, stride=2), nn.AvgPool2d(2, stride=1)
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.pool(self.stem(x))))
        return self.fc(x.mean((-2, -1)))


class Products(nn.Module):
    """Features by features, and less others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.value(x) * torch.tanh(self.gate(x))


class Normed(nn.Module):
    """A residual block with batch norm; ReLU follows one, and not the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, momentum=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class NormedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.layer1, self.layer2 = Normed(6), Normed(6)
        self.norm, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(self.norm(x.mean((2, 3))))


class LayerScale(nn.Module):
    """A ConvNeXt-like block, with parameters that its forward reads itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.gamma = nn.Parameter(0.1 * torch.ones(channels))
        self.shifts = nn.ParameterList([torch.zeros(1, channels, 1, 1), torch.zeros(1)])

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.conv(x + self.shifts[0]))
        return x + self.gamma.view(-1, 1, 1) * h - self.shifts[1]


class Scales(nn.Module):
    """Parameters of the host itself, right behind a slot, and in it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.zeros(1, 6, 4, 4))
        self.block, self.fc = LayerScale(6), nn.Linear(6, 3)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x) + self.position)
        return self.fc(x.mean((2, 3))) * self.temperature


class Patches(nn.Module):
    """A kernel of even size, without padding, and a map of an odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Conv2d(2, 4, 2, stride=2), nn.Conv2d(4, 4, 3)
        self.down, self.fc = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.silu(self.conv(F.gelu(self.embed(x)))))
        return self.fc(torch.flatten(x, start_dim=1))


class Flat(nn.Module):
    """Without pooling, on flat features."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.first, self.second = nn.Linear(32, 8), nn.Linear(8, 8, bias=False)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(self.flatten(x)).relu()).sigmoid())


class Numbers(nn.Module):
    """Features with numbers, before and behind them, and in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = (1 - self.conv(x) / 3) * 0.5 - 0.25
        y *= 1.5
        y += 2
        return x + 0.1 * -y


class NormsAndNumbers(nn.Module):
    """Norms with ε of their own, as layers and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6, eps=0.1)
        self.numbers, self.batch = Numbers(6), nn.BatchNorm2d(6, eps=0.2, momentum=0.3)
        self.last, self.rms = nn.LayerNorm(6, eps=0.3), nn.RMSNorm(6, eps=0.01)
        self.weight = nn.Parameter(torch.linspace(0.5, 1, 6))
        self.other = nn.Parameter(torch.linspace(0.1, 0.3, 6))
        self.bias = nn.Parameter(torch.linspace(-1, 1, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.numbers(F.relu(self.norm(self.conv(x)))))
        x = x.flatten(2).transpose(1, 2)
        x = self.rms(self.last(x)) + F.rms_norm(x, (6,), self.other, 0.4)
        return self.fc(F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 0.5).mean(1))


class Signals(nn.Module):
    """Convolutions along time, ``[B, 2, T]``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(2, 6, 1, bias=False), nn.GroupNorm(1, 6), nn.ReLU(), nn.MaxPool1d(2)
        )
        self.second = nn.Sequential(
            nn.Conv1d(6, 6, 5, stride=2, padding=2), nn.BatchNorm1d(6), nn.GELU()
        )
        self.third = nn.Sequential(
            nn.Conv1d(6, 6, 3, padding="same", groups=6), nn.AvgPool1d(3, 2, padding=1)
        )
        self.average, self.fc = nn.AdaptiveAvgPool1d(1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x)))
        return self.fc(self.average(x).flatten(1) + torch.tanh(x.mean(-1)))


class TemporalBlock(nn.Module):
    """Of which one part is as wide as a kernel of four is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv1d(channels, channels, 4, padding=2)
        self.pool = nn.MaxPool1d(2, 1)
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.pool(self.wide(x))))
