"""Errors of the agent; checks of arguments have the one form that the world's have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from envs.checks import check_choice, check_device, check_integer, check_memory, check_number
from envs.typed import check_types

__all__ = [
    "ConfigError",
    "check_choice",
    "check_device",
    "check_integer",
    "check_memory",
    "check_number",
    "check_types",
    "config_errors",
]


class ConfigError(ValueError):
    """A configuration that can't be run; the message says which field and what is allowed."""


@contextmanager
def config_errors(prefix: str = "") -> Iterator[None]:
    """Raise what is refused inside as a :class:`ConfigError`, ``prefix`` before its message."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, ConfigError) and not prefix:
            raise
        said = error.args[0] if isinstance(error, KeyError) else error  # which prints it quoted
        raise ConfigError(f"{prefix}{said}") from error
