"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from envs.tasks.base import Task
from envs.tasks.digits import digits, digits_full

_TASKS: dict[str, Callable[[], Task]] = {"digits": digits, "digits_full": digits_full}


def list_tasks() -> list[str]:
    """Names that :class:`~envs.MorphogenesisEnv` takes as ``task``."""
    return list(_TASKS)


def make_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: if there is none.

    Examples:
        >>> make_task("digits").train_inputs.shape
        torch.Size([1297, 1, 8, 8])
    """
    if name not in _TASKS:
        raise ValueError(f"task {name!r} is unknown; the tasks are {', '.join(_TASKS)}")
    return _TASKS[name]()


__all__ = ["Task", "list_tasks", "make_task"]
