"""How far are advantages from the truth? Measured on ``scaffold``, where an episode costs little.

A policy that has learned for a while plays; then many rows play one of its histories again, up to a
step. There half of them take the action that was taken, and the others draw one; from then on all
draw. Rows on which the world had shown something else are left out. The mean return of the first
half less that of the second is the action's true advantage; the estimates that a rollout would have
given are compared with it: their mean error (bias), and their variance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.value.functional import generalized_advantage_estimate

from benchmarks.seeds import Run
from benchmarks.study.settings import Job
from benchmarks.study.worlds import in_study
from esper_rl import train
from esper_rl.evaluation import Arena
from esper_rl.policy import ActorCritic

TRAINED = 0.25
"""Part of a training after which its values are looked at: there is much to learn still."""

ROWS, HISTORIES, SEED = 128, 40, 7


def measure_advantages(job: Job) -> Run:
    """Train for a while; then errors of advantages over some histories."""
    torch.set_num_threads(1)
    config = in_study(job.config, job.task)
    with tempfile.TemporaryDirectory() as folder:
        steps = round(TRAINED * config.total_steps)
        config = replace(config, total_steps=steps, run_dir=f"{folder}/run")
        arena = Arena(train(config, quiet=True), ROWS, seed=SEED)
    gamma, lmbda = config.ppo.gamma, config.ppo.lmbda
    chance = torch.Generator().manual_seed(job.seed)
    torch.manual_seed(job.seed)  # of all draws of the policy
    played = roll_out(arena, arena.actor_critic.actor)
    errors: list[float] = []
    spreads: list[float] = []
    truths: list[float] = []
    while len(errors) < HISTORIES:
        row, step = (int(torch.randint(n, (), generator=chance)) for n in played.shape)
        history = played[row, : step + 1]
        again = roll_out(arena, Again(arena.actor_critic, history, config.policy.value_mode))
        shown = again["observation"][:, : step + 1]
        same = (shown == history["observation"]).flatten(1).all(1)
        first = same & Again.repeats(ROWS)
        if first.sum() < 8 or (same & ~first).sum() < 8:
            continue
        returns = returns_from(again, step, gamma)
        truth = returns[first].mean() - returns[same & ~first].mean()
        estimate = estimates(again, gamma, lmbda)[first, step]
        errors.append((estimate.mean() - truth).item())
        spreads.append(estimate.var().item())
        truths.append(truth.item())
    bias, truth = torch.tensor(errors), torch.tensor(truths)
    return {
        "histories": len(errors),
        "bias": bias.mean().item(),
        "root mean square error of the mean": bias.square().mean().sqrt().item(),
        "variance": torch.tensor(spreads).mean().item(),
        "true advantages": truth.std().item(),
        "correlation": torch.corrcoef(torch.stack((truth + bias, truth)))[0, 1].item(),
    }


def roll_out(arena: Arena, policy: TensorDictModuleBase) -> TensorDictBase:
    """A whole episode on every row, always of the same hosts: ``[N, T]``."""
    arena.world.set_seed(SEED)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return arena.world.rollout(arena.config.episode_steps, policy, break_when_any_done=False)


class Again(TensorDictModuleBase):
    """Plays a history on every row, its last action on every second one, and then draws.

    Args:
        actor_critic: draws, and says what states are worth.
        history: steps ``[t + 1]`` with their actions.
        value_mode: of the policy; one that is of the op taken is that of the history's.
    """

    def __init__(self, actor_critic: ActorCritic, history: TensorDictBase, value_mode: str) -> None:
        super().__init__()
        self.actor_critic, self.of_op = actor_critic, value_mode == "sampled"
        self.actions: Iterator[TensorDictBase] = iter(history["action"])
        self.left = len(history)
        self.in_keys, self.out_keys = actor_critic.actor.in_keys, actor_critic.actor.out_keys

    @staticmethod
    def repeats(rows: int) -> Tensor:
        """Which rows take the last action of the history, too?"""
        return torch.arange(rows) % 2 == 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.actor_critic.actor(tensordict)
        if self.left == 0:
            return tensordict
        self.left -= 1
        rows = len(tensordict)
        taken = self.repeats(rows) | (self.left > 0)
        for head, index in next(self.actions).items():
            tensordict["action", head][taken] = index
        if self.of_op:
            tensordict["baseline"] = self.actor_critic.critic(tensordict.copy())["state_value"]
        return tensordict


def returns_from(episodes: TensorDictBase, step: int, gamma: float) -> Tensor:
    """Discounted returns ``[N]`` from a step on."""
    rewards = episodes["next", "reward"][:, step:, 0]
    return (rewards * gamma ** torch.arange(rewards.shape[1])).sum(1)


def estimates(episodes: TensorDictBase, gamma: float, lmbda: float) -> Tensor:
    """Advantages ``[N, T]`` by the rollout's own values (Schulman et al. 2016), as they are."""
    value, done = episodes["baseline"], episodes["next", "done"]
    following = torch.where(done, 0.0, value.roll(-1, dims=-2))
    advantage, _ = generalized_advantage_estimate(
        gamma, lmbda, value, following, episodes["next", "reward"], done, done, time_dim=-2
    )
    return advantage.squeeze(-1)
