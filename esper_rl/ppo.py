"""Proximal policy optimisation of a factored recurrent policy, one update after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from esper_rl.errors import (
    check_choice,
    check_integer,
    check_number,
    check_types,
    config_errors,
)
from esper_rl.objectives import (
    BOOTSTRAPS,
    RATIOS,
    FactoredClipPPOLoss,
    compute_advantages,
    final_value_loss,
)
from esper_rl.policy import ActorCritic
from esper_rl.policy.config import option

_MOST_PASSES = 10_000

VALUE_METRICS: tuple[str, ...] = (
    "explained_variance",
    "explained_variance_soft",
    "op_critic_loss",
    "op_residual_variance",
)
"""Names of the metrics of the value: before an update it is a prediction, after it a fit."""


@dataclass
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017) and its value estimation.

    Entropies are normalised, so that the bonus is as strong where two ops are legal as where six
    are: on an empty host the op then follows even a small advantage of planting now, and a greedy
    policy doesn't wait there for ever.
    """

    lr: float = option(5e-4, "learning rate of Adam, in the first iteration")
    anneal_lr: bool = option(False, "multiply lr by 1 - progress")
    gamma: float = option(0.995, "discount per epoch, above 0 and at most 1")
    lmbda: float = option(0.9, "decay of generalised advantage estimation, in [0, 1]")
    clip_epsilon: float = option(0.2, "the ratio is clipped to 1 ± this")
    epochs: int = option(6, "passes over the steps of an iteration")
    minibatches: int = option(2, "parts of a pass; rows are split, their time never is")
    critic_coeff: float = option(0.5, "weight of the value loss")
    entropy_coeff: float = option(0.006, "weight of the entropies, in the first iteration")
    anneal_entropy: bool = option(True, "multiply entropy_coeff by (1 - progress)^2")
    ratio: str = option("joint", "what is clipped: joint | per_head")
    normalize_entropy: bool = option(True, "divide entropies by log(number of legal choices)")
    bootstrap: str = option("sampled", "op of the value after a cut: sampled | expected (mean)")
    max_grad_norm: float = option(1.0, "the gradient is scaled down to this norm")
    target_kl: float | None = option(
        None, "end the passes of an iteration at kl_approx above this (0.03 or so); null: never"
    )

    @config_errors()
    def __post_init__(self) -> None:
        check_types(self, "ppo.")
        check_choice("ppo.ratio", self.ratio, RATIOS)
        check_choice("ppo.bootstrap", self.bootstrap, BOOTSTRAPS)
        check_integer("ppo.minibatches", self.minibatches)
        check_integer("ppo.epochs", self.epochs, most=_MOST_PASSES, what="passes of an hour or so")
        for name in ("lr", "max_grad_norm"):
            check_number(f"ppo.{name}", getattr(self, name), above=0)
        check_number("ppo.clip_epsilon", self.clip_epsilon, above=0, below=1)
        for name in ("critic_coeff", "entropy_coeff"):
            check_number(f"ppo.{name}", getattr(self, name), least=0)
        check_number("ppo.gamma", self.gamma, above=0, most=1)
        check_number("ppo.lmbda", self.lmbda, least=0, most=1)
        if self.target_kl is not None:
            check_number("ppo.target_kl", self.target_kl, above=0)

    def advantage_options(self) -> dict[str, Any]:
        """Arguments of :func:`esper_rl.objectives.compute_advantages`."""
        return {"gamma": self.gamma, "lmbda": self.lmbda, "bootstrap": self.bootstrap}

    def loss_options(self) -> dict[str, Any]:
        """Arguments of :class:`esper_rl.FactoredClipPPOLoss`."""
        names = ("clip_epsilon", "critic_coeff", "entropy_coeff", "ratio", "normalize_entropy")
        return {name: getattr(self, name) for name in names}


class PPO:
    """Learns from one rollout after the other.

    Args:
        actor_critic: the policy and its value, of :func:`esper_rl.make_actor_critic`.
        relevance: bool ``[ops, heads]``: does the head matter when the op is taken?
        config: the numbers; default: those of ``esper-rl train``.
        bf16: compute losses under bf16 autocast.
        zero_final_value: also pull the value of observations at which episodes were truncated
            towards 0, for worlds that pay a lump at their time limit
            (:func:`esper_rl.objectives.final_value_loss`).

    Attributes:
        loss: the :class:`esper_rl.FactoredClipPPOLoss`.
        optimizer: Adam over all weights of policy and value.

    Raises:
        ValueError, TypeError: as the loss does, for a table that doesn't fit the policy.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> from envs.actions import CAUSAL_RELEVANCE
        >>> from esper_rl import PolicyConfig, make_actor_critic
        >>> from torchrl.envs import Compose, TransformedEnv
        >>> env = MorphogenesisEnv("scaffold", num_envs=2)
        >>> ac = make_actor_critic(PolicyConfig.v2(), env)
        >>> ppo = PPO(ac, CAUSAL_RELEVANCE)
        >>> rollout = TransformedEnv(env, Compose(*ac.transforms())).rollout(4, ac.actor)
        >>> metrics = ppo.update(rollout)
        >>> metrics["grad_norm"] > 0
        True
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        relevance: Tensor,
        config: PPOConfig | None = None,
        *,
        bf16: bool = False,
        zero_final_value: bool = False,
    ) -> None:
        self.actor_critic, self.config = actor_critic, config or PPOConfig()
        self.bf16, self.zero_final_value = bf16, zero_final_value
        self.loss = FactoredClipPPOLoss(
            actor_critic.actor,
            actor_critic.critic,
            heads=actor_critic.heads,
            relevance=relevance,
            **self.config.loss_options(),
        )
        self.parameters = list(actor_critic.network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.config.lr)

    def update(self, batch: TensorDictBase, progress: float = 0.0) -> dict[str, float]:
        """Learn from a rollout.

        Advantages are estimated once. Every epoch shuffles the rows and takes an optimizer's step
        for each minibatch of them; ``target_kl`` ends that after the first step whose minibatch
        shows the policy further than this from the one that has collected.

        Args:
            batch: steps ``[..., N, T]`` of the policy as it is, with all that the actor has
                written; not changed. A collector of several workers may stack them in front.
            progress: share of the training that is over, in [0, 1], for what is annealed.

        Returns:
            Means over the steps of the optimizer of all that the loss writes, of the gradient's
            norm before clipping (``grad_norm``) and of every head's own (``head_grad_norm/HEAD``);
            what is about a certain op or head leaves out the steps that have none, and is nan when
            there was none at all. What is about the value (:data:`VALUE_METRICS`) is that of the
            whole rollout before the first step; its means over the steps, which fit the value to
            these very targets, are called ``NAME_fitted``. And ``entropy_coeff``, ``lr``, and
            ``passes``, how many were made.

        Raises:
            FloatingPointError: when a loss or gradient isn't finite, whose step isn't taken; when
                the steps before have broken the policy.
            ValueError, KeyError: for a batch that :func:`compute_advantages` or the loss refuses,
                or that has fewer rows than there are minibatches; for a ``progress`` beyond 1.
        """
        config = self.config
        check_number("progress", progress, least=0, most=1)
        steps = compute_advantages(
            batch.detach().copy(), self.actor_critic, **config.advantage_options()
        )
        steps = steps.reshape(-1, steps.shape[-1])  # rows are split, their time never is
        check_integer("minibatches", config.minibatches, most=len(steps), what="rows of the batch")
        coefficient = config.entropy_coeff
        if config.anneal_entropy:
            # Heads that few ops need get little from the advantages beside the bonus, which counts
            # at every step: they make up their minds when it is small.
            coefficient *= (1 - progress) ** 2
        self.loss.entropy_coeff.fill_(coefficient)

        lr = config.lr * (1 - progress) if config.anneal_lr else config.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        with torch.no_grad(), self._autocast():
            before = self.loss(steps)
        taken = []
        for rows in self._minibatches(len(steps)):
            taken.append(self._step(steps[rows]))
            if config.target_kl is not None and taken[-1]["kl_approx"] > config.target_kl:
                break
        passes = len(taken) / config.minibatches
        said = {"entropy_coeff": coefficient, "lr": lr, "passes": passes}
        return average_metrics(before, taken) | said

    def _minibatches(self, rows: int) -> Iterator[Tensor]:
        """Indices of rows: all of them in every epoch, in another order."""
        for _ in range(self.config.epochs):
            yield from torch.randperm(rows).tensor_split(self.config.minibatches)

    def _step(self, minibatch: TensorDictBase) -> TensorDictBase:
        """One step of the optimizer; all that the loss has written, and gradient norms."""
        try:
            with self._autocast():
                losses = self.loss(minibatch)
        except ValueError as error:  # the whole batch has passed before: the steps have done it
            raise FloatingPointError(f"the updates have broken the policy ({error})") from error
        if self.zero_final_value:
            final_value = final_value_loss(minibatch, self.actor_critic)
            losses["loss_final_value"] = self.config.critic_coeff * final_value
        loss = sum(term for name, term in losses.items() if name.startswith("loss_"))
        self.optimizer.zero_grad()
        loss.backward()
        losses.update(gradient_norms(self.actor_critic))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        _require_finite("loss", loss)
        _require_finite("gradient norm", norm)
        self.optimizer.step()
        return losses.detach().set("grad_norm", norm)

    def _autocast(self) -> torch.autocast:
        device = self.parameters[0].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)

    def state_dict(self) -> dict[str, Any]:
        """All that decides how it goes on: weights, and the optimizer's memory."""
        network = self.actor_critic.network
        return {"network": network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`.

        Raises:
            RuntimeError, ValueError: for one of another network or optimizer; nothing changes then.
        """
        network = self.actor_critic.network
        before = deepcopy(network.state_dict())
        try:
            network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception:  # torch has loaded all weights that fit
            network.load_state_dict(before)
            raise


def gradient_norms(actor_critic: ActorCritic) -> TensorDict:
    """Gradient norm of every action head's own weights, ``head_grad_norm/HEAD``."""
    return TensorDict(
        {
            f"head_grad_norm/{name}": torch.nn.utils.get_total_norm(
                [weight.grad for weight in head.parameters() if weight.grad is not None]
            )
            for name, head in actor_critic.network.heads.items()
        }
    )


def average_metrics(before: TensorDictBase, taken: Sequence[TensorDictBase]) -> dict[str, float]:
    """Average what the loss has written, as :meth:`PPO.update` says.

    Args:
        before: output of the loss for a whole rollout, before the first step of the optimizer.
        taken: its output at each of them.
    """
    scalars = TensorDict.stack(list(taken))
    means = {name: scalars[name].float().nanmean().item() for name in sorted(scalars.keys())}
    for name in [name for name in means if name.partition("/")[0] in VALUE_METRICS]:
        kind, slash, about = name.partition("/")
        means[f"{kind}_fitted{slash}{about}"] = means[name]
        means[name] = before[name].item()
    return means


def _require_finite(name: str, value: Tensor) -> None:
    if not torch.isfinite(value):
        raise FloatingPointError(f"the {name} became {value.item()}: this step isn't taken")
