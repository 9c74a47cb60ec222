"""Networks of the user's own: any module that can be cut at its slots, and any module as a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from envs.batched.layers import GlobalAverage
from envs.batched.programs import Layer, Program
from envs.blueprints import CONV_BLUEPRINTS, TEXT_BLUEPRINTS, Blueprint
from envs.checks import check_choice
from envs.networks.cutting import split_at
from envs.networks.segments import (
    ModuleFactory,
    ModuleLayout,
    ModuleSegment,
    check_deterministic,
    make_seed,
)


def module_seed(factory: Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """The factory itself: a function that makes a module for so many channels is a blueprint."""
    warnings.warn(
        "module_seed is not needed any more: the function itself is a blueprint",
        DeprecationWarning,
        stacklevel=2,
    )
    return factory


class ModuleHost:
    """A network of one's own, with a slot after each of some of its submodules.

    The module is cut there by :mod:`torch.fx`, so nothing else may lead around a slot, and its
    ``forward`` may not depend on the values of its input. Every network is initialised as the
    module itself does it.

    On CPUs it runs as fast as the hosts of this package where each of its layers and functions has
    a compiled form (:mod:`envs.networks.rules`); a line in the log names the first that has none,
    and all rows run in PyTorch then, one by one, several times slower.

    Args:
        factory: makes the module; it takes examples ``[B, …]`` and gives logits ``[B, classes]``,
            or, for a class at each of T positions, ``[B, classes, T]`` or ``[B, T, classes]``.
        slots: names of the submodules after which a seed can be planted, in the order in which
            they run, such as ``"layer1"``.
        example: an input ``[1, …]`` of the module.
        blueprints: what can be planted, by name: functions that make a module for so many channels.
            It takes features as the host's own modules give them, and returns features of the same
            shape. Default: the convolutional ones where the features at all slots are
            ``[B, C, H, W]``, those of transformers where they are ``[B, T, C]``.
        topology: kind of network; a policy knows the blueprints of one kind only. Default:
            ``"convolutional"`` or ``"transformer"`` with the default blueprints, otherwise
            ``"module"``.
        channel_dim: dimension of the channels in the features at the slots: 1, or −1 as in a
            transformer's ``[B, T, C]``. Default: −1 for features of three dimensions.

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
        channel_dim: int | None = None,
    ) -> None:
        module = factory()
        if not isinstance(module, nn.Module):
            raise TypeError(f"factory must make a torch.nn.Module, got {type(module).__name__}")
        check_deterministic(module)
        _check_buffers(module, example)
        pieces = split_at(module, slots)
        with torch.no_grad():
            features = [example]
            for piece in pieces:
                features.append(piece(features[-1]))
        at_slots, logits = features[1:-1], features[-1]
        if channel_dim is not None:
            check_choice("channel_dim", channel_dim, (1, -1))
        of_positions = all(h.dim() == 3 for h in at_slots)
        self.channels_last = of_positions if channel_dim is None else channel_dim == -1
        if self.channels_last and not of_positions:
            raise ValueError(
                "channel_dim can be -1 only where the features at every slot are [B, T, C], got "
                f"shapes {[list(h.shape) for h in at_slots]}"
            )
        if logits.dim() == 2:
            classes_last = False
        elif logits.dim() == 3 and example.shape[1] in logits.shape[1:]:
            classes_last = logits.shape[1] == example.shape[1]
        else:
            raise ValueError(
                "the module must give logits [B, classes], or for each of T positions of its input "
                f"[B, classes, T] or [B, T, classes], got {list(logits.shape)} for an example"
            )
        self.num_classes = logits.shape[2 if classes_last else 1]
        floats = example.dim() == 3 and example.is_floating_point()
        orders = [self.channels_last and floats, *[self.channels_last] * len(slots), classes_last]
        self._moved = orders[0]
        sources = {id(parameter): name for name, parameter in module.named_parameters()}
        layers = {id(layer): name for name, layer in module.named_modules()}
        taken: dict[str, int] = {}
        segments = []
        for number, piece in enumerate(pieces):
            names = {name: sources[id(p)] for name, p in piece.named_parameters()}
            for source in names.values():
                if taken.setdefault(source, number) != number:
                    raise ValueError(
                        f"slots must not part modules that share parameters, got {source!r} on "
                        f"both sides of {slots[taken[source]]!r}"
                    )
            segments.append(
                ModuleSegment(
                    piece,
                    ModuleLayout(factory, names, module),
                    features[number],
                    takes_last=orders[number],
                    gives_last=orders[number + 1],
                    logits=number == len(slots),
                    names=layers,
                )
            )
        self.segments: Sequence[ModuleSegment] = segments
        images = all(h.dim() == 4 for h in at_slots)
        if blueprints is None and not images and not self.channels_last:
            raise ValueError(
                "blueprints must be given, since the default ones need features [B, C, H, W] or "
                f"[B, T, C] at every slot, got shapes {[list(h.shape) for h in at_slots]}"
            )
        kind = "convolutional" if images else "transformer"
        self.topology = topology or (kind if blueprints is None else "module")
        defaults: Mapping[str, Blueprint] = CONV_BLUEPRINTS if images else TEXT_BLUEPRINTS
        self.blueprints = defaults if blueprints is None else blueprints
        channels = -1 if self.channels_last else 1
        self.slot_channels: Sequence[int] = tuple(h.shape[channels] for h in at_slots)
        self.pool: Layer = GlobalAverage() if images else Program()
        self.activation_size = max(h[0].numel() for h in features)
        self._shape, self._dtype = example.shape[1:], example.dtype
        for slot, h in zip(slots, at_slots, strict=True):
            self._check_seeds(slot, h)

    def _check_seeds(self, slot: str, features: Tensor) -> None:
        """Refuse seeds that can't take a slot's features ``[1, …]``, or change their shape."""
        h = features.movedim(-1, 1).unsqueeze(2) if self.channels_last else features
        h = h.movedim(0, -1)[None]
        for name, blueprint in self.blueprints.items():
            seed = make_seed(blueprint, h.shape[1], last=self.channels_last)
            params = seed.layout.unflatten(seed.layout.draw(torch.zeros(1, dtype=torch.int64)))
            try:
                same = (given := seed(params, h)).shape == h.shape
                shape = str(list(given[0].movedim(-1, 0).shape))
            except (RuntimeError, ValueError) as error:
                same, shape = False, f"an error: {error}"
            if not same:
                raise ValueError(
                    f"blueprint {name!r} must give features of the shape that it takes, at slot "
                    f"{slot!r} {list(features.shape)}, got {shape}"
                )

    def modules(self, params: Sequence[Tensor]) -> list[nn.Module]:
        """One network's pieces, with its parameters."""
        return [segment.module(flat) for segment, flat in zip(self.segments, params, strict=True)]

    def prepare(self, inputs: Tensor) -> Tensor:
        """Take examples ``[M, …]`` as they are; channels first, ``[M, C, 1, T]`` of ``[M, T, C]``.

        Raises:
            ValueError: for inputs of another shape, or whole numbers instead of floats.
        """
        same_kind = inputs.is_floating_point() == self._dtype.is_floating_point
        if inputs.shape[1:] != self._shape or not same_kind:
            raise ValueError(
                f"inputs must be {self._dtype} of shape {['M', *self._shape]}, got {inputs.dtype} "
                f"of shape {list(inputs.shape)}"
            )
        return inputs.movedim(-1, 1).unsqueeze(2) if self._moved else inputs


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
