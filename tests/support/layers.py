"""Compiled layers of one network, their gradients, and what compares them with torch's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from envs.batched.instructions import Assembler
from envs.batched.interpreter import backward, forward
from envs.networks.compiling import compile_module, trace_shapes
from envs.networks.steps import Value

FRONT, BACK = 3, 2
"""Parameters that belong to others."""


def results(function: Callable, args: list[Tensor]) -> list[Tensor]:
    """Output of a layer and the gradients of all its arguments."""
    leaves = [arg.detach().requires_grad_() for arg in args]
    out = function(*leaves)
    generator = torch.Generator().manual_seed(9)
    upstream = torch.randn(out.shape, dtype=out.dtype, generator=generator)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream, materialize_grads=True)]


def run_torch(module: nn.Module) -> Callable[..., Tensor]:
    """The module as a function of its input and parameters."""
    names = [name for name, _ in module.named_parameters()]
    return lambda x, *params: functional_call(module, dict(zip(names, params, strict=True)), (x,))


def run_compiled(module: nn.Module, *, last: bool = False) -> Callable[..., Tensor]:
    """The same through the compiled interpreter; ``last``: on ``[B, T, C]``."""
    return lambda *args: _Compiled.apply(module, last, *args)


class _Compiled(torch.autograd.Function):
    """A module's instructions, between other features and parameters."""

    @staticmethod
    def forward(ctx, module: nn.Module, last: bool, x: Tensor, *params: Tensor) -> Tensor:
        code = Assembler(2)
        rows = _rows(x, last)
        shape = x.shape[1:] if not last else (x.shape[2], 1, x.shape[1])
        seen = code.buffer(*shape)
        starts = accumulate((p.numel() for p in params), initial=FRONT)
        columns = {id(p): start for p, start in zip(module.parameters(), starts, strict=False)}
        traced = trace_shapes(module.float(), x[:1].float().nan_to_num())
        out = compile_module(traced, columns, code, Value(seen, tuple(x.shape[1:]), last))
        module.double()
        arena = np.full((code.place + 1, len(x)), 7.0)
        arena[seen.start : seen.start + seen.size] = rows.numpy()
        around = np.zeros(FRONT), np.zeros(BACK)
        flat = np.concatenate([around[0], *(p.flatten().numpy() for p in params), around[1]])
        no_slots = np.zeros(0, np.int64), np.zeros(0)
        ctx.run = (code.table(), np.arange(len(code.lines)), flat, *no_slots, arena, True, True)
        ctx.ends, ctx.shapes = (seen, last, out), [x.shape, *(p.shape for p in params)]
        forward(*ctx.run, True)
        assert (arena[:2] == 7).all()
        assert (arena[code.place :] == 7).all()
        given = torch.from_numpy(arena[out.buffer.start :][: out.buffer.size].copy())
        return _examples(given, out.shape, out.last)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seen, last, out), arena, flat = ctx.ends, ctx.run[-3], ctx.run[2]
        grads, grad_flat = np.zeros_like(arena), np.full_like(flat, 2.0)  # to be added to
        grads[out.buffer.start :][: out.buffer.size] = _rows(grad, out.last).numpy()
        backward(*ctx.run, grads, grad_flat)
        shape, *param_shapes = ctx.shapes
        given = torch.from_numpy(grads[seen.start : seen.start + seen.size])
        sizes = [shape.numel() for shape in param_shapes]
        parts = torch.from_numpy(grad_flat)[FRONT:-BACK].split(sizes)
        assert (grad_flat[[0, 1, 2, -2, -1]] == 2).all()
        params = [part.view(shape) - 2 for part, shape in zip(parts, param_shapes, strict=True)]
        return None, None, _examples(given, shape[1:], last), *params


def _rows(x: Tensor, last: bool) -> Tensor:
    """Examples ``[B, …]`` as the interpreter has them, ``[features, B]``."""
    return (x.movedim(-1, 1) if last else x).flatten(1).T.contiguous()


def _examples(rows: Tensor, shape: tuple[int, ...], last: bool) -> Tensor:
    """The inverse of :func:`_rows`."""
    if last:
        return rows.T.unflatten(1, (shape[-1], *shape[:-1])).movedim(1, -1)
    return rows.T.unflatten(1, shape)
