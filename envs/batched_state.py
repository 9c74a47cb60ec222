"""Objects whose fields have one row an environment: choosing, copying, saving, written once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class Rows:
    """Base of dataclasses whose fields have a leading N: tensors, such objects, dicts of either.

    Tensors are replaced, never written into, so one that was handed out never changes, and
    :meth:`copy` need not copy them.
    """

    def replace(self, mask: Tensor, other: Self) -> None:
        """Take what ``mask`` marks from ``other``.

        Args:
            mask: bool ``[N]``, or more of the leading dimensions that all fields have.
            other: shaped like this object.
        """
        vars(self).update(_map2(lambda mine, theirs: _choose(mask, theirs, mine), self, other))

    def copy(self) -> Self:
        """A second object with the same tensors."""
        return self._made(
            {
                name: value.copy() if isinstance(value, Rows | dict) else value
                for name, value in vars(self).items()
            }
        )

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self._made(_map(lambda tensor: tensor.to(device), self))

    def __getitem__(self, rows: Any) -> Self:
        """The rows that an index of the leading dimension selects."""
        return self._made(_map(lambda tensor: tensor[rows], self))

    def state_dict(self) -> dict[str, Any]:
        """Fields by name, nested as they are here."""
        return {
            name: value.state_dict() if isinstance(value, Rows) else copy.copy(value)
            for name, value in vars(self).items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave for an object of the same kind and shape.

        Raises:
            ValueError: for an entry that is missing, unknown, or of another shape or dtype;
                nothing is changed then.
        """
        vars(self).update(self._checked(state, ""))

    def _checked(self, state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        mine = vars(self)
        if set(state) != set(mine):
            odd = sorted(set(state) ^ set(mine))
            raise ValueError(f"state must have the entries {sorted(mine)}, got other ones: {odd}")
        checked = {}
        for name, value in mine.items():
            place = f"{prefix}{name}"
            if isinstance(value, Rows):
                part = value.copy()
                vars(part).update(part._checked(state[name], f"{place}."))
                checked[name] = part
            else:
                checked[name] = like(place, value, state[name])
        return checked

    def _made(self, values: dict[str, Any]) -> Self:
        made = copy.copy(self)
        vars(made).update(values)
        return made


def cloned(tensors: dict[str, Any]) -> dict[str, Any]:
    """Clone all tensors of a dict, also those of dicts in it."""
    return {
        name: cloned(value) if isinstance(value, dict) else value.clone()
        for name, value in tensors.items()
    }


def _map(function: Callable[[Tensor], Tensor], rows: Rows) -> dict[str, Any]:
    """The fields after ``function`` was called on every tensor in them."""
    return _map2(lambda tensor, _: function(tensor), rows, rows)


def _map2(function: Callable[[Tensor, Tensor], Tensor], a: Rows, b: Rows) -> dict[str, Any]:
    def apply(x: Any, y: Any) -> Any:
        if isinstance(x, Rows):
            return x._made(_map2(function, x, y))
        if isinstance(x, dict):
            return {key: apply(x[key], y[key]) for key in x}
        return function(x, y)

    return {
        field.name: apply(getattr(a, field.name), getattr(b, field.name)) for field in fields(a)
    }


def _choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.reshape(*mask.shape, *[1] * (old.dim() - mask.dim())), new, old)


def like(place: str, mine: Any, given: Any) -> Any:
    """``given`` on the device of ``mine``, if it is a tensor, or a dict, like it.

    Raises:
        ValueError: if it isn't; the message calls it ``place``.
    """
    if isinstance(mine, dict):
        if not isinstance(given, Mapping) or set(given) != set(mine):
            raise ValueError(f"state entry {place} must have the entries {sorted(mine)}")
        return {key: like(f"{place}.{key}", value, given[key]) for key, value in mine.items()}
    if not isinstance(given, Tensor) or (given.shape, given.dtype) != (mine.shape, mine.dtype):
        got = (
            f"{given.dtype} of shape {list(given.shape)}"
            if isinstance(given, Tensor)
            else type(given).__name__
        )
        raise ValueError(
            f"state entry {place} must be {mine.dtype} of shape {list(mine.shape)}, got {got}"
        )
    return given.to(mine.device)
