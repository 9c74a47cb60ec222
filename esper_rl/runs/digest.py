"""The digest of a run's configuration, by which its files belong to each other."""

from __future__ import annotations

import re
from hashlib import sha256

_MARK = "# digest of all above: "
_TOTAL_STEPS = re.compile(r"^total_steps: .*$", re.MULTILINE)


def sign(configuration: str) -> str:
    """The configuration with its digest as the last line, in place of the one that it has.

    Examples:
        >>> print(sign("seed: 0"), end="")
        seed: 0
        # digest of all above: 6a5a163cfb9d8459
    """
    configuration = _content(configuration).rstrip("\n") + "\n"
    return f"{configuration}{_MARK}{_digest(configuration)}\n"


def is_signed(text: str) -> bool:
    """Is its last line a digest?"""
    return text.rstrip("\n").rpartition("\n")[2].startswith(_MARK)


def is_whole(text: str) -> bool:
    """Is it as :func:`sign` has written it?"""
    return sign(text) == text


def digest_of_run(text: str) -> str:
    """The digest that files of a run carry: of all but ``total_steps``, which may be extended.

    Examples:
        >>> digest_of_run(sign("total_steps: 10")) == digest_of_run(sign("total_steps: 20"))
        True
        >>> digest_of_run(sign("seed: 0")) == digest_of_run(sign("seed: 1"))
        False
    """
    return _digest(_TOTAL_STEPS.sub("", _content(text)))


def with_total_steps(text: str, total_steps: int) -> str:
    """The signed configuration with another number of steps."""
    return sign(_TOTAL_STEPS.sub(f"total_steps: {total_steps}", _content(text)))


def _content(text: str) -> str:
    return text.rpartition(_MARK)[0] if is_signed(text) else text


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
