"""Files that are whole at every moment."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, or replace one, so that it is never there in part, also when interrupted.

    Raises:
        OSError: when it can't be written; ``file`` stays as it was.
    """
    unfinished = file.with_suffix(".tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
