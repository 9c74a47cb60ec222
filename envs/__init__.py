"""The world: neural networks that grow while they train.

>>> from envs import MorphogenesisEnv, list_tasks
>>> list_tasks()[:4]
['cifar10', 'digits', 'digits_full', 'digits_mixed']
"""

from envs.checkpointing import ResumableEnv
from envs.hosts import ConvHost, ModuleHost, TextHost, module_seed
from envs.morphogenesis import MorphogenesisEnv
from envs.networks.growing import GrowingNetwork
from envs.observation import feature_names
from envs.registration import list_tasks, make_task, register_ids, register_task
from envs.reward import RewardConfig
from envs.reward_schedule import Ramp, RewardSchedule
from envs.tasks import ArrayTask, LoopTask, Task

__all__ = [
    "ArrayTask",
    "ConvHost",
    "GrowingNetwork",
    "LoopTask",
    "ModuleHost",
    "MorphogenesisEnv",
    "Ramp",
    "ResumableEnv",
    "RewardConfig",
    "RewardSchedule",
    "Task",
    "TextHost",
    "feature_names",
    "list_tasks",
    "make_task",
    "module_seed",
    "register_task",
]

register_ids()
