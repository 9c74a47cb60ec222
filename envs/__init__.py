"""The world: neural networks that grow while they train.

>>> from envs import MorphogenesisEnv, list_tasks
>>> list_tasks()
['digits', 'digits_full', 'scaffold']
"""

from envs.morphogenesis import MorphogenesisEnv
from envs.observation import feature_names
from envs.reward import RewardConfig
from envs.tasks import list_tasks

__all__ = ["MorphogenesisEnv", "RewardConfig", "feature_names", "list_tasks"]
