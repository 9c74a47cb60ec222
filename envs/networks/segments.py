"""Ordinary modules as parts of many networks, with the parameters of each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap

from envs.batched.instructions import Assembler
from envs.networks.compiling import compile_module, trace_shapes
from envs.networks.drawing import Initialisation
from envs.networks.layers import DrawnConv
from envs.networks.steps import Value


class Segment:
    """A module, or a piece of one, with the parameters of n networks.

    In PyTorch, rows go through it one by one on CPUs, where ``vmap`` is slower than a loop, and
    together on other devices.

    Args:
        module: the piece, whose own parameters only tell shapes.
        start: of the whole module.
        sources: by a parameter's name in the piece, its name there; default: the same.
        names: of its layers for messages, by ``id``.

    Attributes:
        shapes: of its parameters, by name; they lie behind each other in a network's row.
        size: numbers in all.
    """

    def __init__(
        self,
        module: nn.Module,
        start: Initialisation,
        sources: Mapping[str, str] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        own = dict(module.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in own.items()}
        self._sizes = [parameter.numel() for parameter in own.values()]
        self.size = sum(self._sizes)
        self._start = start
        names_there = (name if sources is None else sources[name] for name in own)
        self._drawn = dict(zip(names_there, self._sizes, strict=True))
        self._names = names
        # A call puts parameters into its module, so threads that run at once need copies.
        self._template = module
        uses = list(module.named_parameters(remove_duplicate=False))
        self._tied = len(uses) > len(own)  # to find out takes long
        self._idle: list[nn.Module] = []
        self._graphs: dict[tuple[Any, ...], fx.GraphModule] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_idle": [], "_graphs": {}}

    def draw(self, keys: Tensor, skip: int = 0) -> Tensor:
        """Fresh parameters for int64 keys ``[n]``: float32 ``[n, size]``.

        Args:
            keys: what they are drawn from.
            skip: see :meth:`~envs.networks.drawing.Initialisation.draw`.
        """
        return self._start.draw(self._drawn, keys, skip)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """The named parameters ``[n, *shape]`` in flat rows ``[n, size]``, without a copy."""
        parts = flat.split(self._sizes, dim=1)
        return {
            name: part.reshape(len(part), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def __call__(self, flat: Tensor, x: Tensor) -> Tensor:
        """Features ``[n, B, …]`` of n networks with parameters ``[n, size]``."""
        try:
            module = self._idle.pop()
        except IndexError:
            module = copy.deepcopy(self._template)

        def run(params: dict[str, Tensor], examples: Tensor) -> Tensor:
            return functional_call(module, params, (examples,), tie_weights=self._tied)

        params = self.unflatten(flat)
        x = x.clone(memory_format=torch.contiguous_format)  # a module may change it in place
        if x.device.type == "cpu":
            # Not values[i], whose gradient would be of all rows.
            rows = zip(*(values.unbind() for values in params.values()), strict=True)
            named = [dict(zip(params, row, strict=True)) for row in rows]
            given = torch.stack([*map(run, named or [{}] * len(x), x.unbind())])
        else:
            given = vmap(run)(params, x)
        self._idle.append(module)
        return given

    def features(self, x: Tensor) -> Tensor:
        """Outputs of the module that was given for examples, such as to see their shape."""
        buffers = {name: buffer.clone() for name, buffer in self._template.named_buffers()}
        with torch.no_grad():
            return functional_call(self._template, buffers, (x.clone(),))

    def module(self, flat: Tensor) -> nn.Module:
        """The module of one network, of its dtype, with a copy of its parameters ``[size]``."""
        module = copy.deepcopy(self._template).to(flat.dtype)
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name, values in self.unflatten(flat[None]).items():
                own[name].copy_(values[0])
        for name, layer in list(module.named_modules()):
            if isinstance(layer, DrawnConv):
                module.set_submodule(name, layer.chosen())
        return module

    def emit(self, code: Assembler, x: Value, example: Tensor, column: int) -> Value:
        """Write its instructions.

        Args:
            code: where they are written.
            x: its input.
            example: an input ``[1, …]`` in PyTorch.
            column: of its first parameter.

        Raises:
            NotCompiledError: if a step has no rule.
        """
        kind = (*example.shape, example.dtype)
        if kind not in self._graphs:
            self._graphs[kind] = trace_shapes(self._template, example)
        starts = accumulate(self._sizes, initial=column)
        parameters = self._template.parameters()
        columns = {id(p): start for p, start in zip(parameters, starts, strict=False)}
        return compile_module(self._graphs[kind], columns, code, x, self._names)


def make_seed(blueprint: Callable[[int], nn.Module], channels: int) -> Segment:
    """A blueprint's seed for a slot of so many channels.

    Raises:
        TypeError: if the blueprint doesn't make a module.
        ValueError: for a module that draws random numbers.
    """
    start = Initialisation(partial(blueprint, channels))
    check_deterministic(start.module)
    layers = {id(layer): name or "the seed" for name, layer in start.module.named_modules()}
    return Segment(start.module, start, names=layers)


def check_deterministic(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ValueError(
                f"layers must not draw random numbers, got {type(layer).__name__} as {name!r}: a "
                "row's results would depend on the rows beside it; leave it out or set p=0"
            )
