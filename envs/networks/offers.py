"""The seeds that can be planted after some places of a network, by the features there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from envs.checks import check_choice, check_name
from envs.networks.blueprints import (
    CONV_BLUEPRINTS,
    DENSE_BLUEPRINTS,
    TEXT_BLUEPRINTS,
    Blueprint,
)


@dataclass(frozen=True)
class Offer:
    """Blueprints, and the slots that they are for.

    Attributes:
        blueprints: by name.
        topology: kind of network: ``"convolutional"``, ``"transformer"`` or ``"dense"`` with the
            default blueprints, else ``"module"``.
        channel_dim: dimension of the channels in the features: 1, or −1.
        channels: of the features at every slot.
        shapes: of one example's features at every slot.
    """

    blueprints: Mapping[str, Blueprint]
    topology: str
    channel_dim: int
    channels: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]


_KINDS: dict[int, tuple[str, Mapping[str, Blueprint]]] = {
    4: ("convolutional", CONV_BLUEPRINTS),
    3: ("transformer", TEXT_BLUEPRINTS),
    2: ("dense", DENSE_BLUEPRINTS),
}
"""Kind of network and default blueprints, by the dimensions of the features."""


def find_offer(
    at_slots: Sequence[Tensor],
    blueprints: Mapping[str, Blueprint] | None = None,
    channel_dim: int | None = None,
) -> Offer:
    """Find out what can be planted where the features are these, ``[1, …]`` each.

    Args:
        at_slots: the features at every slot.
        blueprints: by name; default: by the dimensions of the features, see
            :class:`~envs.hosts.ModuleHost`.
        channel_dim: dimension of the channels: 1, or −1. Default: −1 for features of three
            dimensions.

    Raises:
        ValueError: if there are no blueprints, or none by default for such features, one is called
            what is no name, or their channels can't be last.
    """
    shapes = [list(h.shape) for h in at_slots]
    dims = {h.dim() for h in at_slots}
    if channel_dim is not None:
        check_choice("channel_dim", channel_dim, (1, -1))
    if channel_dim == -1 and dims != {3}:
        raise ValueError(
            "channel_dim can be -1 only where the features at every slot are [B, T, C], got "
            f"shapes {shapes}"
        )
    if blueprints is not None and not blueprints:
        raise ValueError("blueprints must have at least one, got none")
    for name in blueprints or ():
        check_name("blueprints: a name", name)
    dim = channel_dim or (-1 if dims == {3} else 1)
    kind, defaults = _KINDS.get(dims.pop(), ("", {})) if len(dims) == 1 else ("", {})
    if blueprints is None and (not defaults or (kind == "transformer" and dim == 1)):
        raise ValueError(
            "blueprints must be given, since the default ones need features [B, C, H, W], "
            f"[B, T, C] or [B, C], the same at every slot, got shapes {shapes}"
        )
    return Offer(
        defaults if blueprints is None else blueprints,
        kind if blueprints is None else "module",
        dim,
        tuple(h.shape[dim] for h in at_slots),
        tuple(tuple(h.shape[1:]) for h in at_slots),
    )
