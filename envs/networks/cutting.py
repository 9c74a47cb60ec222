"""A module in pieces, cut after some of its submodules by :mod:`torch.fx`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn
from torch.fx.passes.split_module import split_module

from envs.networks.rules import LAYERS


class _Tracer(fx.Tracer):
    """Goes into all modules but those of torch, those with a rule, and those before a slot."""

    def __init__(self, slots: Sequence[str]) -> None:
        super().__init__()
        self.slots = slots

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = module_qualified_name in self.slots or type(m) in LAYERS
        return whole or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module, slots: Sequence[str] = ()) -> fx.Graph:
    """The graph of a module, in which layers of torch or with a rule are steps, and ``slots`` too.

    Raises:
        TraceError: from :mod:`torch.fx`; or TypeError.
    """
    return _Tracer(slots).trace(module)


def split_at(module: nn.Module, slots: Sequence[str]) -> list[fx.GraphModule]:
    """Cut a module after some of its submodules into pieces, one after the other.

    Raises:
        ValueError: if the module can't be traced, lacks a submodule or runs it another number of
            times than once or in another order, or if something leads around a cut.
    """
    try:
        graph = trace(module, slots)
    except (fx.proxy.TraceError, TypeError) as error:
        raise ValueError(f"the module can't be cut at its slots: {error}") from None
    runs = [
        node.target for node in graph.nodes if node.op == "call_module" and node.target in slots
    ]
    if runs != list(slots):
        raise ValueError(
            f"slots must be submodules in the order in which they run, each once, got "
            f"{list(slots)}, of which run {runs}; there are "
            f"{[name for name, _ in module.named_modules() if name]}"
        )
    part, number = {}, 0
    for node in graph.nodes:
        part[node] = number
        number += node.op == "call_module" and node.target in slots
    whole = split_module(fx.GraphModule(module, graph), module, lambda node: part[node])
    pieces: list[fx.GraphModule] = []
    before = None
    for node in whole.graph.nodes:
        if node.op == "placeholder" and before is None:
            before = node
        elif node.op == "call_module":
            if list(node.all_input_nodes) != [before]:
                raise ValueError(
                    f"nothing may lead around the slot after {slots[len(pieces) - 1]!r}, but later "
                    "modules use more than its output"
                )
            piece = whole.get_submodule(node.target)
            assert isinstance(piece, fx.GraphModule)
            pieces.append(piece)
            before = node
    if len(pieces) == len(slots):
        raise ValueError(f"something must come after the slot of {slots[-1]!r}, got nothing")
    return pieces
