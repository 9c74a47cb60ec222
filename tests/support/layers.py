"""Layers of several networks, their gradients, and what compares them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.batched.instructions import Assembler
from envs.batched.interpreter import backward, forward
from envs.batched.programs import Layer

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


def run_plain(layer: Layer) -> Callable[..., Tensor]:
    """The layer as a function of its input and parameters, with a leading n each."""
    names = [entry.name for entry in layer.parameters]
    return lambda x, *params: layer(dict(zip(names, params, strict=True)), x)


class _Compiled(torch.autograd.Function):
    """The layer's instructions for one network, between other features and parameters."""

    @staticmethod
    def forward(ctx, layer: Layer, shape: torch.Size, x: Tensor, *params: Tensor) -> Tensor:
        code = Assembler()
        code.column = 3  # of parameters that belong to others
        code.buffer(2)
        seen = code.buffer(*x.shape[:-1])
        out = layer.emit(code, seen)
        arena = np.full((code.place + 1, x.shape[-1]), 7.0)
        arena[seen.start : seen.start + seen.size] = x.flatten(0, -2).numpy()
        flat = np.concatenate([np.zeros(3), *(p.flatten().numpy() for p in params), np.zeros(2)])
        ctx.run = (code.table(), np.arange(len(code.lines)), flat, *_no_slots(), arena, True, True)
        ctx.buffers, ctx.shapes = (seen, out), [x.shape, *(p.shape for p in params)]
        forward(*ctx.run)
        assert (arena[:2] == 7).all()
        assert (arena[code.place :] == 7).all()
        return torch.from_numpy(arena[out.start : out.start + out.size].copy()).view(shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seen, out), arena, flat = ctx.buffers, ctx.run[-3], ctx.run[2]
        grads, grad_flat = np.zeros_like(arena), np.full_like(flat, 2.0)  # to be added to
        grads[out.start : out.start + out.size] = grad.reshape(-1, grad.shape[-1]).numpy()
        backward(*ctx.run, grads, grad_flat)
        shape, *param_shapes = ctx.shapes
        grad_x = torch.from_numpy(grads[seen.start : seen.start + seen.size]).view(shape)
        sizes = [shape.numel() for shape in param_shapes]
        parts = torch.from_numpy(grad_flat)[3:-2].split(sizes)
        assert (grad_flat[[0, 1, 2, -2, -1]] == 2).all()
        params = [part.view(shape) - 2 for part, shape in zip(parts, param_shapes, strict=True)]
        return None, None, grad_x, *params


def _no_slots() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.int64), np.zeros(0)


def run_compiled(layer: Layer) -> Callable[..., Tensor]:
    """As :func:`run_plain`, one network after the other through the compiled interpreter."""

    def run(*args: Tensor) -> Tensor:
        shape = run_plain(layer)(*args).shape[1:]
        return torch.stack([_Compiled.apply(layer, shape, *one) for one in zip(*args, strict=True)])

    return run


FORMS = {"plain": run_plain, "compiled": run_compiled}
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
