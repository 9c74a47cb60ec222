"""Tasks: data, host, prices and sizes of a growing problem, as objects."""

from envs.tasks.arrays import ArrayTask
from envs.tasks.base import Task
from envs.tasks.loops import LoopTask

__all__ = ["ArrayTask", "LoopTask", "Task"]
