"""Networks as users bring them, on the data of built-in tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from envs import ArrayTask, ModuleHost, make_task


def digits_host() -> nn.Module:
    """The host of ``digits`` as an ordinary module."""
    layers: list[nn.Module] = []
    for inputs, outputs, pool in ((1, 8, True), (8, 16, True), (16, 32, False)):
        block = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(1, outputs), nn.ReLU()]
        layers.append(nn.Sequential(*block, *[nn.MaxPool2d(2)] * pool))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Block(nn.Module):
    """A block of a residual network, with batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        down = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Sequential(*down) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.down(x))


def residual_host() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    return nn.Sequential(stem, Block(8, 16), Block(16, 32), *head)


class GPTBlock(nn.Module):
    """A layer of a transformer with four heads."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.c_attn = nn.Linear(channels, 3 * channels)
        self.c_proj = nn.Linear(channels, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        parts = self.c_attn(self.ln_1(x)).view(b, t, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(seen.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Two layers, for the characters of ``pydoc``."""

    def __init__(self, tokens: int = 64, length: int = 32, channels: int = 48) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(tokens, channels), nn.Embedding(length, channels)
        self.h = nn.ModuleList([GPTBlock(channels), GPTBlock(channels)])
        self.embedded, self.ln_f = nn.Identity(), nn.LayerNorm(channels)
        self.head = nn.Linear(channels, tokens, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.h[1](self.h[0](self.embedded(x)))
        return self.head(self.ln_f(x)).transpose(1, 2)


MODULES: dict[str, tuple[str, Callable[[], nn.Module], list[str]]] = {
    "module": ("digits", digits_host, ["0", "1", "2"]),
    "residual": ("digits", residual_host, ["0", "1", "2"]),
    "gpt": ("pydoc", GPT, ["embedded", "h.0", "h.1"]),
}
"""Task whose data are taken, what makes the host, and its slots, by the task's name."""


def module_task(name: str) -> ArrayTask:
    data, factory, slots = MODULES[name]
    task = make_task(data)
    assert isinstance(task, ArrayTask)
    host = ModuleHost(factory, slots, task.train.inputs[:1])
    return replace(task, name=name, host=host)
