"""Checks of arguments, and the one form of their messages: "must be X, got Y"."""

from __future__ import annotations

import math
from collections.abc import Collection


def check_integer(
    name: str, value: object, *, least: int = 1, most: int | None = None, what: str = ""
) -> None:
    """Refuse what isn't an integer from ``least`` to ``most``, the number of ``what``.

    Raises:
        TypeError: if it isn't an integer.
        ValueError: if it is out of range.

    Examples:
        >>> check_integer("num_slots", 4, most=3, what="slots of the host")
        Traceback (most recent call last):
        ValueError: num_slots must be an integer from 1 to 3, the slots of the host, got 4
    """
    if most is None:
        allowed = f"an integer of at least {least}"
    else:
        allowed = f"an integer from {least} to {most}" + (f", the {what}" if what else "")
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse what isn't a finite number between the bounds that are given.

    Raises:
        TypeError: if it isn't a number.
        ValueError: if it is out of bounds.

    Examples:
        >>> check_number("lr", 0.0, above=0)
        Traceback (most recent call last):
        ValueError: lr must be a number above 0, got 0.0
    """
    bounds = {"at least": least, "above": above, "at most": most, "below": below}
    stated = " and ".join(f"{word} {b}" for word, b in bounds.items() if b is not None)
    allowed = f"a number {stated}" if stated else "a finite number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    inside = (
        math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not inside:
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse what isn't one of ``choices``.

    Raises:
        ValueError: if it isn't.

    Examples:
        >>> check_choice("gates", "none", ("permissive", "strict"))
        Traceback (most recent call last):
        ValueError: gates must be one of 'permissive', 'strict', got 'none'
    """
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
