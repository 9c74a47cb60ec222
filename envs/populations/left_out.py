"""Sets of slots whose seeds are left out of a validation, to see what they contribute."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

ALL_SUBSETS = 3
"""Up to so many slots, seeds are left out in all combinations; above, one or two at a time."""

MOST_SLOTS = 16
"""More slots have too many pairs to leave out."""


class SetsLeftOut:
    """K sets of some of S slots, that of none first, in increasing order as sums of bits 2^slot.

    Args:
        num_slots: S.
        device: where the tensors are.

    Attributes:
        most: slots of the largest sets.
        bits: int64 ``[K]``.
        members: bool ``[K, S]``.
        singles, pairs: places of the sets of one slot, ``[S]``, and of two, ``[S, S]``.

    Examples:
        >>> SetsLeftOut(2).members.int().tolist()
        [[0, 0], [1, 0], [0, 1], [1, 1]]
        >>> len(SetsLeftOut(4).bits), SetsLeftOut(4).place(torch.tensor([0b1001]))
        (11, tensor([8]))
    """

    def __init__(self, num_slots: int, device: torch.device | str = "cpu") -> None:
        self.most = num_slots if num_slots <= ALL_SUBSETS else 2
        bits = [left for left in range(1 << num_slots) if left.bit_count() <= self.most]
        self.bits = torch.tensor(bits, device=device)
        slots = torch.arange(num_slots, device=device)
        self.members = (self.bits[:, None] >> slots & 1).bool()
        self.singles = self.place(1 << slots)
        self.pairs = self.place((1 << slots)[:, None] | 1 << slots)

    def within(self, slots: Tensor) -> Tensor:
        """Each set's members among the slots bool ``[n, S]``, as sums of bits: int64 ``[n, K]``."""
        among = (slots << torch.arange(slots.shape[1], device=slots.device)).sum(1, keepdim=True)
        return self.bits & among

    def place(self, bits: Tensor) -> Tensor:
        """Places of sets."""
        return torch.searchsorted(self.bits, bits)


@cache
def sets_left_out(num_slots: int, device: torch.device) -> SetsLeftOut:
    """The sets of S slots on a device, made once."""
    return SetsLeftOut(num_slots, device)
