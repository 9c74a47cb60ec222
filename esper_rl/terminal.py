"""A command's streams, signals and memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from threading import current_thread, main_thread
from typing import Any, TextIO, cast

import torch


def is_out_of_memory(error: Exception) -> bool:
    """PyTorch has an error of its own for accelerators only."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or "can't allocate memory" in str(error)


def write_anywhere() -> None:
    """Let output to a closed terminal, or one that knows no "±", be no reason to fail."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we live
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = cast(TextIO, _Forgiving(sys.stderr))


class _Forgiving:
    """A stream that goes on when its terminal has gone, or its disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is done inside as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    if current_thread() is main_thread():  # nothing else may catch signals
        kinds = [kind for kind in ("SIGTERM", "SIGHUP") if hasattr(signal, kind)]
        before = {kind: signal.signal(getattr(signal, kind), interrupt) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(getattr(signal, kind), handler)
