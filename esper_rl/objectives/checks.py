"""Checks of a batch, with messages that name the entry."""

from __future__ import annotations

from collections.abc import Iterable

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor


def require_entries(tensordict: TensorDictBase, keys: Iterable[NestedKey]) -> None:
    """Refuse a batch that lacks an entry.

    Raises:
        KeyError: if it does.
    """
    present = tensordict.keys(True)
    for key in keys:
        if key not in present:
            raise KeyError(f"the batch lacks the entry {key!r}, which the loss needs")


def require_column(key: NestedKey, values: Tensor, tensordict: TensorDictBase) -> None:
    """Refuse an entry that isn't one number a step, ``[..., 1]``.

    Raises:
        ValueError: if it isn't.
    """
    wanted = [*tensordict.shape, 1]
    if list(values.shape) != wanted:
        raise ValueError(f"{key!r} must be of shape {wanted}, got {list(values.shape)}")


def require_finite(key: NestedKey, values: Tensor, valid: Tensor) -> None:
    """Refuse an entry ``[..., 1]`` with a step that counts and isn't finite.

    Raises:
        ValueError: if there is one.
    """
    bad = ~values.detach().squeeze(-1).isfinite() & valid
    if bad.any():
        step = bad.nonzero()[0].tolist()
        raise ValueError(f"{key!r} must be finite, got nan or infinity at {step}")


def require_valid(valid: Tensor) -> None:
    """Refuse a batch without a step that counts.

    Raises:
        ValueError: if there is none.
    """
    if not valid.any():
        raise ValueError("the batch must have at least one step that isn't padding, got none")
