"""Small environments and actions for the tests of MorphogenesisEnv."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase

from envs import MorphogenesisEnv
from envs.actions import HEADS

SMALL = {
    "num_envs": 3,
    "max_epochs": 8,
    "validation_size": 40,
    "minibatch_size": 8,
    "batches_per_epoch": 1,
}


def small_env(**changes: object) -> MorphogenesisEnv:
    return MorphogenesisEnv(**{**SMALL, **changes})


def action(num_envs: int, **heads: int | list[int]) -> TensorDict:
    """An action with one choice for all rows or a list of them; heads not named are 0."""
    indices = {}
    for head in HEADS:
        index = torch.tensor(heads.get(head, 0))
        indices[head] = index.expand(num_envs).clone()
    return TensorDict(indices, batch_size=[num_envs])


def act(env: MorphogenesisEnv, state: TensorDictBase, **heads: int | list[int]) -> TensorDictBase:
    """The state after one step with that action; ``state`` stays as it is."""
    chosen = state.clone().set("action", action(env.num_envs, **heads))
    return env.step(chosen)["next"]


def random_states(env: MorphogenesisEnv, steps: int, seed: int = 0) -> list[TensorDictBase]:
    """Reset and steps with the same random actions for every row count and environment."""
    generator = torch.Generator().manual_seed(seed)
    states = [env.reset()]
    for _ in range(steps):
        heads = {
            head: torch.randint(spec.n, (), generator=generator).item()
            for head, spec in env.action_spec["action"].items()
        }
        states.append(act(env, states[-1], **heads))
    return states


def differences(a: TensorDictBase, b: TensorDictBase, rows: object = slice(None)) -> list[object]:
    """Keys whose values differ in any bit in ``rows``."""
    keys = set(a.keys(True, True)) & set(b.keys(True, True))
    assert keys
    return [k for k in keys if not a[k][rows].equal(b[k][rows])]
