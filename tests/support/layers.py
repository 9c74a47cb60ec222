"""Layers of several networks, their gradients, and what compares them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

NETWORKS = 3


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Arguments of a layer for all networks."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(NETWORKS, *shape, dtype=torch.float64, generator=generator) for shape in shapes
    ]


def results(function: Callable, args: list[Tensor], upstream: Tensor | None = None) -> list[Tensor]:
    """Output of a layer and the gradients of all its arguments."""
    leaves = [arg.detach().requires_grad_() for arg in args]
    out = function(*leaves)
    if upstream is None:
        upstream = torch.randn(
            out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(9)
        )
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream, materialize_grads=True)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
