"""Whole episodes: the loop that plays them, and a run's world in which different players do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from envs import make_task
from envs.actions import Stage
from esper_rl.config import TrainConfig, in_another_world, make_env
from esper_rl.errors import ConfigError, check_choice
from esper_rl.evaluation.episodes import Evaluation
from esper_rl.runs import RunFolder
from esper_rl.training.loading import policy_in, read_config

EVALUATION_SEED = 20_000_003
"""Episodes of an evaluation are the same for every policy and differ from those of training."""

Mode = Literal["sampled", "greedy"]

EXPLORATION: Mapping[Mode, ExplorationType] = {
    "sampled": ExplorationType.RANDOM,
    "greedy": ExplorationType.DETERMINISTIC,
}
"""TorchRL's name for the way in which a mode takes actions."""


@torch.no_grad()
def evaluate(
    policy: Callable[[TensorDictBase], TensorDictBase],
    env: EnvBase,
    episodes: int,
    mode: Mode = "sampled",
    gamma: float = 1.0,
) -> Evaluation:
    """Play whole episodes, one on each row of the world.

    The policy starts from whatever state the world's random numbers are in: call
    ``env.set_seed`` and ``torch.manual_seed`` before, to play the same episodes again.

    Args:
        policy: reads the world's TensorDict and writes ``("action", head)``.
        env: a world with batch size ``[E]``, with the transforms that the policy needs.
        episodes: E. It has to be the world's number of rows.
        mode: ``"sampled"`` draws actions, ``"greedy"`` takes the most probable one of each head.
        gamma: discount of the returns.

    Raises:
        ValueError: when ``episodes`` isn't the number of rows, or for an unknown mode.
    """
    if env.batch_size != torch.Size([episodes]):
        raise ValueError(
            f"episodes must be the number of rows of env, {list(env.batch_size)}, got {episodes}"
        )
    check_choice("mode", mode, tuple(EXPLORATION))

    returns = torch.zeros(episodes, device=env.device)
    discount = 1.0
    playing = torch.ones(episodes, dtype=torch.bool, device=env.device)
    results = {name: torch.zeros_like(returns) for name in _FINAL}
    with set_exploration_type(EXPLORATION[mode]):
        state = env.reset()
        while playing.any():
            # A row whose episode is over starts another one, which doesn't count.
            step, state = env.step_and_maybe_reset(policy(state))
            outcome = step["next"]
            returns += discount * outcome["reward"].squeeze(-1) * playing
            discount *= gamma
            ending = outcome["done"].squeeze(-1) & playing
            for name, measure in _FINAL.items():
                results[name][ending] = measure(outcome)[ending]
            playing &= ~ending
    return Evaluation(returns=returns.cpu(), **{key: value.cpu() for key, value in results.items()})


_FINAL: Mapping[str, Callable[[TensorDictBase], Tensor]] = {
    "final_accuracy": lambda outcome: outcome["metrics", "val_accuracy"].squeeze(-1).float(),
    "seed_params": lambda outcome: outcome["metrics", "seed_params"].squeeze(-1).float(),
    "fossilized": lambda outcome: (outcome["metrics", "stage"] == Stage.FOSSILIZED).sum(-1).float(),
}


@dataclass(frozen=True)
class Player:
    """One who plays the episodes of an evaluation.

    Attributes:
        name: in tables and files.
        make: makes the policy that plays in an arena; it may play there itself.
        mode: how that policy takes its actions.
        hinders: the greedy policy plays, but something is taken from it: what it earns less is
            what that was worth.
    """

    name: str
    make: Callable[[Arena], TensorDictModuleBase]
    mode: Mode = "sampled"
    hinders: bool = False


class Arena:
    """The world and the policy of a run, opened once; every player finds the same episodes there.

    Args:
        run: folder of a training run.
        episodes: E, all played at once, a row each.
        seed: of the episodes.
        settings: another world, discount or device than the run's, such as
            ``["task=digits_full"]``; see :func:`esper_rl.config.in_another_world`.

    Attributes:
        folder: of the run.
        config: of the run, with these settings.
        world: of E rows, with the transforms that the policy needs.
        actor_critic: the policy of the run and its value.
        trained_steps: environment steps that these have been trained for.

    Raises:
        FileNotFoundError: when there is no such run.
        ConfigError: for settings that aren't allowed.
        CheckpointError: when its policy can't be loaded.

    Examples:
        >>> from esper_rl.evaluation import GREEDY
        >>> arena = Arena("runs/first", episodes=64)  # doctest: +SKIP
        >>> arena.play(GREEDY).summary()["returns"]  # doctest: +SKIP
        {'mean': 5.3, 'ci95': 0.1}
    """

    def __init__(
        self,
        run: str | Path,
        episodes: int,
        *,
        seed: int = EVALUATION_SEED,
        settings: Sequence[str] = (),
    ) -> None:
        self.folder, self.episodes, self.seed = RunFolder.open(run), episodes, seed
        own = read_config(self.folder)
        self.config = in_another_world(own, settings)
        if settings:  # before another world is made, whose networks may have to be compiled
            _require_same_topology(own, self.config)
        env = make_env(self.config, num_envs=episodes, seed=seed)
        self.actor_critic, self.trained_steps = policy_in(self.folder, env, own.policy)
        self.world = TransformedEnv(env, Compose(*self.actor_critic.transforms()))

    def enter(self, player: Player) -> TensorDictModuleBase:
        """Make a player's policy, and bring the world to the beginning of the episodes."""
        policy = player.make(self)
        self.start_over()
        return policy

    def start_over(self) -> None:
        """Begin the same episodes again at the world's next reset."""
        self.world.set_seed(self.seed)
        torch.manual_seed(self.seed)

    def play(self, player: Player, gamma: float | None = None) -> Evaluation:
        """Play the episodes.

        Args:
            player: who plays.
            gamma: discount of the returns; default: that of the run, whose sum the policy
                maximises and in which the reward's potentials cancel.
        """
        gamma = self.config.ppo.gamma if gamma is None else gamma
        return evaluate(self.enter(player), self.world, self.episodes, player.mode, gamma)


def _require_same_topology(own: TrainConfig, other: TrainConfig) -> None:
    known, task = (make_task(config.env.task).topology for config in (own, other))
    if known != task:
        raise ConfigError(
            f"the run's policy knows blueprints of {known} hosts, {other.env.task} has {task} hosts"
        )
