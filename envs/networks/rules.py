"""A rule for each layer of PyTorch that has a compiled form.

A rule writes the instructions of a step of a graph, and returns where its result is. It raises
:class:`~envs.networks.steps.NoRule` where the step asks for more than it can do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.batched.instructions import Activation, Buffer, Opcode
from envs.networks.function_rules import (
    ANY_ORDER,
    WEIGHING,
    Rule,
    activate,
    attend,
    channels_first,
    channels_last,
    gelu_of,
    is_causal_mask,
    layer_norm,
    look_at,
    norm,
    rms_norm,
)
from envs.networks.layers import DrawnConv, Mix, RelativeAttention
from envs.networks.pixel_rules import (
    average_all,
    convolve,
    convolve_as_drawn,
    halves,
    pool_by,
)
from envs.networks.steps import NoRule, Step, Weight, only_user
from envs.networks.views import Value, View, contiguous, same_order


def _linear(step: Step, layer: nn.Linear, x: Value) -> Value:
    x = channels_last(x)
    if len(x.shape) == 1:
        x = x._replace(buffer=Buffer(x.buffer.start, x.buffer.size))
    b = x.buffer
    out = Value(step.code.buffer(layer.out_features, b.height, b.width), step.shape, x.last)
    flag = int(layer.bias is not None)
    return step.line(Opcode.CONV, x, out, parameters=step.parameters(layer), flag=flag)


def _embedding(step: Step, layer: nn.Embedding, x: Value | Tensor) -> Value | Weight:
    if layer.max_norm is not None or layer.scale_grad_by_freq or layer.padding_idx is not None:
        raise NoRule("max_norm, scale_grad_by_freq and padding_idx must be left out")
    if isinstance(x, Tensor):  # such as numbers of positions, the same for all examples
        first, shape = int(x.flatten()[0]), (*x.shape, layer.embedding_dim)
        if not x.flatten().equal(torch.arange(first, first + x.numel())):
            raise NoRule("constants must be numbers in a row")
        start = step.parameters(layer) + first * layer.embedding_dim
        return Weight(View(start, shape, contiguous(shape)))
    if not isinstance(x, Value) or len(x.shape) != 1:
        raise NoRule("tokens [B, T] are needed")
    out = Value(step.code.buffer(layer.embedding_dim, 1, x.shape[0]), step.shape, True)
    return step.line(
        Opcode.EMBED, x, out, parameters=step.parameters(layer), size=0, flag=layer.num_embeddings
    )


def _group_norm(step: Step, layer: nn.GroupNorm, x: Value) -> Value:
    x = channels_first(x)
    if not layer.affine:
        raise NoRule("a learned scale and shift are needed")
    parameters, relu, b = step.parameters(layer), step.relu_after(), x.buffer
    if layer.num_groups > 1:
        return _group_norms(step, layer, x, parameters, relu)
    if relu:
        pool = only_user(relu)
        if pool and halves(step.module, pool, b):
            small = step.code.buffer(b.channels, b.height // 2, b.width // 2)
            kept = step.code.buffer(2 + small.size + b.size)
            pooled = Value(small, (b.channels, b.height // 2, b.width // 2))
            reals = layer.eps, 0.0
            step.line(Opcode.NORM_POOL, x, pooled, scratch=kept, parameters=parameters, reals=reals)
            step.values[relu] = step.values[pool] = pooled
            return pooled
    return norm(step, x, 1, parameters, parameters + b.channels, layer.eps)


def _group_norms(
    step: Step, layer: nn.GroupNorm, x: Value, parameters: int, relu: fx.Node | None
) -> Value:
    """Normalise each group of channels by itself."""
    groups = layer.num_groups
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
            reals=(layer.eps, 0.0),
        )
    return out


def _layer_norm(step: Step, layer: nn.LayerNorm, x: Value) -> Value:
    if not layer.elementwise_affine or layer.bias is None:
        raise NoRule("a learned scale and shift are needed")
    start, shape = step.parameters(layer), tuple(layer.normalized_shape)
    scale, shift = (Weight(View(start + i * shape[-1], shape, (1,))) for i in range(2))
    return layer_norm(step, x, shape, scale, shift, layer.eps)


def _rms_norm(step: Step, layer: nn.RMSNorm, x: Value) -> Value:
    if not layer.elementwise_affine:
        raise NoRule("a learned scale is needed")
    shape = tuple(layer.normalized_shape)
    scale = Weight(View(step.parameters(layer), shape, (1,)))
    return rms_norm(step, x, shape, scale, layer.eps)


def _batch_norm(step: Step, layer: nn.BatchNorm2d, x: Value) -> Value:
    x = channels_first(x)
    if not layer.affine or not layer.track_running_stats:
        raise NoRule("a learned scale and shift, and running statistics are needed")
    if layer.momentum is None:
        raise NoRule("momentum must be a number")
    relu, out = step.relu_after(), step.like(x)
    if relu:
        step.values[relu] = out
    return step.line(
        Opcode.BATCH_NORM,
        x,
        out,
        scratch=step.code.buffer(2 * x.buffer.channels),
        parameters=step.parameters(layer),
        statistics=step.buffers(layer),
        flag=int(relu is not None),
        reals=(layer.eps, layer.momentum),
    )


def _mix(step: Step, layer: Mix, x: Value, y: Value) -> Value:
    x = channels_last(x) if len(layer.shape) == 1 else channels_first(x)
    if not same_order(x, y):
        raise NoRule("two features of the same shape are needed")
    parameters = step.parameters(layer)
    return step.line(Opcode.MIX, x, step.like(x), other=y.buffer, parameters=parameters)


def _relative_attention(step: Step, layer: RelativeAttention, x: Value) -> Value:
    x = channels_last(x)
    if len(x.shape) != 2:
        raise NoRule("its input must be [B, T, 3 · C]")
    length, channels = step.shape
    seen = Value(step.code.buffer(channels, 1, length), step.shape, True)
    weights = step.code.buffer(layer.heads * min(layer.window or length, length), 1, length)
    return step.line(
        Opcode.ATTEND,
        x,
        seen,
        scratch=weights,
        parameters=step.parameters(layer),
        size=layer.heads,
        flag=layer.window or 0,
    )


def _multihead_attention(
    step: Step,
    layer: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> list[Value | None]:
    """Self-attention with its projections; the weights, if they are needed, are not there."""
    packed = layer.in_proj_weight is not None and layer.bias_k is None and not layer.add_zero_attn
    if not packed or layer.dropout or not layer.batch_first or key_padding_mask is not None:
        raise NoRule(
            "batch_first, and no dropout, kdim, vdim, add_bias_kv, add_zero_attn and "
            "key_padding_mask are needed"
        )
    if not (isinstance(query, Value) and query == key == value and len(query.shape) == 2):
        raise NoRule("queries, keys and values must be the same [B, T, C]")
    causal = attn_mask is not None and is_causal_mask(attn_mask)
    start, flag = step.parameters(layer), int(layer.in_proj_bias is not None)
    query, code = channels_last(query), step.code
    x = query.buffer
    projected, out = code.buffer(3 * x.channels, 1, x.width), step.like(query)
    code.line(Opcode.CONV, x, projected, parameters=start, flag=flag)
    seen = attend(step, projected, layer.num_heads, is_causal=causal)
    start += 3 * x.channels * (x.channels + flag)
    code.line(Opcode.CONV, seen, out.buffer, parameters=start, flag=flag)
    return [out, None]


def _activation(kind: Activation) -> Rule:
    def rule(step: Step, layer: nn.Module, x: Value) -> Value:
        return activate(step, kind, x, getattr(layer, "inplace", False))

    return rule


def _gelu(step: Step, layer: nn.GELU, x: Value) -> Value:
    return gelu_of(step, x, layer.approximate)


def _same(step: Step, layer: nn.Module, x: Value) -> Value:
    return x


def _flatten(step: Step, layer: nn.Flatten, x: Any) -> Any:
    return look_at("flatten", x, layer.start_dim, layer.end_dim)


def _unflatten(step: Step, layer: nn.Unflatten, x: Any) -> Any:
    return look_at("unflatten", x, layer.dim, layer.unflattened_size)


def _dropout(step: Step, layer: Any, x: Value) -> Value:
    if layer.p > 0:
        raise NoRule("it draws random numbers")
    return x


LAYERS: dict[type[nn.Module], Rule] = {
    nn.Conv1d: convolve,
    nn.Conv2d: convolve,
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.MultiheadAttention: _multihead_attention,
    nn.RMSNorm: _rms_norm,
    nn.ReLU: _activation(Activation.RELU),
    nn.Sigmoid: _activation(Activation.SIGMOID),
    nn.Tanh: _activation(Activation.TANH),
    nn.SiLU: _activation(Activation.SILU),
    nn.GELU: _gelu,
    nn.MaxPool1d: pool_by(Opcode.MAX_POOL),
    nn.MaxPool2d: pool_by(Opcode.MAX_POOL),
    nn.AvgPool1d: pool_by(Opcode.AVERAGE_POOL),
    nn.AvgPool2d: pool_by(Opcode.AVERAGE_POOL),
    nn.AdaptiveAvgPool1d: average_all,
    nn.AdaptiveAvgPool2d: average_all,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    nn.Identity: _same,
    nn.Dropout: _dropout,
    nn.Dropout1d: _dropout,
    nn.Dropout2d: _dropout,
    DrawnConv: convolve_as_drawn,
    Mix: _mix,
    RelativeAttention: _relative_attention,
}
"""By class, which must be the very one: a subclass may do something else."""

TAKE_CONSTANTS = WEIGHING | {_embedding, _multihead_attention}
"""Rules that take parameters or constants, and not features alone."""

TAKE_ANY_ORDER = ANY_ORDER | {_flatten, _unflatten, _same, _dropout}
"""Rules that take features in whatever order."""
