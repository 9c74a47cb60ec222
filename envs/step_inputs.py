"""Checks of what a reset or a step is given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor

from envs.actions import HEADS
from envs.lookup import look_up


def check_action(action: object, num_rows: int, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the heads of an action that is well-formed (an illegal one is).

    Args:
        action: what the environment was given.
        num_rows: N.
        sizes: number of choices of every head.

    Raises:
        ValueError: a head is missing, has the wrong shape, or an index is out of range.
        TypeError: the action isn't a TensorDict or mapping, or a head isn't an int64 tensor.
    """
    heads = ", ".join(HEADS)
    if not isinstance(action, TensorDictBase | Mapping):
        raise TypeError(
            f"action must be a TensorDict with the heads {heads}, got {type(action).__name__}"
        )
    checked = {}
    for head in HEADS:
        index = action.get(head, None)
        if index is None:
            raise ValueError(f"action must have the heads {heads}, got none called {head!r}")
        if not isinstance(index, Tensor):
            raise TypeError(f"action head {head!r} must be a tensor, got {type(index).__name__}")
        if index.dtype != torch.int64:
            raise TypeError(f"action head {head!r} must be int64, got {index.dtype}")
        if index.shape != (num_rows,):
            raise ValueError(
                f"action head {head!r} must be of shape [{num_rows}], one index a row, got "
                f"{list(index.shape)}"
            )
        checked[head] = index
    indices = torch.stack(list(checked.values()))
    places = torch.arange(len(HEADS), device=indices.device)[:, None]
    outside = (indices < 0) | (indices >= look_up([sizes[head] for head in HEADS], places))
    if outside.any():
        place, row = outside.nonzero()[0].tolist()
        head = HEADS[place]
        raise ValueError(
            f"action head {head!r} must be 0 to {sizes[head] - 1}, got "
            f"{indices[place, row].item()} in row {row}"
        )
    return checked


def marked_rows(tensordict: TensorDictBase | None, key: str, blank: Tensor) -> Tensor:
    """The rows that an entry marks, all without it: bool ``[N]``.

    Args:
        tensordict: that may have the entry.
        key: of the entry.
        blank: any tensor ``[N]`` of the device.

    Raises:
        TypeError: if it isn't bool, one a row.
    """
    mask = None if tensordict is None else tensordict.get(key, None)
    if mask is None:
        return torch.ones_like(blank, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.numel() != len(blank):
        raise TypeError(
            f"{key!r} must be bool, one a row [{len(blank)}, 1], got {mask.dtype} of shape "
            f"{list(mask.shape)}"
        )
    return mask.view(len(blank))


def check_begun(stepping: Tensor, done: Tensor) -> None:
    """Refuse to step a row that is done; both are bool ``[N]``.

    Raises:
        RuntimeError: naming the first one.
    """
    over = (stepping & done).nonzero()
    if len(over):
        raise RuntimeError(
            f"row {int(over[0])} must be reset before it is stepped: its episode is over, or "
            "none has begun"
        )
