"""Tasks: data, host, prices and sizes of a growing problem, as objects."""

from envs.tasks.arrays import ArrayTask
from envs.tasks.base import Task

__all__ = ["ArrayTask", "Task"]
