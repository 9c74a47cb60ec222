"""Policies of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torchrl.envs import EnvBase

from envs import list_tasks
from esper_rl.config import TrainConfig, in_another_world, load_config, make_env, pin_world
from esper_rl.errors import ConfigError, config_errors
from esper_rl.growing import PolicyConfig
from esper_rl.policy import ActorCritic, make_actor_critic
from esper_rl.runs import Checkpoint, CheckpointError, RunFolder
from esper_rl.runs.provenance import first_command


def read_config(run: RunFolder, settings: Sequence[str] = ()) -> TrainConfig:
    """Read the configuration that a run was started with.

    A run that was made on a device that this machine doesn't have goes on, or plays, on the CPU.

    Args:
        run: its folder.
        settings: what is to be otherwise, see
            :func:`~esper_rl.config.in_another_world`.

    Raises:
        ConfigError: when it isn't one of this version, or has been changed; the message names the
            file. Also for settings that aren't allowed.
    """
    return in_another_world(_parse(run, run.read_configuration()), settings)


def _parse(run: RunFolder, text: str) -> TrainConfig:
    """The configuration of a run, of the text in its file; its task must be known."""
    with config_errors(f"{run.config}: "):
        config = load_config(text, anywhere=True)
    if config.env.task not in list_tasks():
        command = " ".join(first_command(run.provenance)) or "a command that wasn't noted"
        raise ConfigError(
            f"{run.config}: there is no task {config.env.task!r} here; --import FILE.py runs a "
            f"file that registers it; the run was begun by {command}"
        )
    return config


def all_settings(run: RunFolder) -> Any:
    """Every setting of a run, also those that a run of an older version has left to its task.

    One of another version that can't be read any more is given as it is written.

    Raises:
        ConfigError: when it has been cut or changed since the run was made.
    """
    text = run.read_configuration()
    try:
        config: Any = OmegaConf.structured(pin_world(_parse(run, text)))
    except ConfigError:
        config = OmegaConf.create(text)
    return OmegaConf.to_container(config)


def save_policy(
    run: RunFolder, actor_critic: ActorCritic, policy: PolicyConfig, topology: str, steps: int
) -> None:
    """Write what :func:`load_policy` needs of a policy that was trained for ``steps``."""
    weights = actor_critic.network.state_dict()
    Checkpoint(asdict(policy), topology, steps, weights, run.digest).write(run.checkpoint)


def load_policy(
    run: str | Path, env: EnvBase | None = None, policy: PolicyConfig | None = None
) -> ActorCritic:
    """Load the policy and value of a training run.

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
    config = read_config(folder)
    if env is None:
        env = make_env(config, num_envs=1, seed=config.seed)
    return policy_in(folder, env, config.policy if policy is None else policy)[0]


def policy_in(folder: RunFolder, env: EnvBase, policy: PolicyConfig) -> tuple[ActorCritic, int]:
    """Load the policy and value of a run for a world, as a policy of this kind.

    Returns:
        The policy, and the environment steps that it has been trained for.

    Raises:
        CheckpointError: as :func:`load_policy` does.
    """
    checkpoint = Checkpoint.read(folder.checkpoint, device=str(env.device))
    if checkpoint.digest not in ("", folder.digest):
        raise CheckpointError(f"{folder.checkpoint} is of another run than {folder.config.name}")
    try:
        saved = PolicyConfig(**checkpoint.policy)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder.checkpoint} holds a policy of another version: {error}"
        ) from None
    slots = env.full_observation_spec["blueprint_indices"].shape[-1]
    wanted = replace(policy, num_slots=slots)
    actor_critic = make_actor_critic(wanted, env)
    network = actor_critic.network
    difference = checkpoint.difference(network.state_dict(), env.topology)
    if difference is None and saved.attention_span != wanted.attention_span:
        difference = f"attention_span is {saved.attention_span} there, {wanted.attention_span} here"
    if difference:
        raise CheckpointError(
            f"{folder.checkpoint} holds a {saved.describe()}, which doesn't fit this "
            f"{wanted.describe()}: {difference}; load it as what it is, into a world like that of "
            "its run, or train a new one"
        )
    network.load_state_dict(checkpoint.weights)
    return actor_critic, checkpoint.steps
