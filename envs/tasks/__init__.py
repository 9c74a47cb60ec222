"""What hosts can be grown on: data, host, prices and sizes, as objects."""

from envs.tasks.arrays import ArrayTask
from envs.tasks.base import Task

__all__ = ["ArrayTask", "Task"]
