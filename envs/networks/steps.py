"""A step of a module's :mod:`torch.fx` graph, as the rules of :mod:`envs.networks.rules` see it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from envs.batched.instructions import Assembler, Buffer, Opcode
from envs.networks.views import Value, View

RELUS = (F.relu, torch.relu, "relu")
"""Functions that are ReLU."""


class Weight(NamedTuple):
    """A parameter that a step reads by itself: its columns."""

    view: View


class NoRule(Exception):
    """A step has no compiled form; the message says why, or nothing where it has none at all."""


@dataclass
class Step:
    """A step of a graph, as its rule sees it.

    Attributes:
        module: what is compiled.
        code: where instructions are written.
        node: the step; ``meta["given"]`` is what it gives for two examples.
        columns: first column of each parameter of the module, by name.
        values: what all steps so far give: features, several in a list, or views of them; a rule
            that takes later steps with it writes theirs.
        split: features that are sorted for a stride of 2 already.
    """

    module: fx.GraphModule
    code: Assembler
    node: fx.Node
    columns: Mapping[str, int]
    values: dict[fx.Node, Any]
    split: dict[Buffer, Buffer]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its result in PyTorch, without the batch."""
        given = self.node.meta["given"]
        if not isinstance(given, Tensor):
            raise NoRule("its result is no tensor")
        return tuple(given.shape[1:])

    def parameters(self, module: nn.Module) -> int:
        """First column of a layer's parameters, which must lie behind each other."""
        return self._behind(module, [name for name, _ in module.named_parameters()])

    def buffers(self, module: nn.Module) -> int:
        """The same of its buffers."""
        return self._behind(module, [name for name, _ in module.named_buffers()])

    def _behind(self, module: nn.Module, names: Sequence[str]) -> int:
        start = place = None
        for name in names:
            column = self.columns.get(f"{self.node.target}.{name}")
            if column is None:
                raise NoRule(f"its {name} never changes, and is the same in all networks")
            if place not in (None, column):
                raise NoRule(f"its {name} is shared with other layers, or doesn't learn")
            start = column if start is None else start
            place = column + operator.attrgetter(name)(module).numel()
        return start or 0

    def line(self, opcode: Opcode, x: Value, out: Value, **fields: Any) -> Value:
        """Write an instruction and return ``out``."""
        self.code.line(opcode, x.buffer, out.buffer, **fields)
        return out

    def like(self, x: Value) -> Value:
        """Room for features of the same shape."""
        b = x.buffer
        return x._replace(buffer=self.code.buffer(b.channels, b.height, b.width))

    def relu_after(self) -> fx.Node | None:
        """The only step that uses the result, if that is ReLU."""
        after = only_user(self.node)
        return after if after and does(self.module, after, nn.ReLU, *RELUS) else None


def copy_features(code: Assembler, x: Buffer, out: Buffer) -> None:
    """Write an instruction that copies features."""
    code.line(Opcode.AVERAGE_POOL, x, out)  # of one pixel


def only_user(node: fx.Node) -> fx.Node | None:
    """The only step that uses the result of a step, None if there are several."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def does(
    module: nn.Module,
    node: fx.Node,
    layers: type[nn.Module] | tuple[type[nn.Module], ...],
    *functions: Any,
) -> bool:
    """Is a step this layer, or one of some layers or functions?"""
    if node.op == "call_module":
        kind = type(module.get_submodule(str(node.target)))
        return kind in (layers if isinstance(layers, tuple) else (layers,))
    return node.target in functions
