"""Ordinary modules as segments of many networks, with the parameters of each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap

from envs.batched.instructions import Assembler, Buffer
from envs.batched.parameters import Parameter, ParameterLayout
from envs.batched.programs import NotCompiledError
from envs.networks.compiling import compile_module

_SEEDS = 2**63 - 1

ModuleFactory = Callable[[], nn.Module]


class ModuleLayout(ParameterLayout):
    """Parameters of a module or of a piece of it, as its own initialisation draws them.

    Args:
        factory: makes the module.
        names: of its parameters that are laid out, by the name that they have in the piece.
        template: a module that was made.
    """

    def __init__(
        self, factory: ModuleFactory, names: Mapping[str, str], template: nn.Module
    ) -> None:
        made = dict(template.named_parameters())
        super().__init__(
            [Parameter(name, tuple(made[source].shape)) for name, source in names.items()]
        )
        self._factory, self._names = factory, names

    def draw(self, key: Tensor) -> Tensor:
        """Parameters of a fresh module for every key ``[n]``: float32 ``[n, size]``."""
        drawn = torch.zeros(len(key), self.size)
        for row, seed in zip(drawn, key.tolist(), strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed & _SEEDS)
                made = dict(self._factory().named_parameters())
            parts = row.split(self.sizes)
            for part, name in zip(parts, self._names.values(), strict=True):
                part.copy_(made[name].detach().flatten())
        return drawn.to(key.device)


class ModuleSegment:
    """A module, or a piece of one, with the parameters of n networks.

    In PyTorch, rows go through it one by one on CPUs, where ``vmap`` is slower than a loop, and
    together on other devices. It runs compiled where each of its steps has a rule
    (:mod:`envs.networks.rules`).

    Args:
        module: the piece, whose own parameters only tell shapes.
        layout: its parameters, by the names that they have in it.
        example: an input ``[1, …]``; default: features of a slot.
        takes_last, gives_last: are channels the last dimension of what it takes and gives,
            ``[B, T, C]``? Its features are ``[n, C, 1, T, B]`` then.
        logits: of what it gives; classes take the place of channels, ``[n, C, T, B]``.
        names: of its layers for messages, by ``id``.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: ParameterLayout,
        example: Tensor | None = None,
        *,
        takes_last: bool = False,
        gives_last: bool = False,
        logits: bool = False,
        names: Mapping[int, str] | None = None,
    ) -> None:
        self.layout = layout
        # A call puts parameters into its module, so threads that run at once need copies.
        self._template = module
        uses = list(module.named_parameters(remove_duplicate=False))
        self._tied = len(uses) > len(layout.entries)  # to find out takes long
        self._idle: list[nn.Module] = []
        self._example, self._names = example, names
        self._takes_last, self._gives_last, self._logits = takes_last, gives_last, logits

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Features ``[n, C, …, B]`` of n networks; the module itself sees ``[B, C, …]``."""
        try:
            module = self._idle.pop()
        except IndexError:
            module = copy.deepcopy(self._template)

        def run(params: dict[str, Tensor], examples: Tensor) -> Tensor:
            return functional_call(module, params, (examples,), tie_weights=self._tied)

        examples = x.movedim(-1, 1)
        if self._takes_last:
            examples = examples.squeeze(3).movedim(2, -1)
        # Contiguous, and a copy, since a module may change its input in place.
        examples = examples.clone(memory_format=torch.contiguous_format)
        if x.device.type == "cpu":
            # Not values[i], whose gradient would be of all rows.
            rows = zip(*(values.unbind() for values in params.values()), strict=True)
            named = [dict(zip(params, row, strict=True)) for row in rows]
            given = torch.stack([*map(run, named or [{}] * len(x), examples.unbind())])
        else:
            given = vmap(run)(params, examples)
        self._idle.append(module)
        if self._gives_last:
            given = given.movedim(-1, 2)
            given = given if self._logits else given.unsqueeze(3)
        return given.movedim(1, -1)

    def module(self, flat: Tensor) -> nn.Module:
        """The module of one network, of its dtype, with a copy of its parameters ``[size]``."""
        module = copy.deepcopy(self._template).to(flat.dtype)
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name, values in self.layout.unflatten(flat[None]).items():
                own[name].copy_(values[0])
        return module

    def emit(self, code: Assembler, x: Buffer) -> Buffer:
        """Write its instructions.

        Raises:
            NotCompiledError: if a step has no rule.
        """
        piece = self._template
        if not isinstance(piece, fx.GraphModule):
            piece = nn.Sequential(piece)  # it may be a layer itself, which is a step then
        try:
            module = fx.symbolic_trace(piece)  # once more: now into the modules before the slots
        except (fx.proxy.TraceError, TypeError) as error:
            raise NotCompiledError(f"it can't be traced: {error}") from None
        columns, start = {}, code.column
        offsets = dict(zip((e.name for e in self.layout.entries), self.layout.starts, strict=True))
        by_id = {id(p): name for name, p in self._template.named_parameters()}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            columns[name] = start + offsets[by_id[id(parameter)]]
        example = self._example
        if example is None and self._takes_last:
            example = torch.zeros(1, x.width, x.channels)
        elif example is None:
            pixels = (x.height, x.width) if x.height * x.width > 1 else ()
            example = torch.zeros(1, x.channels, *pixels)
        result = compile_module(
            module, example, columns, code, x, last=self._takes_last, names=self._names
        )
        if result.last != self._gives_last:
            raise NotCompiledError("its output has channels and positions in another order")
        code.column = start + self.layout.size
        return result.buffer


def make_seed(blueprint: Callable[[int], Any], channels: int, *, last: bool = False) -> Any:
    """A blueprint's seed for a slot of so many channels, as a segment.

    Args:
        blueprint: makes a module, or a segment.
        channels: of the features.
        last: a module takes and gives ``[B, T, channels]``, otherwise ``[B, channels, …]``.

    Raises:
        ValueError: for a module that draws random numbers.
    """
    module = blueprint(channels)
    if not isinstance(module, nn.Module):
        return module
    check_deterministic(module)
    names = {name: name for name, _ in module.named_parameters()}
    layout = ModuleLayout(partial(blueprint, channels), names, module)
    layers = {id(layer): name or "the seed" for name, layer in module.named_modules()}
    return ModuleSegment(module, layout, takes_last=last, gives_last=last, names=layers)


def check_deterministic(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ValueError(
                f"layers must not draw random numbers, got {type(layer).__name__} as {name!r}: a "
                "row's results would depend on the rows beside it; leave it out or set p=0"
            )
