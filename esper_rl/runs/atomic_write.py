"""Files that are whole at every moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_UNFINISHED = ".unfinished"


def write_atomically(file: Path, content: bytes) -> None:
    """Write a file, or replace one, so that it is never there in part, also when interrupted.

    A link stays one: what it leads to is written. What isn't a regular file, such as a device, is
    written in place.

    Raises:
        OSError: when it can't be written; ``file`` stays as it was.
    """
    file = Path(os.path.realpath(file))
    if file.exists() and not file.is_file():
        file.write_bytes(content)
        return
    unfinished = file.with_name(f".{file.name}-{uuid4().hex}{_UNFINISHED}")
    try:
        with errors_name(file):
            unfinished.write_bytes(content)
        if file.exists():
            shutil.copymode(file, unfinished)
        os.replace(unfinished, file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def errors_name(file: Path) -> Iterator[None]:
    """Let errors of the disk say which file couldn't be written; a full one names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def printable(name: str) -> str:
    """A file's name for people; bytes of it that aren't UTF-8 are shown as question marks."""
    return os.fsencode(name).decode(errors="replace")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of files in a folder."""
    for left in folder.glob(f".*-*{_UNFINISHED}"):
        left.unlink(missing_ok=True)
