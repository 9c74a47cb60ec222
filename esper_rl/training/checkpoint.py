"""Saving a policy and loading it again."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.envs import EnvBase

from esper_rl.policy import ActorCritic, PolicyConfig, make_actor_critic
from esper_rl.training.environment import make_env
from esper_rl.training.run_folder import RunFolder


class CheckpointError(ValueError):
    """A file that holds no policy, or one that doesn't fit; the message says what differs."""


def save_checkpoint(
    file: Path, actor_critic: ActorCritic, policy: PolicyConfig, topology: str, steps: int
) -> None:
    """Writes the policy so that ``file`` is whole at every moment, also when interrupted.

    Args:
        file: where to; a file there is replaced.
        actor_critic: the policy and value to save.
        policy: its configuration.
        topology: of the hosts that it was trained on.
        steps: environment steps that the policy has been trained for.
    """
    content = {
        "policy": asdict(policy),
        "topology": topology,
        "steps": steps,
        "weights": actor_critic.network.state_dict(),
    }
    unfinished = file.with_suffix(".tmp")
    torch.save(content, unfinished)
    os.replace(unfinished, file)


def load_policy(
    run: str | Path, env: EnvBase | None = None, policy: PolicyConfig | None = None
) -> ActorCritic:
    """The policy and value of a training run.

    Args:
        run: folder of the run.
        env: the world that the policy is to act in; without it, one like the run's.
        policy: the kind of policy to load the weights into; without it, the run's own.

    Raises:
        FileNotFoundError: when there is no such run.
        CheckpointError: when the file is damaged, or was written by another kind of policy, for
            another number of slots or another topology of hosts.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    if env is None:
        env = make_env(config, num_envs=1, seed=config.seed)
    content = _read(folder.checkpoint, device=config.device)
    slots = env.full_observation_spec["blueprint_indices"].shape[-1]
    wanted = replace(config.policy if policy is None else policy, num_slots=slots)
    actor_critic = make_actor_critic(wanted, env)
    network = actor_critic.network
    difference = _first_difference(content["weights"], network.state_dict())
    if content["topology"] != env.topology:
        difference = f"it was trained on {content['topology']} hosts, not on {env.topology} ones"
    if difference:
        saved = PolicyConfig(**content["policy"]).describe()
        raise CheckpointError(
            f"{folder.checkpoint} holds a {saved}, which doesn't fit this {wanted.describe()}: "
            f"{difference}; load it as what it is, into a world like that of its run, or train a "
            "new one"
        )
    network.load_state_dict(content["weights"])
    return actor_critic


def _read(file: Path, device: str) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{file} is not a checkpoint, or it is damaged") from error
    missing = {"policy", "topology", "weights"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise CheckpointError(f"{file} is not a checkpoint of a policy: it has no {min(missing)!r}")
    return content


def _first_difference(saved: dict[str, Tensor], wanted: dict[str, Tensor]) -> str | None:
    """Names the first tensor in which two sets of weights differ in shape, or None."""
    for name in [*wanted, *saved]:
        have = list(saved[name].shape) if name in saved else "missing"
        want = list(wanted[name].shape) if name in wanted else "unknown"
        if have != want:
            return f"{name} is {have} in the file and {want} here"
    return None
