"""Interface of a host: a network in segments, with a slot after every one but the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from envs.batched.programs import Layer
from envs.blueprints.base import Blueprint, Segment


class Host(Protocol):
    """A network being grown, batched over rows.

    The first segment takes examples as :meth:`prepare` made them, ``[n or 1, features…, B]``; the
    last one gives logits ``[n, classes, positions…, B]``.

    Attributes:
        topology: kind of network; a policy knows the blueprints of one kind only.
        num_classes: C.
        segments: one more than there are slots.
        slot_channels: channels of the features at every slot.
        blueprints: by name, what can be planted. Names that
            :data:`envs.actions.BLUEPRINTS` lacks become further choices of head ``blueprint``.
        channels_last: do modules that are planted see ``[B, T, C]``, rather than ``[B, C, …]``? A
            host without it: no.
        pool: makes of features at a slot what a gate sees: ``[n, channels, B]``, such as their
            averages, or ``[n, channels, …, B]``, where every position opens by itself.
        activation_size: numbers in the largest activation of one example, which decides how many
            rows run at once where they don't run compiled.
    """

    topology: str
    num_classes: int
    segments: Sequence[Segment]
    slot_channels: Sequence[int]
    blueprints: Mapping[str, Blueprint]
    pool: Layer
    activation_size: int

    def modules(self, params: Sequence[Tensor]) -> list[nn.Module]:
        """One network's segments as ordinary modules; the first takes raw inputs.

        Args:
            params: flat, for each segment. Modules have their dtype and copies of them.
        """
        ...

    def prepare(self, inputs: Tensor) -> Tensor:
        """Make of raw inputs ``[M, …]`` what the first segment takes: ``[M, features…]``.

        Raises:
            ValueError: for inputs of a shape or dtype that the host can't take.
        """
        ...
