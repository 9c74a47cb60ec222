"""Networks of the user's own: any module that can be cut at its slots, and any module as a seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn

from envs.networks.behaviour import examples_like, observe
from envs.networks.blueprints import CONV_BLUEPRINTS, TEXT_BLUEPRINTS, Blueprint
from envs.networks.cutting import check_same, split_at
from envs.networks.drawing import Initialisation, ModuleFactory, tensors_of
from envs.networks.growing import Gate
from envs.networks.offers import find_offer
from envs.networks.segments import Segment, make_seed
from envs.typed import typed


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

    The module is cut there by :mod:`torch.fx`, so nothing else may lead around a slot, and neither
    its ``forward`` nor that of a part with a slot inside may depend on the values of its input.
    Every network is initialised as the module itself does it, in float32, and has all that changes
    or is drawn for itself: statistics of batch norm, random buffers, the masks of dropout.
    Parameters that don't require gradients never change.

    On CPUs it runs as fast as the hosts of this package where each of its layers and functions has
    a compiled form (:mod:`envs.networks.rules`); a line in the log names the first that has none,
    and all rows run in PyTorch then, one by one, several times slower.

    Args:
        factory: makes the module; it takes examples ``[B, …]`` and gives logits ``[B, classes]``,
            or, for a class at each of T positions, ``[B, classes, T]`` or ``[B, T, classes]``, at
            each pixel ``[B, classes, H, W]``. Other losses take numbers in the same places.
        slots: names of the submodules after which a seed can be planted, in the order in which
            they run, such as ``"layer1"``.
        example: an input ``[1, …]`` of the module.
        blueprints: what can be planted, by name: functions that make a module for so many channels.
            It takes features as the host's own modules give them, and returns features of the same
            shape. Default: the convolutional ones where the features at all slots are
            ``[B, C, H, W]``, those of transformers where they are ``[B, T, C]``, and of these the
            ones without positions where they are ``[B, C]``.
        topology: kind of network; a policy knows the blueprints of one kind only. Default:
            ``"convolutional"``, ``"transformer"`` or ``"dense"`` with the default blueprints,
            otherwise ``"module"``.
        channel_dim: dimension of the channels in the features at the slots: 1, or −1 as in a
            transformer's ``[B, T, C]``. Default: −1 for features of three dimensions.

    Raises:
        TypeError: if ``factory`` doesn't make a module, or an argument is of another type.
        ValueError: for slots that the module lacks, or around which something leads; random
            numbers from somewhere else than torch's generator, or in evaluation; buffers that are
            replaced; no blueprints, or features for which there are no default ones; a seed that
            changes the features' shape.

    Examples:
        >>> def network():
        ...     return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(512, 10))
        >>> host = ModuleHost(network, slots=["0"], example=torch.zeros(1, 1, 8, 8))
        >>> host.slot_channels, host.num_classes
        ((8,), 10)
    """

    @typed
    def __init__(
        self,
        factory: ModuleFactory,
        slots: Sequence[str],
        example: Tensor,
        blueprints: Mapping[str, Blueprint] | None = None,
        topology: str | None = None,
        channel_dim: int | None = None,
    ) -> None:
        if isinstance(factory, nn.Module):
            kind = type(factory).__name__
            raise TypeError(
                f"factory must be a function that makes the module, such as lambda: {kind}(…), as "
                f"every network is one of its own, got a {kind}"
            )
        if example.dim() < 2 or len(example) != 1:
            raise ValueError(
                "example must be one input of the module with its batch dimension, [1, …], got "
                f"shape {list(example.shape)}"
            )
        example = example.float() if example.is_floating_point() else example
        self._shape, self._dtype = example.shape[1:], example.dtype
        self.segments: Sequence[Segment] = _segments(factory, slots, example)
        features = self.features(example)
        at_slots, logits = features[1:-1], features[-1]
        if logits.dim() == 2:
            self.classes_last = False
        elif logits.dim() == 3 and example.shape[1] in logits.shape[1:]:
            self.classes_last = logits.shape[1] == example.shape[1]
        elif logits.dim() > 3:
            self.classes_last = False
        else:
            raise ValueError(
                "the module must give logits [B, classes], or for each of T positions of its input "
                f"[B, classes, T] or [B, T, classes], got {list(logits.shape)} for an example"
            )
        self.num_classes = logits.shape[2 if self.classes_last else 1]
        offer = find_offer(at_slots, blueprints, channel_dim)
        self.blueprints, self.topology = offer.blueprints, topology or offer.topology
        self.slot_channels: Sequence[int] = offer.channels
        self.channels_last = (dim := offer.channel_dim) == -1
        self.gates: Sequence[Segment] = [
            make_seed(partial(Gate, dims=h.dim(), channel_dim=dim), h.shape[dim]) for h in at_slots
        ]
        self.seeds: Sequence[Mapping[str, Segment]] = [
            {
                name: _seed(name, blueprint, slot, h, dim)
                for name, blueprint in self.blueprints.items()
            }
            for slot, h in zip(slots, at_slots, strict=True)
        ]
        self.inputs_last = self.channels_last and example.dim() == 3 and example.is_floating_point()

    def features(self, example: Tensor) -> list[Tensor]:
        """A prepared input ``[1, …]``, what each segment makes of it, and last the logits."""
        features = [example.to(self._dtype)]
        for segment in self.segments:
            features.append(segment.features(features[-1]))
        return features

    def channels_first(self, inputs: Tensor) -> Tensor:
        """Examples with their channels first, ``[M, C, …]``; ``[M, C, 1, T]`` of ``[M, T, C]``."""
        return inputs.movedim(-1, 1).unsqueeze(2) if self.inputs_last else inputs

    def channels_of_outputs_first(self, outputs: Tensor) -> Tensor:
        """Outputs, or targets ``[M, …]`` shaped like them, with their channels first."""
        return outputs.movedim(-1, 1) if self.classes_last and outputs.dim() == 3 else outputs

    def prepare(self, inputs: Tensor) -> Tensor:
        """Examples ``[M, …]`` as the module takes them.

        Bytes are divided by 255 where it takes floats. Images come with their channels first, but
        may have them last where only that fits, or none where there is one.

        Raises:
            ValueError: for inputs of another shape, or whole numbers instead of floats.
        """
        shape, wanted = tuple(inputs.shape[1:]), tuple(self._shape)
        takes_floats = self._dtype.is_floating_point
        prepared = inputs.float() / 255 if takes_floats and inputs.dtype == torch.uint8 else inputs
        if shape != wanted and len(wanted) == 3:
            if (*shape[2:], *shape[:2]) == wanted:
                prepared = prepared.movedim(-1, 1)
            elif (1, *shape) == wanted:
                prepared = prepared[:, None]
        if tuple(prepared.shape[1:]) != wanted or prepared.is_floating_point() != takes_floats:
            kind = "floats, or bytes from 0 to 255" if takes_floats else "whole numbers"
            raise ValueError(
                f"inputs must be {kind}, of shape {['M', *wanted]}, got {inputs.dtype} of shape "
                f"{list(inputs.shape)}; inputs.float() makes floats, inputs.long() whole numbers"
            )
        return prepared


def _segments(factory: ModuleFactory, slots: Sequence[str], example: Tensor) -> list[Segment]:
    """The pieces of a module that is cut after ``slots``."""
    start = Initialisation(factory, example)
    behaviour = observe(start.module, example)
    sources = {id(tensor): name for name, tensor in tensors_of(start.module).items()}
    layers = {id(layer): name for name, layer in start.module.named_modules()}
    taken: dict[str, int] = {}
    segments = []
    for number, piece in enumerate(split_at(start.module, slots)):
        names = {name: sources[id(tensor)] for name, tensor in tensors_of(piece).items()}
        for name, _ in piece.named_parameters():
            source = names[name]
            if taken.setdefault(source, number) != number:
                raise ValueError(
                    f"slots must not part modules that share parameters, got {source!r} on both "
                    f"sides of {slots[taken[source]]!r}"
                )
        segments.append(Segment(piece, start, behaviour, names, layers))
    _check_cut(start.module, segments, example)
    return segments


def _check_cut(module: nn.Module, segments: Sequence[Segment], example: Tensor) -> None:
    """Refuse a module that does something else in pieces."""
    in_pieces = example = examples_like(example, 1)
    for segment in segments:
        in_pieces = segment.features(in_pieces)
    with torch.no_grad():
        whole = module.eval()(torch.cat([example, example]))[:1]
    check_same(whole, in_pieces)


_make_once = cache(make_seed)  # what is built in is the same for all hosts


def _seed(name: str, blueprint: Blueprint, slot: str, h: Tensor, channel_dim: int) -> Segment:
    """A blueprint's seed for a slot; it must take the features ``[1, …]``, and keep their shape."""
    built_in = blueprint in (*CONV_BLUEPRINTS.values(), *TEXT_BLUEPRINTS.values())
    channels = h.shape[channel_dim]
    try:
        seed = _make_once(blueprint, channels) if built_in else make_seed(blueprint, channels, h)
        same = (given := seed.features(h)).shape == h.shape
        shape = str(list(given.shape))
    except (RuntimeError, ValueError) as error:
        same, shape = False, f"an error: {error}"
    if not same:
        raise ValueError(
            f"blueprint {name!r} must give features of the shape that it takes, at slot {slot!r} "
            f"{list(h.shape)}, got {shape}"
        )
    return seed
