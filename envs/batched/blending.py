"""Seeds mixed into the features of their hosts, for all lanes of a slot in one operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.batched.plan import Mode

Modes = Sequence[tuple[Mode, int]]
"""Numbers of neighbouring lanes with the same mode, in order."""


def blend(
    h: Tensor,
    seeds: Sequence[Tensor],
    weights: Sequence[Tensor],
    modes: Sequence[Modes],
    ablated: Tensor | None = None,
) -> Tensor:
    """Features after a slot.

    ===========  ================================
    mode         features
    ===========  ================================
    INCUBATE     h, bitwise; the seed gets the gradient that it would get in place of h
    ADD, GATE    h + w · (seed − h)
    MULTIPLY     h · (1 + w · tanh(seed − h))
    ===========  ================================

    An incubating seed must have been computed on detached features (:func:`detach_first`), so
    that nothing of it reaches the host.

    Args:
        h: ``[lanes, …]``. Its last lanes belong to the groups of ``seeds``, in their order; the
            ones before go through unchanged.
        seeds: what the seeds of each group give, ``[n, …]``.
        weights: w of each group, ``[n, 1, …]``, its last dimension 1 or that of ``h``. Only where
            the mode is GATE it gets a gradient.
        modes: of each group's lanes.
        ablated: lanes of ``h`` that are to go on without their seed too, behind all others.
    """
    return _Blend.apply(h, modes, ablated, *seeds, *weights)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        modes: Sequence[Modes],
        ablated: Tensor | None,
        *seeds_and_weights: Tensor,
    ) -> Tensor:
        seeds = seeds_and_weights[: len(modes)]
        extra = 0 if ablated is None else len(ablated)
        out = h.new_empty(len(h) + extra, *h.shape[1:])
        passing = len(h) - sum(map(len, seeds))
        out[:passing] = h[:passing]
        for mode, lanes, i, within in _spans(passing, modes):
            features, to = h[lanes], out[lanes]
            seed, weight = seeds_and_weights[i][within], seeds_and_weights[len(modes) + i][within]
            if mode is Mode.INCUBATE:
                to.copy_(features)
            elif mode is Mode.MULTIPLY:
                torch.addcmul(features, features * weight, torch.tanh(seed - features), out=to)
            else:
                torch.lerp(features, seed, weight, out=to)
        if ablated is not None:
            torch.index_select(h, 0, ablated, out=out[len(h) :])
        ctx.save_for_backward(h, ablated, *seeds_and_weights)
        ctx.modes = modes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, ablated, *seeds_and_weights = ctx.saved_tensors
        seeds, weights = seeds_and_weights[: len(ctx.modes)], seeds_and_weights[len(ctx.modes) :]
        passing = len(h) - sum(map(len, seeds))
        grad_h = torch.empty_like(h)
        grad_seeds = [torch.empty_like(seed) for seed in seeds]
        grad_weights = [
            torch.zeros_like(weight) if needed else None
            for weight, needed in zip(weights, ctx.needs_input_grad[3 + len(seeds) :], strict=True)
        ]
        grad_h[:passing] = grad[:passing]
        for mode, lanes, i, within in _spans(passing, ctx.modes):
            g, to_h, to_seed = grad[lanes], grad_h[lanes], grad_seeds[i][within]
            features, seed, weight = h[lanes], seeds[i][within], weights[i][within]
            if mode is Mode.INCUBATE:
                to_h.copy_(g)
                to_seed.copy_(g)
            elif mode is Mode.MULTIPLY:
                moved = torch.tanh(seed - features)
                torch.mul(g * features * weight, 1 - moved.square(), out=to_seed)
                torch.addcmul(g, g * weight, moved, out=to_h).sub_(to_seed)
            else:
                torch.mul(g, weight, out=to_seed)
                torch.sub(g, to_seed, out=to_h)
            grad_weight = grad_weights[i]
            if mode is Mode.GATE and grad_weight is not None:
                moved = ((seed - features) * g).flatten(1, -2).sum(1)
                grad_weight[within] = moved.view_as(grad_weight[within])
        if ablated is not None:
            grad_h.index_add_(0, ablated, grad[len(h) :])
        return grad_h, None, None, *grad_seeds, *grad_weights


def _spans(start: int, modes: Sequence[Modes]) -> Iterator[tuple[Mode, slice, int, slice]]:
    """Mode, lanes, number of the group and lanes within it of all neighbours of one mode."""
    for i, group in enumerate(modes):
        within = 0
        for mode, count in group:
            stop = within + count
            yield mode, slice(start + within, start + stop), i, slice(within, stop)
            within = stop
        start += within


class _DetachFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        ctx.count = count
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        grad[: ctx.count] = 0
        return grad, None


def detach_first(x: Tensor, count: int) -> Tensor:
    """``x``, whose first ``count`` rows pass no gradient on."""
    if count == 0:
        return x
    return x.detach() if count == len(x) else _DetachFirst.apply(x, count)
