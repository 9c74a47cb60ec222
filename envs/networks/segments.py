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
from envs.networks.behaviour import Behaviour, observe
from envs.networks.compiling import NotCompiledError, compile_module, trace_shapes
from envs.networks.drawing import Initialisation, tensors_of
from envs.networks.layers import DrawnConv
from envs.networks.steps import Value


class Segment:
    """A module, or a piece of one, with the parameters of n networks.

    In PyTorch, rows go through it one by one on CPUs, where ``vmap`` is slower than a loop, and
    together on other devices.

    Args:
        module: the piece, whose own parameters only tell shapes.
        start: of the whole module.
        behaviour: of the whole module.
        sources: by the name of a parameter or buffer of the piece, its name there; default: the
            same.
        names: of its layers for messages, by ``id``.

    Attributes:
        shapes: of the parameters that learn, by name; they lie behind each other in a network's
            row.
        size: numbers of these.
        kept_shapes, kept_size: the same of all else that is a network's own: buffers that change
            in training, and what is drawn and never learns.
        draws: does it draw random numbers in training?
    """

    def __init__(
        self,
        module: nn.Module,
        start: Initialisation,
        behaviour: Behaviour,
        sources: Mapping[str, str] | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        own = dict(module.named_parameters())
        there = sources or {name: name for name in tensors_of(module)}
        kept: dict[str, Tensor] = {
            n: p for n, p in own.items() if not p.requires_grad and there[n] in start.varies
        }
        for name, buffer in module.named_buffers():
            if there[name] in start.varies or there[name] in behaviour.changed:
                kept[name] = buffer
        learned = {name: parameter for name, parameter in own.items() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in learned.items()}
        self.kept_shapes = {name: tensor.shape for name, tensor in kept.items()}
        sizes = {name: shape.numel() for name, shape in (self.shapes | self.kept_shapes).items()}
        self.size = sum(sizes[name] for name in self.shapes)
        self.kept_size = sum(sizes.values()) - self.size
        self.draws = behaviour.draws
        self._start, self._names = start, names
        self._drawn = {there[name]: size for name, size in sizes.items()}
        self._dtypes = {name: tensor.dtype for name, tensor in kept.items()}
        # A call puts parameters into its module, so threads that run at once need copies.
        self._template = module.eval()
        uses = list(module.named_parameters(remove_duplicate=False))
        self._tied = len(uses) > len(own)  # to find out takes long
        self._idle: dict[torch.device, list[nn.Module]] = {}
        self._graphs: dict[tuple[Any, ...], fx.GraphModule] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_idle": {}, "_graphs": {}}

    def draw(self, keys: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        """Fresh parameters, and what is kept beside them, for int64 keys ``[n]``.

        Args:
            keys: what they are drawn from.
            skip: see :meth:`~envs.networks.drawing.Initialisation.draw`.

        Returns:
            float32 ``[n, size]`` and ``[n, kept_size]``.
        """
        drawn = self._start.draw(self._drawn, keys, skip)
        learned, kept = drawn.split([self.size, self.kept_size], dim=1)
        return learned, kept

    def __call__(
        self,
        flat: Tensor,
        x: Tensor,
        kept: Tensor | None = None,
        *,
        training: bool = False,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Features ``[n, B, …]`` of n networks.

        Args:
            flat: parameters ``[n, size]``.
            x: features or examples ``[n, B, …]``.
            kept: what is kept beside them, ``[n, kept_size]``; in training it changes in place.
                Default: for a segment that keeps nothing.
            training: rather than evaluation.
            keys: int64 ``[n]``, of the random numbers that are drawn in training.
        """
        try:
            module = self._idle[x.device].pop()
        except (KeyError, IndexError):
            module = copy.deepcopy(self._template).to(x.device)
        if module.training != training:
            module.train(training)
        params = unflatten(flat, self.shapes)
        beside = unflatten(flat[:, :0] if kept is None else kept, self.kept_shapes)

        def run(params: dict[str, Tensor], beside: dict[str, Tensor], examples: Tensor) -> Tensor:
            tensors = params | beside
            return functional_call(module, tensors, (examples,), tie_weights=self._tied)

        x = x.clone(memory_format=torch.contiguous_format)  # a module may change it in place
        if x.device.type == "cpu" or self.draws:
            # Not values[i], whose gradient would be of all rows.
            rows = zip(*(values.unbind() for values in params.values()), strict=True)
            named = [dict(zip(params, row, strict=True)) for row in rows] or [{}] * len(x)
            given = []
            for i, (own, examples) in enumerate(zip(named, x.unbind(), strict=True)):
                if self.draws and keys is not None:
                    _seed(int(keys[i]), x.device)
                changing = self._copies({name: values[i] for name, values in beside.items()})
                given.append(run(own, changing, examples))
                for name, values in changing.items():
                    beside[name][i] = values
            out = torch.stack(given)
        else:
            changing = self._copies(beside)
            out = vmap(run)(params, changing, x)
            for name, values in changing.items():
                beside[name].copy_(values)
        self._idle.setdefault(x.device, []).append(module)
        return out

    def _copies(self, beside: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of what is kept, since autograd wants it unchanged; whole numbers as such."""
        copies = {}
        for name, values in beside.items():
            dtype = self._dtypes[name]
            own = values.dtype if dtype.is_floating_point else dtype
            copies[name] = values.to(own, copy=True)
        return copies

    def features(self, x: Tensor) -> Tensor:
        """Outputs of the module that was given, in evaluation, such as to see their shape."""
        with torch.no_grad():  # some layers want more than one example
            return self._template.eval()(torch.cat([x, x]))[: len(x)]

    def module(self, flat: Tensor, kept: Tensor) -> nn.Module:
        """The module of one network, of its dtype, with copies of its parameters and buffers."""
        module = copy.deepcopy(self._template).to(flat.dtype)
        own = tensors_of(module)
        named = unflatten(flat[None], self.shapes) | unflatten(kept[None], self.kept_shapes)
        with torch.no_grad():
            for name, values in named.items():
                own[name].copy_(values[0])
        for name, layer in list(module.named_modules()):
            if isinstance(layer, DrawnConv):
                module.set_submodule(name, layer.chosen())
        return module

    def read(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`module`: parameters ``[1, size]``, and what is kept beside them.

        Raises:
            ValueError: if the module lacks one, or has it in another shape.
        """
        named = tensors_of(module)
        for name, layer in self._template.named_modules():
            kernel = named.get(f"{name}.weight")
            if isinstance(layer, DrawnConv) and kernel is not None:
                is_large = kernel.shape[-1] == 3
                used, other = ("large", "small") if is_large else ("small", "large")
                named[f"{name}.coin"] = torch.tensor([1.0 if is_large else -1.0])
                named[f"{name}.{used}.weight"] = kernel
                named[f"{name}.{other}.weight"] = torch.zeros(self.shapes[f"{name}.{other}.weight"])
        flat = []
        for shapes in (self.shapes, self.kept_shapes):
            for name, shape in shapes.items():
                if name not in named or named[name].shape != shape:
                    got = list(named[name].shape) if name in named else f"only {sorted(named)}"
                    raise ValueError(
                        f"network must have {name!r} of shape {list(shape)}, got {got}"
                    )
            values = [named[name].detach().float().cpu().flatten() for name in shapes]
            flat.append(torch.cat([torch.zeros(0), *values])[None])
        return flat[0], flat[1]

    def emit(
        self, code: Assembler, x: Value, example: Tensor, column: int, kept_column: int
    ) -> Value:
        """Write its instructions.

        Args:
            code: where they are written.
            x: its input.
            example: an input ``[1, …]`` in PyTorch.
            column, kept_column: of its first parameter, and of what is kept beside them.

        Raises:
            NotCompiledError: if a step has no rule.
        """
        if self.draws:
            raise NotCompiledError("random numbers are drawn, as by dropout")
        kind = (*example.shape, example.dtype)
        if kind not in self._graphs:
            self._graphs[kind] = trace_shapes(self._template, example)
        own = tensors_of(self._template)
        columns: dict[int, int] = {}
        for shapes, start in ((self.shapes, column), (self.kept_shapes, kept_column)):
            starts = accumulate((shape.numel() for shape in shapes.values()), initial=start)
            columns |= {id(own[name]): place for name, place in zip(shapes, starts, strict=False)}
        return compile_module(self._graphs[kind], columns, code, x, self._names)


def _seed(seed: int, device: torch.device) -> None:
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at all devices
    else:
        torch.manual_seed(seed)


def unflatten(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The named tensors ``[n, *shape]`` in flat rows ``[n, numbers]``, without a copy."""
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=1)
    return {
        name: part.view(len(part), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def make_seed(
    blueprint: Callable[[int], nn.Module], channels: int, features: Tensor | None = None
) -> Segment:
    """A blueprint's seed for a slot of so many channels.

    Args:
        blueprint: makes the module.
        channels: of the features.
        features: at the slot, ``[1, …]``; None for a module that only computes its function.

    Raises:
        TypeError: if the blueprint doesn't make a module.
        ValueError: see :func:`~envs.networks.behaviour.observe`.
    """
    start = Initialisation(partial(blueprint, channels), features)
    behaviour = Behaviour() if features is None else observe(start.module, features)
    layers = {id(layer): name or "the seed" for name, layer in start.module.named_modules()}
    return Segment(start.module, start, behaviour, names=layers)
