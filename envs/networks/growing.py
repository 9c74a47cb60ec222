"""A network that grows, as an ordinary module: a host cut at its slots, and seeds in them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from envs.batched.modes import Mode
from envs.checks import check_integer, check_number
from envs.networks.behaviour import examples_like, modes_kept, run_on
from envs.networks.blueprints import Blueprint
from envs.networks.cutting import check_same, split_at
from envs.networks.layers import zero
from envs.networks.offers import Offer, find_offer


class Gate(nn.Module):
    """Share of a seed that is let in, by example or by position: σ of a linear layer.

    Takes images ``[B, C, H, W]``, of which it sees the average pixel, and gives ``[B, 1, 1, 1]``;
    or features whose positions it lets in one by one, ``[B, T, C]`` or ``[B, C, T]``, and gives one
    channel; or ``[B, C]``, and gives ``[B, 1]``. It starts at ½ everywhere.

    Args:
        channels: of the features.
        dims: of the features, 2 to 4.
        channel_dim: that of the channels, 1 or −1.
    """

    def __init__(self, channels: int, dims: int = 4, channel_dim: int = 1) -> None:
        super().__init__()
        self.linear = zero(nn.Linear(channels, 1))
        self.of_images, self.moves = dims == 4, dims == 3 and channel_dim == 1

    def forward(self, h: Tensor) -> Tensor:
        if self.of_images:
            return torch.sigmoid(self.linear(h.mean((2, 3))))[:, :, None, None]
        if self.moves:
            return torch.sigmoid(self.linear(h.transpose(1, 2))).transpose(1, 2)
        return torch.sigmoid(self.linear(h))


class _Incubate(torch.autograd.Function):
    """The features, bitwise; the seed gets their gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, given: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


def blend(mode: Mode, h: Tensor, given: Tensor, weight: Tensor) -> Tensor:
    """Features after a slot: see :class:`~envs.batched.modes.Mode`.

    Args:
        mode: how the seed acts.
        h: features before.
        given: what the seed gives, of detached features if it incubates.
        weight: α, times the gate's output where there is one; it broadcasts with ``h``.
    """
    given, weight = given.to(h.dtype), weight.to(h.dtype)  # under autocast they differ
    if mode is Mode.INCUBATE:
        return _Incubate.apply(h, given)
    if mode is Mode.MULTIPLY:
        return h * (1 + weight * torch.tanh(given - h))
    return torch.lerp(h, given, weight)


class Blend(nn.Module):
    """A seed, and how what it gives changes the features (:class:`~envs.batched.modes.Mode`).

    Args:
        seed: takes features and gives others of the same shape.
        mode: how it acts. While it incubates it learns from the features' gradient, which goes on
            as if it weren't there.
        alpha: how much it acts, in [0, 1]; kept in the state dictionary.
        gate: for mode ``GATE``, and for no other one.

    Raises:
        ValueError: for a gate without that mode, or the mode without one.
    """

    alpha: Tensor

    def __init__(
        self, seed: nn.Module, mode: Mode, alpha: float = 0.0, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("alpha", torch.tensor(float(alpha), dtype=torch.float32))
        self.become(mode, gate)

    def become(self, mode: Mode, gate: nn.Module | None = None) -> None:
        """Act in another way from now on; errors as above."""
        if (mode is Mode.GATE) != (gate is not None):
            raise ValueError(f"gate must be given for mode GATE and no other, got {mode.name}")
        self.mode, self.gate = mode, gate

    def forward(self, h: Tensor) -> Tensor:
        incubates = self.mode is Mode.INCUBATE
        if incubates and not self.training:
            return h
        given = self.seed(h.detach() if incubates else h)
        weight = self.alpha if self.gate is None else self.alpha * self.gate(h)
        return blend(self.mode, h, given, weight)

    def extra_repr(self) -> str:
        return f"mode={self.mode.name}, alpha={float(self.alpha):g}"


class GrowingNetwork(nn.Module):
    """A host in pieces, with a slot after each but the last.

    It is an ordinary module: it can be trained, saved, moved and exported, and does what a network
    in the care of a population does. A module of one's own is cut after some of its submodules by
    :mod:`torch.fx`, so nothing else may lead around a slot; it shares its parameters with this one.

    Args:
        host: a module to cut, or pieces, modules that run one after the other.
        slots: names of the submodules of ``host`` after which a seed can be planted, in the order
            in which they run, such as ``"layer1"``. This and what follows goes with a module only.
        example: an input ``[1, …]`` of it.
        blueprints: what can be planted, by name: functions that make a module for so many channels.
            Default: by the shape of the features at the slots, see :class:`envs.ModuleHost`.
        channel_dim: dimension of the channels in these features, 1 or −1. Default: −1 for
            ``[B, T, C]``.

    Attributes:
        pieces: of the host.
        slots: for every slot an :class:`Blend`, or :class:`torch.nn.Identity` where nothing grows.
        offer: what can be planted, an :class:`~envs.networks.offers.Offer`; None for one that is
            made of pieces.

    Raises:
        TypeError: for something else than modules, or a module without ``slots`` and ``example``.
        ValueError: for slots that the module lacks, or around which something leads; no
            blueprints, or features for which there are no default ones.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(128, 3))
        >>> network = GrowingNetwork(model, slots=["0"], example=torch.zeros(1, 1, 4, 4))
        >>> sorted(network.offer.blueprints)[:2], network.offer.channels
        (['attention', 'bottleneck'], (8,))
        >>> network = GrowingNetwork([nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(128, 3)])
        >>> network.plant(0, nn.Conv2d(8, 8, 3, padding=1), Mode.ADD, alpha=0.5)
        >>> network(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 3])
        >>> network.freeze()
        Sequential(
          (0): Conv2d(1, 8, kernel_size=(1, 1), stride=(1, 1))
          (1): Blend(
            mode=ADD, alpha=0.5
            (seed): Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          )
          (2): Flatten(start_dim=1, end_dim=-1)
          (3): Linear(in_features=128, out_features=3, bias=True)
        )
    """

    def __init__(
        self,
        host: nn.Module | Sequence[nn.Module],
        slots: Sequence[str] = (),
        example: Tensor | None = None,
        blueprints: Mapping[str, Blueprint] | None = None,
        channel_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.offer: Offer | None = None
        if isinstance(host, nn.Module):
            if not slots or example is None:
                raise TypeError(
                    "slots and example must be given with a module, the names of the submodules "
                    "after which seeds can be planted and an input [1, …]"
                )
            mode = host.training
            examples = examples_like(example, 2).to(example.device)  # one is too few for some
            with modes_kept(host):
                self.pieces = nn.ModuleList(split_at(host, slots))
                whole = run_on(host.eval(), examples)
                with torch.no_grad():
                    *at_slots, in_pieces = _features(self.pieces, examples)
                check_same(whole, in_pieces)
                self.offer = find_offer([h[:1] for h in at_slots], blueprints, channel_dim)
                self.train(mode)
        elif isinstance(host, Sequence) and all(isinstance(each, nn.Module) for each in host):
            self.pieces = nn.ModuleList(host)
        else:
            raise TypeError(f"host must be a torch.nn.Module, or a sequence of them, got {host!r}")
        self.slots = nn.ModuleList(nn.Identity() for _ in self.pieces[1:])

    def forward(self, x: Tensor, left_out: Collection[int] = ()) -> Tensor:
        """Outputs for examples ``[B, …]``, without the seeds of the slots ``left_out``."""
        for slot, piece in enumerate(self.pieces):
            x = piece(x)
            if slot < len(self.slots) and slot not in left_out:
                x = self.slots[slot](x)
        return x

    def plant(
        self,
        slot: int,
        seed: nn.Module,
        mode: Mode,
        alpha: float = 0.0,
        gate: nn.Module | None = None,
    ) -> None:
        """Put a seed into a slot, in place of what is there.

        Args:
            slot: number, from the input on.
            seed: takes and gives features of one shape.
            mode: how it acts.
            alpha: how much, in [0, 1].
            gate: for mode ``GATE``, such as a :class:`Gate`.

        Raises:
            ValueError: for a slot that there isn't, another α, or a gate that doesn't go with the
                mode.
            TypeError: for something that isn't a module.
        """
        check_integer("slot", slot, least=0, most=len(self.slots) - 1, what="last slot")
        check_number("alpha", alpha, least=0, most=1)
        if not isinstance(seed, nn.Module):
            raise TypeError(f"seed must be a torch.nn.Module, got {type(seed).__name__}")
        self.slots[slot] = Blend(seed, mode, alpha, gate)

    def remove(self, slot: int) -> None:
        """Leave a slot empty.

        Raises:
            ValueError: for a slot that there isn't.
        """
        check_integer("slot", slot, least=0, most=len(self.slots) - 1, what="last slot")
        self.slots[slot] = nn.Identity()

    @contextmanager
    def without(self, slots: Collection[int]) -> Iterator[None]:
        """For a while, the α of these slots is 0: their seeds act on nothing.

        Unlike ``left_out`` it holds for whatever runs this network, compiled or wrapped.
        """
        alphas = [blend.alpha for slot in slots if isinstance(blend := self.slots[slot], Blend)]
        before = [alpha.clone() for alpha in alphas]
        try:
            for alpha in alphas:
                alpha.zero_()
            yield
        finally:
            for alpha, value in zip(alphas, before, strict=True):
                alpha.copy_(value)

    def freeze(self) -> nn.Sequential:
        """The same function in evaluation, as a plain module without slots.

        Seeds that don't act are left out; one that acts fully (ADD with α = 1) stands in its slot
        as it is. Weights are shared with this network.
        """
        parts: list[nn.Module] = []
        for slot, piece in enumerate(self.pieces):
            parts.append(piece)
            blend = self.slots[slot] if slot < len(self.slots) else None
            if isinstance(blend, Blend) and blend.mode is not Mode.INCUBATE and blend.alpha > 0:
                whole = blend.mode is Mode.ADD and blend.alpha == 1
                parts.append(blend.seed if whole else blend)
        return nn.Sequential(*parts)


def _features(pieces: Iterable[nn.Module], x: Tensor) -> list[Any]:
    """Features after each piece for some examples, in evaluation."""
    features = []
    for piece in pieces:
        x = piece.eval()(x)
        features.append(x)
    return features
