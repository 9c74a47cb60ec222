"""A rule for each function of PyTorch that has a compiled form: see :mod:`envs.networks.rules`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from envs.batched.instructions import Activation, Buffer, Opcode
from envs.networks.steps import RELUS, NoRule, Step, Weight, copy_features, does
from envs.networks.views import (
    APART,
    EXAMPLES,
    LOOKS,
    Value,
    View,
    in_order,
    is_like,
    look,
    same_order,
    value_of,
    view_of,
)

Rule = Callable[..., Any]

_LAYERS_THAT_LOOK = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout2d)


def activate(step: Step, kind: Activation, x: Value, inplace: bool = False) -> Value:
    _check_in_place(step, inplace)
    return step.line(Opcode.ACTIVATE, x, step.like(x), size=kind)


def _function(kind: Activation) -> Rule:
    def rule(step: Step, x: Value, inplace: bool = False) -> Value:
        return activate(step, kind, x, inplace)

    return rule


def gelu_of(step: Step, x: Value, approximate: str = "none") -> Value:
    return activate(step, Activation.GELU_TANH if approximate == "tanh" else Activation.GELU, x)


def _check_in_place(step: Step, inplace: bool = True) -> None:
    """Refuse a change of features that a later step reads too: it would see the changed ones."""
    first = step.node.args[0]
    while inplace and isinstance(first, fx.Node):
        if len(first.users) > 1:
            raise NoRule("it changes features that other layers read")
        looks = first.target in LOOKS or does(step.module, first, _LAYERS_THAT_LOOK, "contiguous")
        first = first.args[0] if looks else None


def _same(step: Step, x: Any) -> Any:
    return x


def look_at(function: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Features or a parameter in another shape, or parts of them, in a list where they are many."""
    if isinstance(x, list):  # of which one is taken
        return x[args[0]]
    last = isinstance(x, Value) and x.last
    is_weight = isinstance(x, Weight)
    view = x.view if is_weight else view_of(x) if isinstance(x, Value) else x
    found = look(function, view, *args, **options)
    if found is None:
        raise NoRule("numbers would have to move")

    def kind(view: View) -> Any:
        return Weight(view) if is_weight else value_of(view, last) or view

    return kind(found) if isinstance(found, View) else [kind(each) for each in found]


def average(step: Step, x: Value) -> Value:
    out = Value(step.code.buffer(x.buffer.channels), step.shape)
    return step.line(Opcode.AVERAGE, x, out)


def channels_first(x: Value) -> Value:
    found = in_order(x, last=False)
    if found is None:
        raise NoRule("its input must be [B, C, H, W] or [B, C, T]")
    return found


def channels_last(x: Value) -> Value:
    found = x if len(x.shape) == 1 else in_order(x, last=True)
    if found is None:
        raise NoRule("its input must be [B, C] or [B, T, C]")
    return found


def _mean(step: Step, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    dims = {d % (1 + len(x.shape)) for d in ((dim,) if isinstance(dim, int) else dim or ())}
    before = set(range(2, 1 + len(x.shape)))
    for last, positions in ((False, before), (True, {dim - 1 for dim in before})):
        ordered = in_order(x, last)
        if ordered and positions and dims == positions:
            return average(step, ordered)
    raise NoRule("the average of all pixels or positions is needed")


def norm(step: Step, x: Value, pixels: int, scale: int, shift: int, epsilon: float) -> Value:
    """Normalise each of so many pixels by itself, with ReLU if that comes next.

    Args:
        step: the step.
        x: features.
        pixels: of all channels; 1 for all pixels together.
        scale, shift: first column of each.
        epsilon: added to the variance.
    """
    out, relu = step.like(x), step.relu_after()
    if relu:
        step.values[relu] = out
    return step.line(
        Opcode.NORM,
        x,
        out,
        scratch=step.code.buffer(2, 1, pixels),
        parameters=scale,
        size=pixels,
        flag=int(relu is not None),
        stride=shift - scale,
        reals=(epsilon, 0.0),
    )


def _by_channel(x: Value, shape: Sequence[int], *weights: Any) -> tuple[Value, int]:
    """Channels last, and pixels that are normalised each, with parameters for each channel."""
    x = channels_last(x)
    channels = x.buffer.channels
    if tuple(shape) != (channels,):
        raise NoRule("it must be over the channels of [B, C] or [B, T, C]")
    if any(not isinstance(w, Weight) or w.view[1:] != ((channels,), (1,)) for w in weights):
        raise NoRule("a learned number for each channel is needed")
    return x, x.buffer.height * x.buffer.width


def layer_norm(
    step: Step, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Value:
    x, pixels = _by_channel(x, shape, weight, bias)
    return norm(step, x, pixels, weight.view.start, bias.view.start, eps)


def rms_norm(step: Step, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Value:
    x, pixels = _by_channel(x, shape, weight)
    return step.line(
        Opcode.RMS_NORM,
        x,
        step.like(x),
        scratch=step.code.buffer(1, 1, pixels),
        parameters=weight.view.start,
        reals=(torch.finfo(torch.float32).eps if eps is None else eps, 0.0),
    )


def _alter(step: Step, x: Any, factor: float, term: float) -> Value:
    """Features times a number, and another one added."""
    if not isinstance(x, Value):
        raise NoRule("a number and features are needed")
    return step.line(Opcode.ALTER, x, step.like(x), reals=(factor, term))


def _add(step: Step, x: Any, y: Any, sign: int = 1) -> Value:
    if isinstance(y, int | float):
        return _alter(step, x, 1.0, sign * y)
    if isinstance(x, int | float):
        return _alter(step, y, sign, x)
    if isinstance(x, Weight) and sign == 1:
        x, y = y, x
    if isinstance(x, Value) and isinstance(y, Weight):
        return _weigh(step, x, y, sign)
    if not (isinstance(x, Value) and isinstance(y, Value) and same_order(x, y)):
        raise NoRule("two features of the same shape are needed")
    return step.line(Opcode.ADD, x, step.like(x), other=y.buffer, flag=sign)


def _subtract(step: Step, x: Any, y: Any) -> Value:
    return _add(step, x, y, -1)


def _negate(step: Step, x: Any) -> Value:
    return _alter(step, x, -1.0, 0.0)


def _divide(step: Step, x: Any, y: Any) -> Value:
    if not isinstance(y, int | float):
        raise NoRule("a number to divide by is needed")
    return _alter(step, x, 1 / y, 0.0)


def _multiply(step: Step, x: Any, y: Any) -> Value:
    """Features by others, by a factor for each channel, by parameters or by a number."""
    if isinstance(x, Weight | int | float):
        x, y = y, x
    if isinstance(y, int | float):
        return _alter(step, x, y, 0.0)
    if isinstance(x, Value) and isinstance(y, Weight):
        return _weigh(step, x, y, 0)
    if isinstance(x, Value) and isinstance(y, Value):
        if x.shape == (*y.shape[:1], 1, 1):
            x, y = y, x
        if same_order(x, y):
            return step.line(Opcode.SCALE, x, step.like(x), other=y.buffer, size=1)
        if y.shape == (*x.shape[:1], 1, 1) and not x.last:
            pixels = x.buffer.height * x.buffer.width
            return step.line(Opcode.SCALE, x, step.like(x), other=y.buffer, size=pixels)
    raise NoRule("other features, or a factor for each channel, [B, C, 1, 1], are needed")


def _in_place(rule: Rule) -> Rule:
    def in_place(step: Step, x: Any, *args: Any) -> Any:
        _check_in_place(step)
        return rule(step, x, *args)

    return in_place


def _weigh(step: Step, x: Value, weight: Weight, sign: int) -> Value:
    """Features by parameters, or with these added: one, or one a channel, a pixel or a number."""
    view = weight.view
    while len(view.shape) > len(x.shape) and view.shape[0] == 1:  # in place of the examples
        view = View(view.start, view.shape[1:], view.strides[1:])
    try:
        view = look("expand", view, x.shape)
    except RuntimeError:
        raise NoRule("a parameter must have one number, or one for each channel or pixel") from None
    by_number = look("movedim", view, -1 if x.last else 0, 0)
    of_pixels = look("flatten", by_number, 1) if len(x.shape) > 1 else by_number
    if of_pixels is None:
        raise NoRule("a parameter must be the same for all rows or columns of pixels, or differ")
    by_channel, by_pixel = (*of_pixels.strides, 0)[:2]
    return step.line(
        Opcode.WEIGH,
        x,
        step.like(x),
        parameters=view.start,
        flag=sign,
        stride=by_channel,
        padding=by_pixel,
    )


def _attention(
    step: Step,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention of all heads, each with its channels beside those of the head before."""
    if dropout_p or scale is not None or enable_gqa:
        raise NoRule("dropout_p, scale and enable_gqa must be left out")
    if attn_mask is not None:
        is_bool = isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool
        is_causal = is_causal_mask(~attn_mask if is_bool else attn_mask)
    views = [view_of(x) if isinstance(x, Value) else x for x in (query, key, value)]
    if any(not isinstance(x, View) or x.shape != views[0].shape for x in views):
        raise NoRule("queries, keys and values of as many positions are needed")
    examples, *heads, length, size = views[0].shape
    first = View(0, views[0].shape, (APART, *[size * length] * len(heads), 1, length))
    if len(heads) > 1 or examples != EXAMPLES or any(not is_like(x, first) for x in views):
        raise NoRule("queries, keys and values must be [B, heads, T, C / heads], heads in order")
    channels = size * (heads[0] if heads else 1)
    parts = [Buffer(view.start, channels, 1, length) for view in views]
    x = replace(parts[0], channels=3 * channels)
    if any(part.start != x.start + i * part.size for i, part in enumerate(parts)):
        x = step.code.buffer(3 * channels, 1, length)
        for i, part in enumerate(parts):
            copy_features(step.code, part, replace(part, start=x.start + i * part.size))
    given = first._replace(start=attend(step, x, channels // size, is_causal=is_causal).start)
    return value_of(given, last=True) or given


def attend(step: Step, x: Buffer, heads: int, *, is_causal: bool) -> Buffer:
    """Attention of queries, keys and values of all heads, ``[3 · C, T]``."""
    seen = step.code.buffer(x.channels // 3, 1, x.width)
    distances = x.width if is_causal else 2 * x.width - 1
    return step.code.line(
        Opcode.ATTEND,
        x,
        seen,
        scratch=step.code.buffer(heads * distances, 1, x.width),
        size=heads,
        stride=0,
        padding=int(not is_causal),
    )


def is_causal_mask(hidden: Any) -> bool:
    """Does a mask hide what comes after a position, and nothing else?

    Args:
        hidden: bool, True where something is hidden, or floats that are added to the scores.

    Raises:
        NoRule: if it hides something else.
    """
    if not isinstance(hidden, Tensor) or hidden.dim() != 2:
        raise NoRule("a mask must be a constant [T, T]")
    later = torch.ones_like(hidden, dtype=torch.bool).triu(1)
    if hidden.dtype != torch.bool:
        later = torch.zeros_like(hidden).masked_fill(later, -torch.inf)
    if not hidden.equal(later):
        raise NoRule("a mask must hide what comes after each position, and nothing else")
    return True


SIZES = frozenset((getattr, "size", "dim"))
"""Functions and methods that give no features, but constants of their shape."""

_WITH_PARAMETERS: dict[Any, Rule] = {
    **dict.fromkeys((operator.add, torch.add, "add"), _add),
    **dict.fromkeys((operator.iadd, "add_"), _in_place(_add)),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _subtract),
    **dict.fromkeys((operator.isub, "sub_"), _in_place(_subtract)),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _multiply),
    **dict.fromkeys((operator.imul, "mul_"), _in_place(_multiply)),
    **dict.fromkeys((operator.truediv, torch.div, "div"), _divide),
    **dict.fromkeys((operator.itruediv, "div_"), _in_place(_divide)),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), _negate),
}

FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(RELUS, _function(Activation.RELU)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), _function(Activation.SIGMOID)),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), _function(Activation.TANH)),
    F.silu: _function(Activation.SILU),
    F.gelu: gelu_of,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    F.scaled_dot_product_attention: _attention,
    "contiguous": _same,
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    **_WITH_PARAMETERS,
}
"""By function, or by the name of a tensor's method."""

WEIGHING = frozenset((layer_norm, rms_norm, _attention, *_WITH_PARAMETERS.values()))
"""Rules that take parameters and constants, and not features alone."""

ANY_ORDER = frozenset((_attention, _same))
"""Rules that take features in whatever order."""
