"""Parts of an actor as a loss reads it: the heads, and the modules that a critic shares."""

from __future__ import annotations

from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey

DRAWS = (ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential)
"""Types of a head: a distribution alone, or with the module that gives its logits."""


def action_key(draw: TensorDictModuleBase) -> NestedKey:
    """Return the key under which a head writes its choice."""
    return draw.dist_sample_keys[0]


def last_part(key: NestedKey) -> str:
    """Return the name at the end of a key."""
    return key if isinstance(key, str) else key[-1]


def without_shared(
    critic: TensorDictModuleBase | None, actor: ProbabilisticTensorDictSequential
) -> list[TensorDictModuleBase]:
    """The critic's modules less those, at its beginning, that the actor runs too."""
    if not isinstance(critic, TensorDictSequential):
        return [] if critic is None else [critic]
    modules = list(critic.module)
    shared = {id(module) for module in actor.module}
    while modules and id(modules[0]) in shared:
        modules.pop(0)
    return modules
