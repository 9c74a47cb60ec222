"""Tests run in several processes at once, so each takes one thread."""

import multiprocessing
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

from envs.registration import registered_only


@pytest.fixture(autouse=True, scope="session")
def _collectors_start_at_once() -> None:
    """TorchRL starts processes by the method that is set: forked from one that has loaded all."""
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["benchmarks.warm"])


@pytest.fixture(autouse=True)
def _tasks_are_forgotten() -> Iterator[None]:
    """A test finds no registered tasks, and leaves none."""
    with registered_only():
        yield
