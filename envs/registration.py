"""Tasks by name: those of this package, of other packages, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points

import gymnasium

from envs.checks import check_name
from envs.tasks.base import Task

ENTRY_POINTS = "esper_rl.tasks"
"""Entry point group in which other packages name their tasks."""

TaskFactory = Callable[[], Task]

# By the place of their factories, so that data and libraries are loaded when a task is made.
_BUILT_IN = {
    "cifar10": "envs.tasks.cifar:cifar10",
    "digits": "envs.tasks.digits:digits",
    "digits_full": "envs.tasks.digits:digits_full",
    "digits_mixed": "envs.tasks.digits:digits_mixed",
    "digits_varied": "envs.tasks.digits:digits_varied",
    "pydoc": "envs.tasks.text:pydoc",
    "scaffold": "envs.tasks.scaffold:scaffold",
}

_registered: dict[str, TaskFactory] = {}


def register_task(name: str, factory: TaskFactory) -> None:
    """Give a task a name in this process, for environments and ``esper-rl train task=NAME``.

    A package gives its tasks names by an entry point in the group ``esper_rl.tasks`` instead:
    ``my-task = "my_package.tasks:make"``. Every process knows those.

    Args:
        name: what to call it.
        factory: makes the task; called whenever an environment is made.

    Raises:
        TypeError: if the name isn't a string, or the factory can't be called.
        ValueError: if the name is taken, or no name, see :func:`envs.checks.check_name`.

    Examples:
        >>> from dataclasses import replace
        >>> register_task("short", lambda: replace(make_task("scaffold"), max_epochs=20))
        >>> make_task("short").max_epochs
        20
    """
    check_name("name", name)
    if not callable(factory):
        raise TypeError(f"factory must be a function that makes a task, got {factory!r}")
    if name in list_tasks():
        raise ValueError(f"name must be new, got {name!r}; taken: {list_tasks()}")
    _registered[name] = factory


def registered_tasks() -> dict[str, TaskFactory]:
    """List the factories that :func:`register_task` was given here, for processes started here."""
    return dict(_registered)


def register_tasks(tasks: Mapping[str, TaskFactory]) -> None:
    """Register those of :func:`registered_tasks` in the process that has started this one."""
    _registered.update(tasks)


@contextmanager
def registered_only(tasks: Mapping[str, TaskFactory] | None = None) -> Iterator[None]:
    """Know these registered tasks and no others inside; after it, those from before.

    Tasks that are registered inside are forgotten, too. For tests, and for scripts that make many.

    Examples:
        >>> with registered_only({"mine": lambda: make_task("scaffold")}):
        ...     "mine" in list_tasks()
        True
        >>> "mine" in list_tasks()
        False
    """
    before = dict(_registered)
    _registered.clear()
    _registered.update(tasks or {})
    try:
        yield
    finally:
        _registered.clear()
        _registered.update(before)


def list_tasks() -> list[str]:
    """List the names that :class:`~envs.MorphogenesisEnv` takes as ``task``."""
    return list(dict.fromkeys([*_BUILT_IN, *_registered, *_of_other_packages()]))


def make_task(name: str) -> Task:
    """Make the task of that name.

    Raises:
        ValueError: if there is none.
        TypeError: if its factory makes something else.

    Examples:
        >>> make_task("digits").max_epochs
        50
    """
    if name in _registered:
        factory = _registered[name]
    elif name in _BUILT_IN:
        module, function = _BUILT_IN[name].split(":")
        factory = getattr(import_module(module), function)
    elif name in (others := _of_other_packages()):
        check_name("name of an entry point", name)
        factory = others[name].load()
    else:
        raise ValueError(
            f"task must be one of {', '.join(list_tasks())}, or a Task object, got {name!r}; "
            "register_task gives a task a name, in a file that `esper-rl … --import FILE.py` runs"
        )
    task = factory()
    if not isinstance(task, Task):
        raise TypeError(f"the factory of task {name!r} must make a Task, got {task!r}")
    return task


def _of_other_packages() -> dict:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def register_ids() -> None:
    """Tell Gymnasium the ids of :mod:`envs.adapters.gymnasium`."""
    gymnasium.register(
        "esper_rl/Morphogenesis-v0",
        entry_point="envs.adapters.gymnasium:GymnasiumEnv",
        vector_entry_point="envs.adapters.gymnasium:GymnasiumVectorEnv",
    )
