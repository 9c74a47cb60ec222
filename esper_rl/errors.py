"""Errors of the agent; checks of arguments have the one form that the world's have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.checks import check_choice, check_device, check_integer, check_number

__all__ = [
    "ConfigError",
    "check_choice",
    "check_device",
    "check_folder_of",
    "check_integer",
    "check_number",
    "config_errors",
]


class ConfigError(ValueError):
    """A configuration that can't be run; the message says which field and what is allowed."""


def check_folder_of(name: str, path: str | Path) -> None:
    """Refuse a file that can't be written, because its folder isn't there.

    Raises:
        ConfigError: then.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise ConfigError(f"the {name}'s folder must exist, got {str(folder)!r}")


@contextmanager
def config_errors(prefix: str = "") -> Iterator[None]:
    """Raise what is refused inside as a :class:`ConfigError`, ``prefix`` before its message."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError) and not prefix:
            raise
        raise ConfigError(f"{prefix}{error}") from error
