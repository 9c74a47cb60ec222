"""The compiled form of ordinary modules.

:func:`compile_module` goes through the :mod:`torch.fx` graph of a module and lets the rule of each
step write its instructions (:mod:`envs.batched.instructions`). A module of which one step has no
rule has no compiled form: the error names the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from envs.batched.instructions import Assembler, Buffer
from envs.networks.cutting import UNTRACEABLE, ByMode, trace
from envs.networks.function_rules import FUNCTIONS, WEIGHING, only_reshapes
from envs.networks.rules import LAYERS
from envs.networks.steps import NoRule, Step, Value, Weight


class NotCompiledError(Exception):
    """Something has no compiled form; the message says what."""


def trace_shapes(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a module with one input, and the shape of what each step gives for an example.

    Raises:
        NotCompiledError: if it can't be traced, or fails.
    """
    if isinstance(module, ByMode):
        raise NotCompiledError("its forward asks self.training")
    if not isinstance(module, fx.GraphModule):
        module = nn.Sequential(module)  # it may be a layer itself, which is a step then
    try:
        modes = [fx.GraphModule(module, trace(module.train(mode))) for mode in (True, False)]
    except UNTRACEABLE as error:
        raise NotCompiledError(f"it can't be traced: {error}") from None
    traced = modes[1]  # and all of the module is in evaluation again
    if modes[0].code != traced.code:
        raise NotCompiledError("its forward asks self.training")
    try:
        ShapeProp(traced).propagate(torch.cat([example, example]))
    except RuntimeError as error:
        raise NotCompiledError(f"it fails for an example: {error.__cause__ or error}") from None
    return traced


def compile_module(
    module: fx.GraphModule,
    columns: Mapping[int, int],
    code: Assembler,
    x: Value,
    names: Mapping[int, str] | None = None,
) -> Value:
    """Write the instructions of a module.

    Args:
        module: from :func:`trace_shapes`.
        columns: first column of each parameter and buffer that a network has for itself, by ``id``.
        code: where instructions are written.
        x: the input's features.
        names: of the layers for messages, by ``id``; default: their names in ``module``.

    Returns:
        The output.

    Raises:
        NotCompiledError: if a step has no rule; the message names it.
    """
    own = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    by_name = {name: columns[id(tensor)] for name, tensor in own if id(tensor) in columns}
    values: dict[fx.Node, Value] = {}
    weights: dict[fx.Node, Weight] = {}
    split: dict[Buffer, Buffer] = {}
    for node in module.graph.nodes:
        if node.op == "output":
            (result,) = node.args
            if not isinstance(result, fx.Node) or result not in values:
                raise NotCompiledError("the output: no compiled form of several values")
            return values[result]
        if node in values:  # a rule before has taken it with it
            continue
        weight = _weight(node, by_name, weights)
        if weight or node.op == "get_attr":
            weights |= {node: weight} if weight else {}
            continue
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        try:
            step = Step(module, code, node, _shape(node)[1:], by_name, values, split)
            values[node] = _compile_step(step, layer, weights, x)
        except NoRule as reason:
            name = (names or {}).get(id(layer), node.name if layer is None else node.target)
            form = _name_of(layer if layer is not None else node.target)
            because = f" here: {reason}" if str(reason) else ""
            raise NotCompiledError(f"{name}: no compiled form of {form}{because}") from None
    raise AssertionError("a graph has an output")


def _compile_step(
    step: Step, layer: nn.Module | None, weights: Mapping[fx.Node, Weight], x: Value
) -> Value:
    node = step.node
    if node.op == "placeholder":
        return x._replace(shape=step.shape)
    rule: Callable[..., Value] | None
    args: Any
    if layer is None:
        rule, args = FUNCTIONS.get(node.target), node.args
    else:
        rule, args = LAYERS.get(type(layer)), (layer, *node.args)
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            raise NoRule("it has hooks")
    if rule is None:
        raise NoRule

    def known(node: fx.Node) -> Any:
        if node in weights and rule in WEIGHING:
            return weights[node]
        if node not in step.values:
            raise NoRule(f"it reads {node.target} by itself")
        return step.values[node]

    given: Any = fx.node.map_arg(args, known)
    options: Any = fx.node.map_arg(node.kwargs, known)
    try:
        signature(rule).bind(step, *given, **options)
    except TypeError:
        raise NoRule(f"its arguments are {(*node.args, *node.kwargs)}") from None
    return rule(step, *given, **options)


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    if meta is None or not isinstance(getattr(meta, "shape", None), torch.Size):
        raise NoRule("its result is no tensor")
    return tuple(meta.shape)


def _weight(
    node: fx.Node, columns: Mapping[str, int], weights: Mapping[fx.Node, Weight]
) -> Weight | None:
    """A parameter, or one in another shape, that a later step reads by itself."""
    if node.op == "get_attr" and node.target in columns:
        return Weight(columns[str(node.target)], _shape(node))
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and first in weights and only_reshapes(node):
        old, shape = weights[first], _shape(node)
        return Weight(old.column, shape) if prod(shape) == prod(old.shape) else None
    return None


def _name_of(what: Any) -> str:
    kind = type(what) if isinstance(what, nn.Module) else what
    if isinstance(kind, str):
        return f"Tensor.{kind}"
    module = getattr(kind, "__module__", "") or ""
    prefix = "nn." if module.startswith("torch.nn.modules") else ""
    return prefix + getattr(kind, "__name__", str(kind))
