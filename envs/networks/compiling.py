"""The compiled form of ordinary modules.

:func:`compile_module` goes through the :mod:`torch.fx` graph of a module and lets the rule of each
step write its instructions (:mod:`envs.batched.instructions`). A module of which one step has no
rule has no compiled form: the error names the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.batched.instructions import Assembler, Buffer
from envs.networks.behaviour import examples_like
from envs.networks.cutting import UNTRACEABLE, ByMode, trace, why_untraceable
from envs.networks.function_rules import FUNCTIONS, SIZES, look_at
from envs.networks.rules import LAYERS, TAKE_ANY_ORDER, TAKE_CONSTANTS
from envs.networks.steps import NoRule, Step, Weight
from envs.networks.views import EXAMPLES, LOOKS, Value, View, contiguous

_OF_NETWORK = (Value, View, Weight, list)
"""Kinds of what depends on examples or parameters."""


class NotCompiledError(Exception):
    """Something has no compiled form; the message says what."""


class _Run(fx.Interpreter):
    """Notes what each step gives."""

    def run_node(self, n: fx.Node) -> Any:
        n.meta["given"] = super().run_node(n)
        return n.meta["given"]


def trace_shapes(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """The graph of a module with one input, and what each step gives for two examples.

    Raises:
        NotCompiledError: if it can't be traced, fails, or does something else then.
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
    examples = examples_like(example, EXAMPLES)
    try:
        with torch.no_grad():
            given, expected = _Run(traced).run(examples.clone()), module(examples.clone())
    except RuntimeError as error:
        raise NotCompiledError(f"it fails for an example: {error.__cause__ or error}") from None
    if isinstance(given, Tensor) and not torch.allclose(given, expected, 1e-4, 1e-5, True):
        raise NotCompiledError("torch.fx traces it as something else, such as h += x as h + x")
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
    values: dict[fx.Node, Any] = {}
    split: dict[Buffer, Buffer] = {}
    for node in module.graph.nodes:
        if node in values:  # a rule before has taken it with it
            continue
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        step = Step(module, code, node, by_name, values, split)
        if node.op == "output":
            return _output(values, node.args[0])
        try:
            values[node] = _compile_step(step, layer, x)
        except NoRule as reason:
            name = (names or {}).get(id(layer), node.name if layer is None else node.target)
            form = _name_of(layer if layer is not None else node.target)
            because = f" here: {reason}" if str(reason) else ""
            raise NotCompiledError(f"{name}: no compiled form of {form}{because}") from None
    raise AssertionError("a graph has an output")


def _output(values: Mapping[fx.Node, Any], given: Any) -> Value:
    out = values[given] if isinstance(given, fx.Node) else given
    if not isinstance(out, Value):
        raise NotCompiledError("the output: no compiled form of several values, or another order")
    return out


def _compile_step(step: Step, layer: nn.Module | None, x: Value) -> Any:
    """The result of a step: features, a parameter, a list of them, or a constant."""
    node = step.node
    if node.op == "placeholder":
        return x._replace(shape=step.shape)
    if node.op == "get_attr":
        if node.target not in step.columns:
            return node.meta["given"]
        shape = tuple(node.meta["given"].shape)
        return Weight(View(step.columns[str(node.target)], shape, contiguous(shape)))
    args: Any
    options: Any
    args, options = fx.node.map_arg((node.args, node.kwargs), step.values.__getitem__)
    seen = [step.values[other] for other in node.all_input_nodes]
    known = not any(isinstance(each, _OF_NETWORK) for each in seen)
    if layer is None and (known or node.target in SIZES):
        return node.meta["given"]
    if layer is None and node.target in LOOKS:
        return look_at(node.target, *args, **options)
    rule: Callable[..., Any] | None
    if layer is None:
        rule = FUNCTIONS.get(node.target)
    else:
        rule, args = LAYERS.get(type(layer)), (layer, *args)
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
            raise NoRule("it has hooks")
    if rule is None:
        reason = "" if layer is None else why_untraceable(layer)
        raise NoRule(f"it can't be traced: {reason}" if reason else "")
    try:
        signature(rule).bind(step, *args, **options)
    except TypeError:
        raise NoRule(f"its arguments are {(*node.args, *node.kwargs)}") from None
    for other, value in zip(node.all_input_nodes, seen, strict=True):
        if isinstance(value, View) and rule not in TAKE_ANY_ORDER:
            raise NoRule("channels and positions come in another order")
        if isinstance(value, int | float):
            raise NoRule("it reads a size of its input")
        if isinstance(value, Weight | Tensor) and rule not in TAKE_CONSTANTS:
            raise NoRule(f"it reads {other.target} by itself")
    return rule(step, *args, **options)


def _name_of(what: Any) -> str:
    kind = type(what) if isinstance(what, nn.Module) else what
    if isinstance(kind, str):
        return f"Tensor.{kind}"
    module = getattr(kind, "__module__", "") or ""
    prefix = "nn." if module.startswith("torch.nn.modules") else ""
    return prefix + getattr(kind, "__name__", str(kind))
