"""A rule for each function of PyTorch that has a compiled form: see :mod:`envs.networks.rules`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from envs.batched.instructions import Activation, Buffer, Opcode
from envs.networks.steps import RELUS, NoRule, Step, Value, Weight, only_user

Rule = Callable[..., Value]


def activate(step: Step, kind: Activation, x: Value, inplace: bool = False) -> Value:
    _check_in_place(step, inplace)
    out, times, after = step.like(x), 1, only_user(step.node)
    if kind is Activation.SIGMOID and after and after.target is operator.mul:
        other = next((a for a in after.args if a is not step.node), None)
        if isinstance(other, int):
            times, step.values[after] = other, out
    return step.line(Opcode.ACTIVATE, x, out, size=kind, flag=times)


def _function(kind: Activation) -> Rule:
    def rule(step: Step, x: Value, inplace: bool = False) -> Value:
        return activate(step, kind, x, inplace)

    return rule


def gelu_of(step: Step, x: Value, approximate: str = "none") -> Value:
    return activate(step, Activation.GELU_TANH if approximate == "tanh" else Activation.GELU, x)


def _check_in_place(step: Step, inplace: bool = True) -> None:
    """Refuse a change of features that a later step reads too: it would see the changed ones."""
    first = step.node.args[0]
    if inplace and isinstance(first, fx.Node) and len(first.users) > 1:
        raise NoRule("it changes features that other layers read")


def average(step: Step, x: Value) -> Value:
    out = Value(step.code.buffer(x.buffer.channels), step.shape)
    return step.line(Opcode.AVERAGE, x, out)


def _mean(step: Step, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    dims = {d % (1 + len(x.shape)) for d in ((dim,) if isinstance(dim, int) else dim or ())}
    positions = {1} if x.last else {2, 3}
    if dims != positions or len(x.shape) != 1 + len(positions):
        raise NoRule("the average of all pixels or positions is needed")
    return average(step, x)


def flatten(step: Step, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    if start_dim != 1 or end_dim not in (-1, len(x.shape)):
        raise NoRule("all dimensions but that of the examples are needed, start_dim=1")
    if x.last and x.buffer.width > 1:
        raise NoRule("channels come last")
    return Value(Buffer(x.buffer.start, x.buffer.size), step.shape)


def _transpose(step: Step, x: Value, first: int, second: int) -> Value:
    if len(x.shape) != 2 or {first % 3, second % 3} != {1, 2}:
        raise NoRule("channels and positions of [B, T, C] are needed")
    return Value(x.buffer, step.shape, not x.last)


def _permute(step: Step, x: Value, *dims: Any) -> Value:
    order = dims[0] if len(dims) == 1 else dims
    if len(x.shape) != 2 or [d % 3 for d in order] != [0, 2, 1]:
        raise NoRule("channels and positions of [B, T, C] are needed, and nothing else")
    return Value(x.buffer, step.shape, not x.last)


def _index(step: Step, x: Value, index: Any) -> Value:
    """``x[:, :, None]`` and the like, which only add dimensions of one behind the examples."""
    each = index if isinstance(index, tuple) else (index,)
    only_adds = all(i is None or i is Ellipsis or i == slice(None) for i in each)
    if not only_adds or each[0] is None or x.last:
        raise NoRule("only None, ... and : are possible, and None not first")
    return Value(x.buffer, step.shape)


def _add(step: Step, x: Any, y: Any, sign: int = 1) -> Value:
    if isinstance(x, Weight) and sign == 1:
        x, y = y, x
    if isinstance(x, Value) and isinstance(y, Weight):
        return _weigh(step, x, y, sign)
    if not (isinstance(x, Value) and isinstance(y, Value)) or x[1:] != y[1:]:
        raise NoRule("two features of the same shape are needed")
    return step.line(Opcode.ADD, x, step.like(x), other=y.buffer, flag=sign)


def _subtract(step: Step, x: Any, y: Any) -> Value:
    return _add(step, x, y, -1)


def _add_in_place(step: Step, x: Any, y: Any) -> Value:
    _check_in_place(step)
    return _add(step, x, y)


def _multiply(step: Step, x: Any, y: Any) -> Value:
    """Features by others, by a factor for each channel, or by parameters."""
    if isinstance(x, Weight):
        x, y = y, x
    if isinstance(x, Value) and isinstance(y, Weight):
        return _weigh(step, x, y, 0)
    if isinstance(x, Value) and isinstance(y, Value):
        if x.shape == (*y.shape[:1], 1, 1):
            x, y = y, x
        if x[1:] == y[1:]:
            return step.line(Opcode.SCALE, x, step.like(x), other=y.buffer, size=1)
        if y.shape == (*x.shape[:1], 1, 1):
            pixels = x.buffer.height * x.buffer.width
            return step.line(Opcode.SCALE, x, step.like(x), other=y.buffer, size=pixels)
    raise NoRule("other features, or a factor for each channel, [B, C, 1, 1], are needed")


def _weigh(step: Step, x: Value, weight: Weight, sign: int) -> Value:
    """Features by parameters, or with these added: one, or one a channel, a pixel or a number."""
    shape = weight.shape
    while len(shape) > len(x.shape) and shape[0] == 1:
        shape = shape[1:]
    shape = (1,) * (len(x.shape) - len(shape)) + shape
    channel = len(x.shape) - 1 if x.last else 0
    channels, pixels = x.shape[channel], prod(x.shape) // x.shape[channel]
    around = shape[:channel] + shape[channel + 1 :]
    of_pixels = around == x.shape[:channel] + x.shape[channel + 1 :] and pixels > 1
    of_channels = shape[channel] == channels and channels > 1
    if len(shape) != len(x.shape) or not (
        (of_channels or shape[channel] == 1) and (of_pixels or prod(around) == 1)
    ):
        raise NoRule("a parameter must have one number, or one for each channel, pixel, or both")
    by_channel = (1 if x.last or not of_pixels else pixels) if of_channels else 0
    by_pixel = (channels if x.last and of_channels else 1) if of_pixels else 0
    return step.line(
        Opcode.WEIGH,
        x,
        step.like(x),
        parameters=weight.column,
        flag=sign,
        stride=by_channel,
        padding=by_pixel,
    )


FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(RELUS, _function(Activation.RELU)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), _function(Activation.SIGMOID)),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), _function(Activation.TANH)),
    F.silu: _function(Activation.SILU),
    F.gelu: gelu_of,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten"), flatten),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    operator.getitem: _index,
    **dict.fromkeys((operator.add, torch.add, "add"), _add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _subtract),
    **dict.fromkeys((operator.iadd, "add_"), _add_in_place),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _multiply),
}
"""By function, or by the name of a tensor's method."""

WEIGHING = frozenset((_add, _add_in_place, _subtract, _multiply))
"""Rules that take parameters, and not features alone."""


def only_reshapes(node: fx.Node) -> bool:
    """Does a step show numbers of its input in another shape, and in the same order?"""
    if node.target is operator.getitem:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(i is None or i is Ellipsis or isinstance(i, slice | int) for i in index)
    return node.target in ("view", "reshape", "unsqueeze", torch.reshape, torch.unsqueeze)
