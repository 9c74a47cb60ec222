"""A command's streams, signals and memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from shutil import get_terminal_size
from threading import current_thread, main_thread
from typing import Any

import torch

ENDING = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]
"""Signals by which systems ask a process to end: SLURM sends SIGUSR1 some time before it kills."""


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory has run out; on CPUs PyTorch raises a plain RuntimeError then."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return named or "can't allocate memory" in str(error)


def forgive_output_errors() -> None:
    """Let output be no reason to fail: to a closed terminal, or one that knows no "±", or to a
    reader that has seen enough, such as ``head``. What can't be kept on a disk is one.
    """
    for name, errors in (("stdout", BrokenPipeError), ("stderr", OSError)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we live
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _Forgiving(stream, errors))


class _Forgiving:
    """A stream that goes on where another one raises errors of this kind."""

    def __init__(self, stream: Any, errors: type[OSError]) -> None:
        self._stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        with suppress(self._errors):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(self._errors):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The signals of :data:`ENDING` end what is done inside as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    if current_thread() is main_thread():  # nothing else may catch signals
        before = {kind: signal.signal(kind, interrupt) for kind in ENDING}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def terminal_width() -> int | None:
    """Columns of the terminal, None if output goes elsewhere."""
    return get_terminal_size().columns if sys.stdout.isatty() else None
