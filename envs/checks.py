"""Checks of arguments, and the one form of their messages: "must be X, got Y"."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Collection
from numbers import Integral, Real

import torch


def check_integer(
    name: str, value: object, *, least: int = 1, most: int | None = None, what: str = ""
) -> int:
    """Refuse what isn't an integer from ``least`` to ``most``, the number of ``what``.

    Returns:
        The value as Python's own integer; NumPy's are taken too.

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
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> float:
    """Refuse what isn't a finite number between the bounds that are given.

    Returns:
        The value as Python's own number; NumPy's are taken too.

    Raises:
        TypeError: if it isn't a number.
        ValueError: if it is out of bounds.

    Examples:
        >>> check_number("lr", 0.0, above=0)
        Traceback (most recent call last):
        ValueError: lr must be a number above 0, got 0.0
    """
    bounds = {"of at least": least, "above": above, "at most": most, "below": below}
    stated = " and ".join(f"{word} {b}" for word, b in bounds.items() if b is not None)
    allowed = f"a number {stated}" if stated else "a finite number"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {allowed}, got {value!r}")
    number = int(value) if isinstance(value, Integral) else float(value)
    inside = (
        math.isfinite(number)
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not inside:
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


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


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def check_name(name: str, value: object) -> None:
    """Refuse what is no name: names stand on command lines and in paths.

    Raises:
        TypeError: if it isn't a string.
        ValueError: if it has other characters than ASCII letters, digits, ``_``, ``.`` and ``-``,
            begins with ``.`` or ``-``, or hasn't 1 to 64 of them.

    Examples:
        >>> check_name("name", "../escaped")
        Traceback (most recent call last):
        ValueError: name must be 1 to 64 of A-Z a-z 0-9 _ . -, the first no . or -, got '../escaped'
    """
    allowed = "1 to 64 of A-Z a-z 0-9 _ . -, the first no . or -"
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    if not _NAME.fullmatch(value):
        shown = value if len(value) <= 80 else f"{value[:80]}…"
        raise ValueError(f"{name} must be {allowed}, got {shown!r}")


def check_seed(name: str, seed: object) -> int:
    """Refuse what isn't a seed; None stands for one that no other process has.

    Raises:
        TypeError: if it isn't an integer.
        ValueError: if it isn't from 0 to 2⁶³ − 1.
    """
    if seed is None:
        return secrets.randbits(63)  # forked processes share the generators of torch and NumPy
    return check_integer(name, seed, least=0, most=2**63 - 1, what="largest int64")


def check_device(name: str, device: torch.device | str | None) -> torch.device:
    """Refuse a device that PyTorch can't use on this machine; None stands for the CPU.

    Raises:
        ValueError: if it can't.

    Examples:
        >>> check_device("device", None)
        device(type='cpu')
    """
    try:
        return torch.empty(0, device="cpu" if device is None else device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be one of PyTorch's on this machine, such as cpu, got {str(device)!r} "
            f"({reason})"
        ) from None
