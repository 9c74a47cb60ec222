"""Tables of constants, looked up by tensors of places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def look_up(values: Sequence[float], places: Tensor) -> Tensor:
    """The value at each place.

    Args:
        values: integers or floats.
        places: int64, any shape, from 0 on.

    Returns:
        Shaped like ``places``: int64 if all values are integers, else float32.

    Examples:
        >>> look_up((3, 5, 8), torch.tensor([2, 0]))
        tensor([8, 3])
    """
    whole = all(isinstance(value, int) for value in values)
    return _table(tuple(values), torch.int64 if whole else torch.float32, places.device)[places]


@cache
def _table(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
