"""Memories of a policy: layers of its trunk that carry a state from step to step."""

from collections.abc import Callable

from esper_rl.policy.memory.attention import RecentAttention
from esper_rl.policy.memory.base import CarriedMemory, Memory, MemoryStep
from esper_rl.policy.memory.gru import make_gru
from esper_rl.policy.memory.lstm import make_lstm

RECURRENT: dict[str, Callable[..., Memory]] = {"lstm": make_lstm, "gru": make_gru}
"""By kind, a function of a width and ``compilable``; the network has as many layers of a kind as
its config's ``KIND_layers`` says."""

__all__ = ["RECURRENT", "CarriedMemory", "Memory", "MemoryStep", "RecentAttention"]
