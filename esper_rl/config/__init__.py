"""The configuration of a run: its fields, how it is composed, and the world that it describes."""

from esper_rl.config.compose import compose_config, compose_jobs, in_another_world, load_config
from esper_rl.config.describe import describe_options, dump_config
from esper_rl.config.schema import EnvConfig, RayConfig, RewardOptions, TrainConfig
from esper_rl.config.world import make_env, make_schedule, pin_world, unpin_world

__all__ = [
    "EnvConfig",
    "RayConfig",
    "RewardOptions",
    "TrainConfig",
    "compose_config",
    "compose_jobs",
    "describe_options",
    "dump_config",
    "in_another_world",
    "load_config",
    "make_env",
    "make_schedule",
    "pin_world",
    "unpin_world",
]
