"""Checks of arguments, and the one form of their messages: "must be X, got Y"."""

from __future__ import annotations

import os
import re
import secrets
import sys
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
    if number < least or number > (_LARGEST if most is None else most):
        allowed += "" if most is not None or number < least else f" and below {_LARGEST + 1}"
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


_LARGEST = 2**63 - 1


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
        abs(number) <= sys.float_info.max  # neither infinite nor nan, nor an integer beyond
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    )
    if not inside:
        raise ValueError(f"{name} must be {allowed}, got {value}")
    return number


def _same_choice(value: object, choice: object) -> bool:
    """Is it the choice, of its type? True is not 1, and a tensor is no choice."""
    same_kind = isinstance(value, bool) == isinstance(choice, bool)
    return same_kind and isinstance(value, type(choice)) and value == choice


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Refuse what isn't one of ``choices``.

    Raises:
        ValueError: if it isn't.

    Examples:
        >>> check_choice("gates", "none", ("permissive", "strict"))
        Traceback (most recent call last):
        ValueError: gates must be one of 'permissive', 'strict', got 'none'
    """
    if not any(_same_choice(value, each) for each in choices):
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
    return check_integer(name, seed, least=0, most=_LARGEST, what="largest int64")


def check_device(name: str, device: torch.device | str | None) -> torch.device:
    """Refuse a device that PyTorch can't use on this machine; None stands for the CPU.

    Raises:
        ValueError: if it can't.

    Examples:
        >>> check_device("device", None)
        device(type='cpu')
    """
    try:
        found = torch.empty(0, device="cpu" if device is None else device).device
        if found.type == "meta":
            raise RuntimeError("it has no numbers")
        return found
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be one of PyTorch's on this machine, such as cpu, got {str(device)!r} "
            f"({reason})"
        ) from None


def check_memory(name: str, needed: int, device: torch.device | str = "cpu") -> None:
    """Refuse what the machine's memory can't hold, before a part of it is allocated.

    Args:
        name: of what is too large, with its value.
        needed: bytes, roughly.
        device: whose memory; where that can't be told, nothing is refused.

    Raises:
        ValueError: with both numbers.

    Examples:
        >>> check_memory("num_envs=10000000000", 10**18)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: num_envs=10000000000 must be smaller: it takes about 931,322,575 GiB, ...
    """
    device = torch.device(device)
    there = None
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "cpu" and hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if there is not None and needed > there:
        raise ValueError(
            f"{name} must be smaller: it takes about {needed / 2**30:,.0f} GiB, {device} has "
            f"{there / 2**30:,.0f} GiB"
        )
