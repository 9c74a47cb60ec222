"""Networks of the user's own: any module that can be cut at its slots, and any module as a seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.fx.passes.split_module import split_module

from envs.batched.layers import GlobalAverage
from envs.batched.parameters import Parameter, ParameterLayout
from envs.batched.programs import Layer, Program
from envs.blueprints import CONV_BLUEPRINTS, Blueprint
from envs.blueprints.base import Segment

_SEEDS = 2**63 - 1

ModuleFactory = Callable[[], nn.Module]


class ModuleLayout(ParameterLayout):
    """Parameters of a module or of a piece of it, as its own initialisation draws them.

    Args:
        factory: makes the module.
        names: of its parameters that are laid out, by the name that they have in the piece.
        template: a module that was made.
    """

    def __init__(self, factory: ModuleFactory, names: dict[str, str], template: nn.Module) -> None:
        made = dict(template.named_parameters())
        super().__init__(
            [Parameter(name, tuple(made[source].shape)) for name, source in names.items()]
        )
        self._factory, self._names = factory, names

    def draw(self, key: Tensor) -> Tensor:
        """Parameters of a fresh module for every key ``[n]``: float32 ``[n, size]``."""
        rows = []
        for seed in key.tolist():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed & _SEEDS)
                made = dict(self._factory().named_parameters())
            rows.append(torch.cat([made[name].detach().flatten() for name in self._names.values()]))
        empty = torch.zeros(0, self.size)
        return (torch.stack(rows) if rows else empty).float().to(key.device)


class ModuleSegment:
    """A module, or a piece of one, with the parameters of n networks.

    Rows go through it one by one on CPUs, where ``vmap`` is slower than a loop, and together on
    other devices.

    Args:
        module: the piece, whose own parameters only tell shapes.
        layout: its parameters, by the names that they have in it.
    """

    def __init__(self, module: nn.Module, layout: ParameterLayout) -> None:
        self.layout = layout
        # A call puts parameters into its module, so threads that run at once need copies.
        self._template = module
        uses = list(module.named_parameters(remove_duplicate=False))
        self._tied = len(uses) > len(layout.entries)  # to find out takes long
        self._idle: list[nn.Module] = []

    def __call__(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """Features ``[n, …, B]`` of n networks; the module itself sees ``[B, …]``."""
        try:
            module = self._idle.pop()
        except IndexError:
            module = copy.deepcopy(self._template)

        def run(params: dict[str, Tensor], examples: Tensor) -> Tensor:
            return functional_call(module, params, (examples,), tie_weights=self._tied)

        # Contiguous, and a copy, since a module may change its input in place.
        examples = x.movedim(-1, 1).clone(memory_format=torch.contiguous_format)
        if x.device.type == "cpu":
            # Not values[i], whose gradient would be of all rows.
            rows = zip(*(values.unbind() for values in params.values()), strict=True)
            named = [dict(zip(params, row, strict=True)) for row in rows]
            given = torch.stack([*map(run, named or [{}] * len(x), examples.unbind())])
        else:
            given = vmap(run)(params, examples)
        self._idle.append(module)
        return given.movedim(1, -1)


def module_seed(factory: Callable[[int], nn.Module]) -> Blueprint:
    """A blueprint from a function that makes a seed's module for so many channels.

    The module takes features ``[B, channels, …]`` as the host's own modules give them, and returns
    features of the same shape. Nothing may be random in it, and no buffer may change.

    Args:
        factory: makes the module.

    Raises:
        ValueError: when a host is made of it, for a module that can't be a seed.

    Examples:
        >>> seed = module_seed(lambda channels: nn.Conv2d(channels, channels, 3, padding=1))(8)
        >>> seed.layout.size
        584
    """

    return partial(_make_seed, factory)


def _make_seed(factory: Callable[[int], nn.Module], channels: int) -> ModuleSegment:
    module = factory(channels)
    _check_deterministic(module)
    names = {name: name for name, _ in module.named_parameters()}
    return ModuleSegment(module, ModuleLayout(partial(factory, channels), names, module))


class ModuleHost:
    """A network of one's own, with a slot after each of some of its submodules.

    The module is cut there by :mod:`torch.fx`, so nothing else may lead around a slot, and its
    ``forward`` may not depend on the values of its input. Every network is initialised as the
    module itself does it. Rows run one by one on CPUs.

    Args:
        factory: makes the module; it takes examples ``[B, …]`` and gives logits ``[B, classes]``.
        slots: names of the submodules after which a seed can be planted, in the order in which
            they run, such as ``"layer1"``.
        example: an input ``[1, …]`` of the module.
        blueprints: what can be planted, by name; of :func:`module_seed`, or any other. Default: the
            convolutional ones, where the features at all slots are ``[B, C, H, W]``.
        topology: kind of network; a policy knows the blueprints of one kind only. Default:
            ``"convolutional"`` with the default blueprints, otherwise ``"module"``.

    Raises:
        TypeError: if ``factory`` doesn't make a module.
        ValueError: for slots that the module lacks, or around which something leads; layers that
            draw random numbers; buffers that change, as those of batch norm do; features for which
            there are no default blueprints; a seed that changes the features' shape.

    Examples:
        >>> def network():
        ...     return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(512, 10))
        >>> host = ModuleHost(network, slots=["0"], example=torch.zeros(1, 1, 8, 8))
        >>> host.slot_channels, host.num_classes
        ((8,), 10)
    """

    def __init__(
        self,
        factory: ModuleFactory,
        slots: Sequence[str],
        example: Tensor,
        blueprints: Mapping[str, Blueprint] | None = None,
        topology: str | None = None,
    ) -> None:
        module = factory()
        if not isinstance(module, nn.Module):
            raise TypeError(f"factory must make a torch.nn.Module, got {type(module).__name__}")
        _check_deterministic(module)
        _check_buffers(module, example)
        pieces = split_at(module, slots)
        sources = {id(parameter): name for name, parameter in module.named_parameters()}
        segments = []
        taken: dict[str, int] = {}
        for number, piece in enumerate(pieces):
            names = {name: sources[id(p)] for name, p in piece.named_parameters()}
            for source in names.values():
                if taken.setdefault(source, number) != number:
                    raise ValueError(
                        f"slots must not part modules that share parameters, got {source!r} on "
                        f"both sides of {slots[taken[source]]!r}"
                    )
            segments.append(ModuleSegment(piece, ModuleLayout(factory, names, module)))
        self.segments: Sequence[Segment] = segments
        with torch.no_grad():
            features = [example]
            for piece in pieces:
                features.append(piece(features[-1]))
        at_slots, logits = features[1:-1], features[-1]
        if logits.dim() != 2:
            raise ValueError(
                "the module must give logits of shape [B, classes], got "
                f"{list(logits.shape)} for an example"
            )
        images = all(h.dim() == 4 for h in at_slots)
        if blueprints is None and not images:
            raise ValueError(
                "blueprints must be given, since the default ones need features [B, C, H, W] at "
                f"every slot, got shapes {[list(h.shape) for h in at_slots]}; module_seed makes one"
            )
        self.topology = topology or ("convolutional" if blueprints is None else "module")
        self.blueprints = CONV_BLUEPRINTS if blueprints is None else blueprints
        self.num_classes = logits.shape[1]
        self.slot_channels: Sequence[int] = tuple(h.shape[1] for h in at_slots)
        self.pool: Layer = GlobalAverage() if images else Program()
        self.activation_size = max(h[0].numel() for h in features)
        self._shape, self._dtype = example.shape[1:], example.dtype
        for slot, h in zip(slots, at_slots, strict=True):
            self._check_seeds(slot, h)

    def _check_seeds(self, slot: str, features: Tensor) -> None:
        """Refuse seeds that can't take a slot's features ``[1, C, …]``, or change their shape."""
        h = features.movedim(0, -1)[None]
        for name, blueprint in self.blueprints.items():
            seed = blueprint(h.shape[1])
            params = seed.layout.unflatten(seed.layout.draw(torch.zeros(1, dtype=torch.int64)))
            try:
                given = str(list(seed(params, h)[0].movedim(-1, 0).shape))
            except (RuntimeError, ValueError) as error:
                given = f"an error: {error}"
            if given != str(list(features.shape)):
                raise ValueError(
                    f"blueprint {name!r} must give features of the shape that it takes, at slot "
                    f"{slot!r} {list(features.shape)}, got {given}"
                )

    def prepare(self, inputs: Tensor) -> Tensor:
        """Take examples ``[M, …]`` as they are.

        Raises:
            ValueError: for inputs of another shape, or whole numbers instead of floats.
        """
        same_kind = inputs.is_floating_point() == self._dtype.is_floating_point
        if inputs.shape[1:] != self._shape or not same_kind:
            raise ValueError(
                f"inputs must be {self._dtype} of shape {['M', *self._shape]}, got {inputs.dtype} "
                f"of shape {list(inputs.shape)}"
            )
        return inputs


class _Tracer(fx.Tracer):
    """Goes into all modules but those of torch and those after which there is a slot."""

    def __init__(self, slots: Sequence[str]) -> None:
        super().__init__()
        self.slots = slots

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.slots or super().is_leaf_module(
            m, module_qualified_name
        )


def split_at(module: nn.Module, slots: Sequence[str]) -> list[nn.Module]:
    """Cut a module after some of its submodules into pieces, one after the other.

    Raises:
        ValueError: if the module can't be traced, lacks a submodule or runs it another number of
            times than once or in another order, or if something leads around a cut.
    """
    try:
        graph = _Tracer(slots).trace(module)
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
    pieces: list[nn.Module] = []
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
            pieces.append(whole.get_submodule(node.target))
            before = node
    return pieces


def _check_deterministic(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise ValueError(
                f"layers must not draw random numbers, got {type(layer).__name__} as {name!r}: a "
                "row's results would depend on the rows beside it; leave it out or set p=0"
            )


def _check_buffers(module: nn.Module, example: Tensor) -> None:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        module(example)
    changed = [name for name, buffer in module.named_buffers() if not buffer.equal(before[name])]
    if changed:
        raise ValueError(
            f"buffers must not change in training, since networks don't share them, got {changed}; "
            "use group norm, or batch norm with track_running_stats=False"
        )
