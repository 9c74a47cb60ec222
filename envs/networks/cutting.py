"""A module in pieces, cut after some of its submodules by :mod:`torch.fx`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from envs.networks.rules import LAYERS

UNTRACEABLE = (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError)
"""Errors of :mod:`torch.fx` for a module whose steps depend on the values of its input."""


_OF_SIZES = (torch.arange, torch.zeros, torch.ones, torch.full)
"""Functions that may be called with sizes of the input, which :mod:`torch.fx` refuses otherwise."""


class _Tracer(fx.Tracer):
    """Goes into all modules but those of torch, those with a rule, and those before a slot.

    Args:
        slots: names of the latter.
        whole: modules that can't be traced are steps, too.
    """

    def __init__(self, slots: Sequence[str], whole: bool = False) -> None:
        super().__init__(autowrap_functions=_OF_SIZES)
        self._autowrap_search.append(torch)  # where a forward finds them
        self.slots, self.whole = slots, whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.slots or type(m) in LAYERS:
            return True
        has_slot = any(slot.startswith(f"{module_qualified_name}.") for slot in self.slots)
        if self.whole and not has_slot and why_untraceable(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _trace(tracer: _Tracer, module: nn.Module) -> fx.Graph:
    """The graph of a module that is called with one input: what else it takes is its default."""
    parameters = list(inspect.signature(module.forward).parameters.values())[1:]
    plain = (type(None), bool, int, float, str)
    defaults = {p.name: p.default for p in parameters if isinstance(p.default, plain)}
    graph = tracer.trace(module, concrete_args=defaults or None)
    surplus = {
        node
        for node in graph.nodes
        if node.op == "placeholder" and str(node.target).rpartition("_")[0] in defaults
    }
    for node in graph.nodes:  # checks that the defaults are what was given
        if surplus.intersection(node.all_input_nodes):
            surplus.add(node)
    for node in reversed(graph.nodes):
        if node in surplus:
            graph.erase_node(node)
    return graph


def why_untraceable(module: nn.Module) -> str:
    """Why :mod:`torch.fx` can't trace a module, nothing if it can."""
    try:
        _trace(_Tracer(()), module)
    except UNTRACEABLE as error:
        return str(error) or type(error).__name__
    return ""


def trace(module: nn.Module, slots: Sequence[str] = ()) -> fx.Graph:
    """The graph of a module; layers of torch or with a rule are steps of it, and ``slots`` too.

    Parts that can't be traced, as they depend on values of their input, are steps as a whole.

    Raises:
        UNTRACEABLE: if the module itself can't be traced.
    """
    try:
        graph = _trace(_Tracer(slots), module)
    except UNTRACEABLE:
        graph = _trace(_Tracer(slots, whole=True), module)
    for node in graph.nodes:
        if node.target in _OF_SIZES:  # or code would be made that wraps a name with a dot
            node.meta.pop("is_wrapped", None)
    return graph


class ByMode(nn.Module):
    """A piece of a module whose ``forward`` asks ``self.training``."""

    def __init__(self, in_training: fx.GraphModule, in_evaluation: fx.GraphModule) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = in_training, in_evaluation

    def forward(self, x: Tensor) -> Tensor:
        return self.in_training(x) if self.training else self.in_evaluation(x)


def split_at(module: nn.Module, slots: Sequence[str]) -> list[nn.Module]:
    """Cut a module after some of its submodules into pieces, one after the other.

    Raises:
        TypeError: if ``slots`` is a text.
        ValueError: if the module can't be traced, takes more than one input, lacks a submodule or
            runs it another number of times than once or in another order, or if something leads
            around a cut.
    """
    if isinstance(slots, str):
        raise TypeError(f"slots must be names, such as [{slots!r}], got the text {slots!r}")
    required = [
        parameter.name
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(required) != 1:
        raise ValueError(
            f"the module must take one input, got forward({', '.join(required)}); wrap it in a "
            "module that takes one"
        )
    pieces: list[nn.Module] = []
    cuts = [_cut(module.train(mode), slots) for mode in (True, False)]
    module.train()
    for in_training, in_evaluation in zip(*cuts, strict=True):
        differ = in_training.code != in_evaluation.code
        pieces.append(ByMode(in_training, in_evaluation) if differ else in_training)
    return pieces


def check_same(whole: Any, in_pieces: Any) -> None:
    """Refuse a module that gives something else in pieces: sums in place are traced as others.

    Args:
        whole: what the module gives, a tensor, or a sequence or mapping of such.
        in_pieces: what its pieces give.

    Raises:
        ValueError: if they differ beyond rounding.
    """
    if isinstance(whole, Mapping):
        whole, in_pieces = list(whole.values()), list(in_pieces.values())
    if isinstance(whole, Sequence):
        for mine, theirs in zip(whole, in_pieces, strict=True):
            check_same(mine, theirs)
    elif isinstance(whole, Tensor) and not torch.allclose(
        in_pieces, whole, rtol=1e-4, atol=1e-5, equal_nan=True
    ):
        raise ValueError(
            "the module must do the same when torch.fx has traced it, but it gives something else; "
            "write h = h + x for h += x where another step reads h too"
        )


def _why_hidden(module: nn.Module, graph: fx.Graph, slots: Sequence[str]) -> str:
    """The slots that are inside a module of torch, one step of the graph, for a message."""
    steps = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    return "".join(
        f"; {slot!r} is inside {step!r}, a {type(module.get_submodule(step)).__name__} of PyTorch, "
        "which isn't looked into"
        for slot in slots
        for step in steps
        if slot.startswith(f"{step}.")
    )


def _cut(module: nn.Module, slots: Sequence[str]) -> list[fx.GraphModule]:
    """The pieces of a module as it is, in training or in evaluation."""
    try:
        graph = trace(module, slots)
    except UNTRACEABLE as error:
        raise ValueError(f"the module can't be cut at its slots: {error}") from None
    runs = [
        node.target for node in graph.nodes if node.op == "call_module" and node.target in slots
    ]
    if runs != list(slots):
        raise ValueError(
            f"slots must be submodules in the order in which they run, each once, got "
            f"{list(slots)}, of which run {runs}{_why_hidden(module, graph, slots)}; there are "
            f"{[name for name, _ in module.named_modules() if name]}"
        )
    pieces: list[fx.GraphModule] = []
    piece, copied = fx.Graph(), dict[fx.Node, fx.Node]()

    def of_piece(node: fx.Node) -> fx.Node:
        """A step's copy in the piece; a parameter that an earlier one reads is read again."""
        if node not in copied and node.op == "get_attr":
            copied[node] = piece.node_copy(node)
        if node not in copied:
            raise ValueError(
                f"nothing may lead around the slot after {slots[len(pieces) - 1]!r}, but a later "
                f"step also uses {node.name!r}, which is computed before it; a mask, or positions, "
                "can be computed in each part that needs them, or kept in a buffer"
            )
        return copied[node]

    for node in graph.nodes:
        if node.op != "get_attr":
            copied[node] = piece.node_copy(node, of_piece)
        if node.op == "output" or (node.op == "call_module" and node.target in slots):
            if node.op != "output":
                piece.output(copied[node])
            pieces.append(fx.GraphModule(module, piece))
            piece = fx.Graph()
            copied = {node: piece.placeholder("x")}
    if not any(node.op not in ("placeholder", "output") for node in pieces[-1].graph.nodes):
        raise ValueError(f"something must come after the slot of {slots[-1]!r}, got nothing")
    return pieces
