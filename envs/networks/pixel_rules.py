"""Rules of convolutions and pooling, of images ``[B, C, H, W]`` and of signals ``[B, C, T]``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx, nn

from envs.batched.instructions import DRAWN, Buffer, Opcode
from envs.networks.function_rules import Rule, average, channels_first
from envs.networks.layers import DrawnConv
from envs.networks.steps import RELUS, NoRule, Step, does, only_user
from envs.networks.views import Value


def convolve(step: Step, layer: nn.Conv1d | nn.Conv2d, x: Value) -> Value:
    x = channels_first(x)
    sides = len(layer.kernel_size)
    size, stride = layer.kernel_size[0], layer.stride[0]
    padding = size // 2 if layer.padding == "same" else layer.padding[0]
    if (
        len(x.shape) != 1 + sides
        or layer.kernel_size != (size,) * sides
        or layer.stride not in ((1,) * sides, (2,) * sides)
        or layer.padding not in ("same", (padding,) * sides)
        or (layer.padding == "same" and size % 2 == 0)
        or layer.dilation != (1,) * sides
        or layer.padding_mode != "zeros"
    ):
        raise NoRule("a square kernel, stride 1 or 2, no dilation and zeros around are needed")
    pooled = _stem(step, layer, x)
    if pooled is not None:
        return pooled
    channels, outputs = x.buffer.channels, layer.out_channels
    if layer.groups == 1:
        opcode = Opcode.CONV
    elif layer.groups == channels == outputs:
        opcode = Opcode.DEPTHWISE
    else:
        raise NoRule("all channels must go together, or each by itself")
    out = _room(step)
    return step.line(
        opcode,
        _split(step, x) if stride == 2 else x,
        out,
        parameters=step.parameters(layer),
        size=size,
        flag=int(layer.bias is not None),
        stride=stride,
        padding=padding,
        flat=sides == 1,
    )


def _room(step: Step) -> Value:
    """Room for a step's result, channels first: ``[C, T]`` is an image of one row."""
    channels, *positions = step.shape
    height, width = (1, *positions)[-2:]
    return Value(step.code.buffer(channels, height, width), step.shape)


def _stem(step: Step, conv: nn.Conv1d | nn.Conv2d, x: Value) -> Value | None:
    """The first block of a network on one-channel images in closed form, if it is one.

    Channel c of a 1×1 convolution is w_c · pixel, so the norm only needs the image's mean and
    variance, and the pooled value is an increasing or decreasing function of the pixel: it is
    reached at the window's largest or smallest pixel. A quarter of the work, exactly the same
    function (and gradient) of the same parameters.
    """
    norm = only_user(step.node)
    relu = only_user(norm) if norm and does(step.module, norm, nn.GroupNorm) else None
    pool = only_user(relu) if relu and does(step.module, relu, nn.ReLU, *RELUS) else None
    if not (norm and relu and pool and halves(step.module, pool, x.buffer)):
        return None
    layer: Any = step.module.get_submodule(str(norm.target))
    start, outputs, b = step.parameters(conv), conv.out_channels, x.buffer
    fits = (
        (b == step.code.inputs and len(step.node.all_input_nodes[0].users) == 1)
        and (conv.weight.shape[1:] == (1, 1, 1) and conv.bias is None)
        and (conv.padding == (0, 0) and conv.stride == (1, 1))
        and (layer.num_groups == 1 and layer.affine)
        and replace(step, node=norm).parameters(layer) == start + outputs
    )
    if not fits:
        return None
    out = step.code.buffer(outputs, b.height // 2, b.width // 2)
    extremes = Buffer(b.start, 2 * (b.size // 4) + 2)
    kept, reals = step.code.buffer(2), (layer.eps, 0.0)
    step.code.line(Opcode.STEM, extremes, out, scratch=kept, parameters=start, reals=reals)
    step.code.takes_extremes = True
    pooled = Value(out, (outputs, out.height, out.width))
    step.values |= {norm: pooled, relu: pooled, pool: pooled}
    return pooled


def convolve_as_drawn(step: Step, layer: DrawnConv, x: Value) -> Value:
    x = channels_first(x)
    out = Value(step.code.buffer(*step.shape), step.shape)
    return step.line(Opcode.CONV, x, out, parameters=step.parameters(layer), size=DRAWN)


def _split(step: Step, x: Value) -> Value:
    """Features as a convolution of stride 2 takes them, made once for all that read them."""
    if x.buffer not in step.split:
        b = x.buffer
        tall, wide = -(-b.height // 2), -(-b.width // 2)
        room = step.code.buffer(4 * b.channels, tall, wide)
        step.code.line(Opcode.SPLIT, b, room)
        step.split[b] = Buffer(room.start, b.channels, tall, wide)
    return x._replace(buffer=step.split[x.buffer])


def pool_by(opcode: Opcode) -> Rule:
    def rule(step: Step, layer: Any, x: Value) -> Value:
        x = channels_first(x)
        flat = isinstance(layer, (nn.MaxPool1d, nn.AvgPool1d))
        numbers = [layer.kernel_size, layer.stride, layer.padding]
        sides = [set(each) if isinstance(each, tuple) else {each} for each in numbers]
        if any(len(each) > 1 for each in sides) or layer.ceil_mode:
            raise NoRule("square windows, and no ceil_mode, are needed")
        if len(x.shape) != (2 if flat else 3):
            raise NoRule(f"its input must be {'[B, C, T]' if flat else '[B, C, H, W]'}")
        if getattr(layer, "dilation", 1) not in (1, (1,), (1, 1)):
            raise NoRule("dilation must be 1")
        (size,), (stride,), (padding,) = sides
        alone = padding and not getattr(layer, "count_include_pad", True)
        if alone or getattr(layer, "divisor_override", None):
            raise NoRule("zeros around must count, and nothing else")
        out = _room(step)
        kept = step.code.buffer(out.buffer.size) if opcode is Opcode.MAX_POOL else None
        return step.line(
            opcode, x, out, scratch=kept, size=size, stride=stride, padding=padding, flat=flat
        )

    return rule


def average_all(step: Step, layer: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d, x: Value) -> Value:
    x = channels_first(x)
    sides = 1 if isinstance(layer, nn.AdaptiveAvgPool1d) else 2
    if layer.output_size not in (1, (1,) * sides) or len(x.shape) != 1 + sides:
        raise NoRule("the average of all pixels is needed")
    return average(step, x)


def halves(module: nn.Module, node: fx.Node, x: Buffer) -> bool:
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
