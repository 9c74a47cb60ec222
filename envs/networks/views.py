"""Looks at numbers in another shape, in another order or in parts: no step of a program.

A view is found by PyTorch itself: the function is called with a tensor without numbers, whose
strides are those of the features, and the strides of what it gives are read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.batched.instructions import Buffer

EXAMPLES = 2
"""Examples of the tensors without numbers; a graph is traced with as many."""

APART = 2**31
"""Stride of the examples: more than any features have, so that a view can't mix examples."""

_BASE = torch.empty(APART * (1 + EXAMPLES), dtype=torch.uint8, device="meta")


class View(NamedTuple):
    """Numbers in any order.

    Attributes:
        start: place of the first, or its column.
        shape: in PyTorch; one dimension of features are the :data:`EXAMPLES`.
        strides: places, or columns, from one to the next along each dimension.
    """

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Value(NamedTuple):
    """Features in the order that instructions take.

    Attributes:
        buffer: where they lie; always channels first.
        shape: in PyTorch, without the batch.
        last: in PyTorch the channels come last, behind positions.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    last: bool = False


def view_of(x: Value) -> View:
    """The same features as a view."""
    strides = contiguous(x.shape)
    if x.last:
        *positions, _ = x.shape
        strides = (*contiguous(positions), prod(positions))
    return View(x.buffer.start, (EXAMPLES, *x.shape), (APART, *strides))


def value_of(view: View, last: bool = False) -> Value | None:
    """The same features in the order of instructions, None where they have another one.

    Args:
        view: of features.
        last: do channels come last, where both is possible?
    """
    shape = view.shape[1:]
    for channels_last in (last, not last):
        if len(shape) not in ((2, 3) if channels_last else (1, 2, 3)):
            continue
        *positions, channels = shape if channels_last else (*shape[1:], shape[0])
        height, width = (1, 1, *positions)[-2:]
        value = Value(Buffer(view.start, channels, height, width), shape, channels_last)
        if is_like(view, view_of(value)):
            return value
    return None


def in_order(x: Value, last: bool) -> Value | None:
    """The same features with their channels last, or first; None where they lie otherwise.

    Both is possible where there is one channel, or one position.
    """
    found = x if x.last == last else value_of(view_of(x), last)
    return found if found and found.last == last else None


def same_order(x: Value, y: Value) -> bool:
    """Are these features of the same shape, in the same order?"""
    return x.shape == y.shape and is_like(view_of(x), view_of(y))


def is_like(view: View, other: View) -> bool:
    """Are numbers apart as those of a view of the same shape?"""
    strides = zip(view.shape, view.strides, other.strides, strict=True)
    return all(size == 1 or stride == wanted for size, stride, wanted in strides)


def look(function: Callable[..., Any] | str, view: View, *args: Any, **options: Any) -> Any:
    """Call a function of PyTorch that looks at numbers.

    Args:
        function: or the name of a tensor's method.
        view: its first argument.
        args, options: its others, constants.

    Returns:
        The view; a list for a function that gives several; None where numbers have to move.
    """
    x = _BASE.as_strided(view.shape, view.strides, view.start)
    call = getattr(torch.Tensor, function) if isinstance(function, str) else function
    given = call(x, *args, **options)
    views = []
    for part in [given] if isinstance(given, Tensor) else given:
        if part.untyped_storage()._cdata != _BASE.untyped_storage()._cdata:
            return None
        views.append(View(int(part.storage_offset()), tuple(part.shape), part.stride()))
    return views[0] if isinstance(given, Tensor) else views


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of numbers that lie behind each other."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


LOOKS = frozenset(
    (
        *("view", "reshape", "flatten", "unflatten", "transpose", "swapaxes", "permute", "movedim"),
        *("squeeze", "unsqueeze", "split", "chunk", "unbind", "expand"),
        *(torch.reshape, torch.flatten, torch.unflatten, torch.transpose, torch.swapaxes),
        *(torch.permute, torch.movedim, torch.squeeze, torch.unsqueeze),
        *(torch.split, torch.chunk, torch.unbind, operator.getitem),
    )
)
"""Functions, and names of methods, that look at numbers, and may move them only to do so."""
