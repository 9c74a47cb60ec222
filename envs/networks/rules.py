"""A rule for each layer and function of PyTorch that has a compiled form.

A rule writes the instructions of a step of a graph, and returns where its result is. It raises
:class:`~envs.networks.steps.NoRule` where the step asks for more than it can do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from envs.batched.instructions import Activation, Buffer, Opcode
from envs.batched.parameters import NORM_EPSILON
from envs.networks.steps import RELUS, NoRule, Step, Value, does, only_user

Layer = Callable[..., Value]


# -- layers -----------------------------------------------------------------------------------


def _conv(step: Step, layer: nn.Conv2d, x: Value) -> Value:
    size, stride = layer.kernel_size[0], layer.stride[0]
    padding = size // 2 if layer.padding == "same" else layer.padding[0]
    if (
        layer.kernel_size != (size, size)
        or layer.stride not in ((1, 1), (2, 2))
        or layer.padding not in ("same", (padding, padding))
        or (layer.padding == "same" and size % 2 == 0)
        or layer.dilation != (1, 1)
        or layer.padding_mode != "zeros"
    ):
        raise NoRule("a square kernel, stride 1 or 2, no dilation and zeros around are needed")
    channels, (outputs, height, width) = x.buffer.channels, step.shape
    if layer.groups == 1:
        opcode = Opcode.CONV
    elif layer.groups == channels == outputs:
        opcode = Opcode.DEPTHWISE
    else:
        raise NoRule("all channels must go together, or each by itself")
    out = Value(step.code.buffer(outputs, height, width), step.shape)
    return step.line(
        opcode,
        _split(step, x) if stride == 2 else x,
        out,
        parameters=step.parameters(layer),
        size=size,
        flag=int(layer.bias is not None),
        stride=stride,
        padding=padding,
    )


def _split(step: Step, x: Value) -> Value:
    """Features as a convolution of stride 2 takes them, made once for all that read them."""
    if x.buffer not in step.split:
        b = x.buffer
        tall, wide = -(-b.height // 2), -(-b.width // 2)
        room = step.code.buffer(4 * b.channels, tall, wide)
        step.code.line(Opcode.SPLIT, b, room)
        step.split[b] = Buffer(room.start, b.channels, tall, wide)
    return x._replace(buffer=step.split[x.buffer])


def _linear(step: Step, layer: nn.Linear, x: Value) -> Value:
    if len(x.shape) == 1:
        positions, x = 1, x._replace(buffer=Buffer(x.buffer.start, x.buffer.size))
    elif len(x.shape) == 2 and x.last:
        positions = x.shape[0]
    else:
        raise NoRule("its input must be [B, C] or [B, T, C]")
    out = Value(step.code.buffer(layer.out_features, 1, positions), step.shape, x.last)
    flag = int(layer.bias is not None)
    return step.line(Opcode.CONV, x, out, parameters=step.parameters(layer), flag=flag)


def _embedding(step: Step, layer: nn.Embedding, x: Value) -> Value:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.padding_idx is not None:
        raise NoRule("max_norm, scale_grad_by_freq and padding_idx must be left out")
    if len(x.shape) != 1:
        raise NoRule("tokens [B, T] are needed")
    out = Value(step.code.buffer(layer.embedding_dim, 1, x.shape[0]), step.shape, True)
    return step.line(
        Opcode.EMBED, x, out, parameters=step.parameters(layer), size=0, flag=layer.num_embeddings
    )


def _group_norm(step: Step, layer: nn.GroupNorm, x: Value) -> Value:
    if not layer.affine or layer.eps != NORM_EPSILON or x.last:
        raise NoRule("a learned scale and shift, and eps=1e-5 are needed")
    parameters, relu, b = step.parameters(layer), step.relu_after(), x.buffer
    if layer.num_groups > 1:
        return _group_norms(step, layer.num_groups, x, parameters, relu)
    if relu:
        pool = only_user(relu)
        if pool and _halves(step.module, pool, b):
            small = step.code.buffer(b.channels, b.height // 2, b.width // 2)
            kept = step.code.buffer(2 + small.size + b.size)
            pooled = Value(small, (b.channels, b.height // 2, b.width // 2))
            step.line(Opcode.NORM_POOL, x, pooled, scratch=kept, parameters=parameters)
            step.values[relu] = step.values[pool] = pooled
            return pooled
    return _norm(step, x, parameters, 1, relu)


def _group_norms(step: Step, groups: int, x: Value, parameters: int, relu: fx.Node | None) -> Value:
    """Normalise each group of channels by itself."""
    out, each = step.like(x), x.buffer.channels // groups
    if relu:
        step.values[relu] = out
    for group in range(groups):
        x_part, out_part = (
            replace(b, start=b.start + group * b.size // groups, channels=each)
            for b in (x.buffer, out.buffer)
        )
        step.code.line(
            Opcode.NORM,
            x_part,
            out_part,
            scratch=step.code.buffer(2),
            parameters=parameters + group * each,
            flag=int(relu is not None),
            stride=x.buffer.channels,
        )
    return out


def _norm(step: Step, x: Value, parameters: int, pixels: int, relu: fx.Node | None) -> Value:
    """Normalise each of so many pixels by itself, with ReLU if that comes next."""
    out, kept = step.like(x), step.code.buffer(2, 1, pixels)
    if relu:
        step.values[relu] = out
    return step.line(
        Opcode.NORM,
        x,
        out,
        scratch=kept,
        parameters=parameters,
        size=pixels,
        flag=int(relu is not None),
        stride=x.buffer.channels,
    )


def _layer_norm(step: Step, layer: nn.LayerNorm, x: Value) -> Value:
    channels = x.buffer.channels
    if layer.normalized_shape != (channels,) or not (x.last or len(x.shape) == 1):
        raise NoRule("it must be over the channels of [B, C] or [B, T, C]")
    if not layer.elementwise_affine or layer.bias is None or layer.eps != NORM_EPSILON:
        raise NoRule("a learned scale and shift, and eps=1e-5 are needed")
    pixels = x.buffer.height * x.buffer.width
    return _norm(step, x, step.parameters(layer), pixels, step.relu_after())


def _activation(kind: Activation) -> Layer:
    def rule(step: Step, layer: nn.Module, x: Value) -> Value:
        return _activate(step, kind, x, getattr(layer, "inplace", False))

    return rule


def _gelu(step: Step, layer: nn.GELU, x: Value) -> Value:
    return _gelu_of(step, x, layer.approximate)


def _pool(opcode: Opcode) -> Layer:
    def rule(step: Step, layer: Any, x: Value) -> Value:
        numbers = [layer.kernel_size, layer.stride, layer.padding]
        pairs = [each if isinstance(each, tuple) else (each, each) for each in numbers]
        if any(tall != wide for tall, wide in pairs) or len(x.shape) != 3 or layer.ceil_mode:
            raise NoRule("square windows of [B, C, H, W], and no ceil_mode, are needed")
        if getattr(layer, "dilation", 1) not in (1, (1, 1)):
            raise NoRule("dilation must be 1")
        (size, _), (stride, _), (padding, _) = pairs
        alone = padding and not getattr(layer, "count_include_pad", True)
        if alone or getattr(layer, "divisor_override", None):
            raise NoRule("zeros around must count, and nothing else")
        out = Value(step.code.buffer(*step.shape), step.shape)
        kept = step.code.buffer(out.buffer.size) if opcode is Opcode.MAX_POOL else None
        return step.line(opcode, x, out, scratch=kept, size=size, stride=stride, padding=padding)

    return rule


def _global_average(step: Step, layer: nn.AdaptiveAvgPool2d, x: Value) -> Value:
    if layer.output_size not in (1, (1, 1)) or len(x.shape) != 3:
        raise NoRule("the average of all pixels is needed")
    return _average(step, x)


def _same(step: Step, layer: nn.Module, x: Value) -> Value:
    return x


def _flatten_layer(step: Step, layer: nn.Flatten, x: Value) -> Value:
    return _flatten(step, x, layer.start_dim, layer.end_dim)


def _dropout(step: Step, layer: Any, x: Value) -> Value:
    if layer.p > 0:
        raise NoRule("it draws random numbers")
    return x


LAYERS: dict[type[nn.Module], Layer] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.ReLU: _activation(Activation.RELU),
    nn.Sigmoid: _activation(Activation.SIGMOID),
    nn.Tanh: _activation(Activation.TANH),
    nn.SiLU: _activation(Activation.SILU),
    nn.GELU: _gelu,
    nn.MaxPool2d: _pool(Opcode.MAX_POOL),
    nn.AvgPool2d: _pool(Opcode.AVERAGE_POOL),
    nn.AdaptiveAvgPool2d: _global_average,
    nn.Flatten: _flatten_layer,
    nn.Identity: _same,
    nn.Dropout: _dropout,
    nn.Dropout2d: _dropout,
}
"""By class, which must be the very one: a subclass may do something else."""


# -- functions --------------------------------------------------------------------------------


def _activate(step: Step, kind: Activation, x: Value, inplace: bool = False) -> Value:
    _check_in_place(step, inplace)
    return step.line(Opcode.ACTIVATE, x, step.like(x), size=kind, flag=1)


def _function(kind: Activation) -> Layer:
    def rule(step: Step, x: Value, inplace: bool = False) -> Value:
        return _activate(step, kind, x, inplace)

    return rule


def _gelu_of(step: Step, x: Value, approximate: str = "none") -> Value:
    return _activate(step, Activation.GELU_TANH if approximate == "tanh" else Activation.GELU, x)


def _check_in_place(step: Step, inplace: bool = True) -> None:
    """Refuse a change of features that a later step reads too: it would see the changed ones."""
    first = step.node.args[0]
    if inplace and isinstance(first, fx.Node) and len(first.users) > 1:
        raise NoRule("it changes features that other layers read")


def _average(step: Step, x: Value) -> Value:
    out = Value(step.code.buffer(x.buffer.channels), step.shape)
    return step.line(Opcode.AVERAGE, x, out)


def _mean(step: Step, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    dims = {d % (1 + len(x.shape)) for d in ((dim,) if isinstance(dim, int) else dim or ())}
    positions = {1} if x.last else {2, 3}
    if dims != positions or len(x.shape) != 1 + len(positions):
        raise NoRule("the average of all pixels or positions is needed")
    return _average(step, x)


def _flatten(step: Step, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
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
    if not (isinstance(x, Value) and isinstance(y, Value)) or x[1:] != y[1:]:
        raise NoRule("two features of the same shape are needed")
    return step.line(Opcode.ADD, x, step.like(x), other=y.buffer, flag=sign)


def _subtract(step: Step, x: Any, y: Any) -> Value:
    return _add(step, x, y, -1)


def _add_in_place(step: Step, x: Any, y: Any) -> Value:
    _check_in_place(step)
    return _add(step, x, y)


def _multiply(step: Step, x: Any, y: Any) -> Value:
    """Features by others, or by a factor for each channel."""
    if isinstance(x, Value) and isinstance(y, Value):
        if x.shape == (*y.shape[:1], 1, 1):
            x, y = y, x
        if x[1:] == y[1:]:
            return step.line(Opcode.SCALE, x, step.like(x), other=y.buffer, size=1)
        if y.shape == (*x.shape[:1], 1, 1):
            pixels = x.buffer.height * x.buffer.width
            return step.line(Opcode.SCALE, x, step.like(x), other=y.buffer, size=pixels)
    raise NoRule("other features, or a factor for each channel, [B, C, 1, 1], are needed")


FUNCTIONS: dict[Any, Layer] = {
    **dict.fromkeys(RELUS, _function(Activation.RELU)),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid"), _function(Activation.SIGMOID)),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh"), _function(Activation.TANH)),
    F.silu: _function(Activation.SILU),
    F.gelu: _gelu_of,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    operator.getitem: _index,
    **dict.fromkeys((operator.add, torch.add, "add"), _add),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _subtract),
    **dict.fromkeys((operator.iadd, "add_"), _add_in_place),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _multiply),
}
"""By function, or by the name of a tensor's method."""


def _halves(module: nn.Module, node: fx.Node, x: Buffer) -> bool:
    """Is a step 2×2 max pooling of features whose height and width are even?"""
    if x.height % 2 or x.width % 2 or not does(module, node, nn.MaxPool2d):
        return False
    pool = module.get_submodule(str(node.target))
    expected = nn.MaxPool2d(2)
    return all(
        getattr(pool, name) in (value, (value, value))
        for name, value in vars(expected).items()
        if name in ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
    )
