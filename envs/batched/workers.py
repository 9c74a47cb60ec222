"""Chunks of rows on all cores at once, and small tensors on one.

Small networks make small kernels, which one core runs faster than several that wait for each
other. So each chunk gets a thread of its own, whose kernels are single-threaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch

Chunk = TypeVar("Chunk")
Given = ParamSpec("Given")
Result = TypeVar("Result")


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of one process: a fork inherits the pool, but not what runs in it."""
    return ThreadPoolExecutor(threads, "envs-worker", torch.set_num_threads, (1,))


def run_chunks(work: Callable[[Chunk], None], chunks: Iterable[Chunk]) -> None:
    """Call ``work`` on every chunk; the chunks must not depend on each other.

    Uses as many threads as :func:`torch.get_num_threads` says; grad mode is the caller's.
    """
    chunks = list(chunks)
    threads = torch.get_num_threads()
    if threads == 1 or len(chunks) == 1:
        for chunk in chunks:
            work(chunk)
        return
    grad = torch.is_grad_enabled()

    def guarded(chunk: Chunk) -> None:
        with torch.set_grad_enabled(grad):
            work(chunk)

    list(_pool(threads, os.getpid()).map(guarded, chunks))
    torch.set_num_threads(threads)  # a worker that starts sets the default of later threads


def one_thread(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorator: run a function whose tensors are small with single-threaded kernels.

    exp, log and cos of MKL go to all threads however few the numbers are, and wait for them:
    microseconds become milliseconds as soon as another process wants a core.
    """

    @wraps(function)
    def wrapper(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return wrapper


def outside_callers_modes(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorator: run a function outside the caller's inference mode and autocast."""

    @wraps(function)
    def wrapper(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            return function(*args, **kwargs)

    return wrapper


def keep_freed_memory() -> None:
    """Make glibc hand out freed memory again instead of returning it to the system.

    Features of some MB are allocated and freed in every pass; fresh pages for each of them cost a
    third of validation in PyTorch. glibc raises its limits for this to the largest mapped block
    that was freed, 32 MB at most. Does nothing elsewhere.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
