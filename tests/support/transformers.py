"""Transformers as people write them, of functions that have rules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSelfAttention(nn.Module):
    """Heads by ``view`` and ``transpose``, sizes from the input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.heads, self.channels = heads, channels

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.size()
        q, k, v = self.c_attn(x).split(self.channels, dim=2)
        q, k, v = (
            part.view(batch, length, self.heads, channels // self.heads).transpose(1, 2)
            for part in (q, k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(batch, length, channels))


class GPTBlock(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = CausalSelfAttention(channels, heads)
        self.c_fc = nn.Linear(channels, 2 * channels)
        self.c_proj = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Two layers, with learned positions that are looked up by their numbers."""

    def __init__(self, tokens: int = 7, channels: int = 6, heads: int = 2, length: int = 9) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(tokens, channels), nn.Embedding(length, channels)
        self.h = nn.ModuleList(GPTBlock(channels, heads) for _ in range(2))
        self.ln_f, self.head = nn.LayerNorm(channels), nn.Linear(channels, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        _, length = tokens.shape
        places = torch.arange(0, length, dtype=torch.long, device=tokens.device)
        x = self.wte(tokens) + self.wpe(places)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class FullAttention(nn.Module):
    """Queries, keys and values by ``reshape`` and ``unbind``."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.heads, self.scale = heads, nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c)) * self.scale


class SeparateHeads(nn.Module):
    """Queries, keys and values by layers of their own, in another order; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key, self.query = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.key(x), self.value(x)
        return x + F.scaled_dot_product_attention(self.query(x), k, v, is_causal=True)


class Patches(nn.Module):
    """Patches with learned positions, of which there are more than are needed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, channels, 2, stride=2)
        self.pos_embed = nn.Parameter(torch.randn(1, 30, channels) / 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return x + self.pos_embed[:, : x.shape[1]]


class Encoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(channels), FullAttention(channels)
        self.norm2, self.mlp = nn.LayerNorm(channels), nn.Linear(channels, 12)
        self.out = nn.Linear(12, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.out(F.gelu(self.mlp(self.norm2(x))))


class MaskedAttention(nn.Module):
    """PyTorch's own layer with a causal mask, and its function with one of another kind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        y, _ = self.attn(x, x, x, attn_mask=mask, need_weights=False)
        q, k, v = self.qkv(y).chunk(3, dim=-1)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class PlainAttention(nn.Module):
    """PyTorch's own layer without a mask, bias or query for weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, 1, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x)[0]


class ViT(nn.Module):
    """The mean of all patches is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.encoder = Patches(8), Encoder(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x)).mean(1))


class ConvNeXtBlock(nn.Module):
    """Channels behind for the layers that want them there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.pwconv1 = nn.Linear(channels, 2 * channels)
        self.pwconv2 = nn.Linear(2 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 2, 2)
        self.block1, self.block2 = ConvNeXtBlock(4), ConvNeXtBlock(4)
        self.norm, self.fc = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.block2(self.block1(self.stem(x))).mean((-2, -1))))


class Parts(nn.Module):
    """Channels and rows of images in parts, put together again by sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depth = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.depth(self.conv(x)).chunk(2, dim=1)
        gated = a * torch.sigmoid(b)
        return self.fc((gated + a.unflatten(1, (2, 2)).flatten(1, 2)).mean((2, 3)))
