"""Libraries that torch.compile keeps on disk."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from time import time

from torch._inductor.runtime.runtime_utils import cache_dir

_LOGGER = logging.getLogger(__name__)
_SECONDS_TO_LINK = 10


def remove_broken_libraries() -> None:
    """Remove libraries that a process was compiling when it was killed.

    PyTorch also loads a library that is cut off, and crashes. A library of the last ten seconds may
    be one that another process is writing, and stays.
    """
    for library in Path(cache_dir()).rglob("*.so"):
        age = time() - library.stat().st_mtime
        if age > _SECONDS_TO_LINK and not _is_whole(library.read_bytes()):
            _LOGGER.warning("%s was not finished and is compiled again", library)
            library.unlink(missing_ok=True)


def _is_whole(library: bytes) -> bool:
    """False if it is cut off: in a 64-bit ELF file the table of sections comes last."""
    if not library.startswith(b"\x7fELF\x02"):
        return bool(library)  # another system's
    if len(library) < 64:
        return False
    (start,) = struct.unpack_from("<Q", library, 40)
    size, number = struct.unpack_from("<HH", library, 58)
    return start + size * number <= len(library)
