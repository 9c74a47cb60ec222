"""Errors of the agent; checks of arguments have the one form that the world's have."""

from __future__ import annotations

from envs.errors import check_choice, check_integer, check_number

__all__ = ["ConfigError", "check_choice", "check_integer", "check_number"]


class ConfigError(ValueError):
    """A configuration that can't be run; the message says which field and what is allowed."""
