"""Checks of arguments, with messages that say what is allowed."""

from __future__ import annotations


def check_integer(
    name: str, value: int, *, least: int = 1, most: int | None = None, what: str = ""
) -> None:
    """Refuse what isn't an integer from ``least`` to ``most``, the number of ``what``.

    Raises:
        TypeError: if it isn't an integer.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"between {least} and {most}, the {what}"
        raise ValueError(f"{name} must be {limit}; got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what isn't one of ``choices``.

    Raises:
        ValueError: if it isn't.
    """
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {allowed}; got {value!r}")
