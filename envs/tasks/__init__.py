"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from envs.tasks.base import DataTask, Task
from envs.tasks.digits import digits, digits_full
from envs.tasks.scaffold import scaffold

_TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "digits_full": digits_full,
    "scaffold": scaffold,
}


def list_tasks() -> list[str]:
    """Names that :class:`~envs.MorphogenesisEnv` takes as ``task``."""
    return list(_TASKS)


def make_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: if there is none.

    Examples:
        >>> make_task("digits").max_epochs
        50
    """
    if name not in _TASKS:
        raise ValueError(f"task {name!r} is unknown; the tasks are {', '.join(_TASKS)}")
    return _TASKS[name]()


__all__ = ["DataTask", "Task", "list_tasks", "make_task"]
