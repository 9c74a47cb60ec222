"""Starting processes so that a signal ends them all, at any time."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from threading import Event
from traceback import clear_frames
from typing import Any, TypeVar

from envs import ResumableEnv
from esper_rl.terminal import ENDING

Made = TypeVar("Made")


class WorkerLostError(RuntimeError):
    """A process that collects has ended, by whatever; what it was at can be collected again.

    Args:
        said: for the user.
    """

    def __init__(
        self, said: str = "a worker that collects has ended, killed or out of memory perhaps"
    ) -> None:
        super().__init__(said)


def start_ignoring_signals(
    stopped: Event, start: Callable[..., Made], *args: Any, **kwargs: Any
) -> Made:
    """Start processes that ignore signals to end; this process takes them, and ends the others.

    A process inherits the blocked signals of the thread that starts it. A thread of its own blocks
    them here, so the main thread can still be interrupted while it waits for the start. Then
    ``stopped`` is set, and what is sent with a process that is to be started refuses to be.
    """

    def started() -> Made:
        if hasattr(signal, "pthread_sigmask"):  # not on Windows
            # Python's own helper process, started with the first other one, would end the mask.
            from multiprocessing.resource_tracker import ensure_running

            ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *ENDING})
        return start(*args, **kwargs)

    others = set(active_children())
    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(started)
        try:
            return made.result()
        except BaseException as error:
            stopped.set()
            while not made.done():  # the thread waits for the one that it has just started
                _kill(set(active_children()) - others)
                wait([made], timeout=0.1)
            _kill(set(active_children()) - others)
            # What was half made ends now: when Python ends, it would wait for ever.
            clear_frames(error.__traceback__)
            del made
            gc.collect()
            raise


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()


@dataclass
class Sent:
    """A function that other processes get; it can't be sent any more when ``stopped`` is set."""

    function: Callable[[], ResumableEnv]
    stopped: Event

    def __call__(self) -> ResumableEnv:
        return self.function()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.stopped.is_set():
            raise KeyboardInterrupt
        return _as_it_is, (self.function,)


def _as_it_is(function: Callable[[], ResumableEnv]) -> Callable[[], ResumableEnv]:
    return function
