"""Masks of the legal choices of a head, given the op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor


class ActionMaskError(ValueError):
    """A mask leaves a head that must choose without a choice."""


class LegalChoices(TensorDictModuleBase):
    """The masks that heads draw from: the op's row where a mask has one row per op.

    Steps that ``("collector", "mask")`` marks as padding hold no mask at all; they get every
    choice, so that no nan from them reaches a gradient.

    Args:
        heads: reads ``("action_mask", head)``, writes ``("mask", head)`` ``[..., choices]``.
        conditional: those of them whose mask has one row per op.
        op: name of the op, read from ``("action", op)`` for the rows.

    Raises:
        ActionMaskError: in ``forward``, naming the first head and step without a choice.
        TypeError: in ``forward``, for a mask that isn't bool.
    """

    def __init__(
        self, heads: Sequence[str], conditional: Sequence[str] = (), op: str | None = None
    ) -> None:
        super().__init__()
        self.heads, self.conditional, self.op = tuple(heads), frozenset(conditional), op
        self.in_keys = [("action_mask", head) for head in heads]
        if op is not None:
            self.in_keys.append(("action", op))
        self.out_keys = [("mask", head) for head in heads]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = {head: tensordict.get(("action_mask", head)) for head in self.heads}
        for head, mask in masks.items():
            if mask.dtype != torch.bool:
                raise TypeError(
                    f"the action mask of head {head!r} must be bool, True for legal choices, got "
                    f"{mask.dtype}; where it is 1 for them, mask.bool() is one"
                )
        for head in self.conditional:
            masks[head] = select_row(masks[head], tensordict.get(("action", self.op)))
        valid = tensordict.get(("collector", "mask"), None)
        if valid is not None:
            padding = ~valid.reshape(*tensordict.shape, 1)
            masks = {head: mask | padding for head, mask in masks.items()}
        # One test for all heads: on an accelerator each one waits for the device.
        possible = torch.stack([mask.any(-1) for mask in masks.values()], -1)
        if not possible.all():
            *step, head = (~possible).nonzero()[0].tolist()
            raise ActionMaskError(
                f"the action mask of head {self.heads[head]!r} must have at least one legal choice "
                f"in every row, got none at index {step}"
            )
        for head, mask in masks.items():
            tensordict.set(("mask", head), mask)
        return tensordict


def select_row(mask: Tensor, op: Tensor) -> Tensor:
    """The row of ``mask [..., ops, choices]`` for ``op [...]``: ``[..., choices]``."""
    index = op[..., None, None].expand(*op.shape, 1, mask.shape[-1])
    return mask.gather(-2, index).squeeze(-2)
