"""Metrics of a training run, and the warnings that follow from them.

Every number is computed from one batch by one function; :func:`find_warnings` reads them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import ProbabilisticActor, set_recurrent_mode

from envs.actions import Op, Stage
from envs.observation import feature_columns
from esper_rl.growing.feedback import HIDDEN
from esper_rl.policy import ActorCritic

ENTROPY_WARNING, ENTROPY_ALERT = 0.3, 0.1
"""Shares of its maximum under which a head's entropy is remarkable. Policy V2, "Monitoring Points",
asks for such alarms without numbers; those here and below are this project's own."""

WAIT_ALERT = 0.95
"""Share of WAIT, where there is a choice, above which a policy has stopped acting."""

DRIFT_WARNING = 2.0
"""Growth of the cell state's norm, last fifth against middle fifth of the episode."""

FEEDBACK_WARNING = 0.5
"""Share of the op's probability that moves when the feedback columns are hidden."""

EXPLODED = {"kl_approx": 1.0, "loss_critic": 1e3}
"""Values above which an update has destroyed a policy: nats, and squared discounted return. In a
run that learns they are a few hundredths, and about one."""

QUANTILES = (10, 50, 90)
"""Percentages at which a distribution is looked at."""

EPISODE_PARTS = 5
"""Parts of an episode in which the LSTM's state is looked at."""

(_EPOCH,) = feature_columns("epoch_progress")


def rollout_metrics(batch: TensorDictBase) -> dict[str, float]:
    """Summarise what happened in the world.

    Args:
        batch: steps ``[N, T]`` of a collector, with ``("next", "episode_return")``.

    Returns:
        Number of episodes that ended in the batch and the means over them of discounted return,
        final accuracy (percent) and seed parameters (nan when none ended), and how much the first
        two vary between them (``_std``, nan when fewer than two ended); over all steps, the
        fraction of refused actions and of each op, and the number of networks that failed and
        were taken back; and the fraction of WAIT over the steps with a choice (nan without any).
    """
    outcome = batch["next"]
    done = outcome["done"].squeeze(-1)

    def at_the_end(values: Tensor) -> Tensor:
        return values.squeeze(-1)[done].float()

    returns = at_the_end(outcome["episode_return"])
    accuracies = at_the_end(outcome["metrics", "val_accuracy"])
    waits = batch["action", "op"] == Op.WAIT
    choice = batch["action_mask", "op"][..., Op.WAIT + 1 :].any(-1)
    chosen = torch.bincount(batch["action", "op"].flatten(), minlength=len(Op)) / done.numel()
    refused = ~outcome["last_action_success"]
    return {
        "episodes": int(done.sum()),
        "return": returns.mean().item(),
        "return_std": _spread(returns),
        "final_accuracy": accuracies.mean().item(),
        "final_accuracy_std": _spread(accuracies),
        "seed_params": at_the_end(outcome["metrics", "seed_params"]).mean().item(),
        "rollbacks": int(outcome["metrics", "rollback"].sum()),
        "refused_rate": refused.float().mean().item(),
        "wait_rate": waits[choice].float().mean().item(),
        **{f"op/{op.name}": chosen[op].item() for op in Op},
    }


def _spread(values: Tensor) -> float:
    return values.std().item() if len(values) > 1 else math.nan


def credit_metrics(batch: TensorDictBase) -> dict[str, float]:
    """Summarise hindsight credit: how much helpers have earned, and how late.

    Args:
        batch: steps ``[N, T]`` of a collector.

    Returns:
        Credited helpers by step (``hindsight/rate``) and, over them, the 10 %, 50 % and 90 %
        quantiles of their credit (``hindsight/credit_p50``) and of the epochs since they left
        (``hindsight/delay_p50``, 0 for those that live); nan when there was none.
    """
    metrics = batch["next", "metrics"]
    credit, delay = metrics["pending_hindsight_credit"], metrics["hindsight_delay"]
    earned = credit > 0
    found = {"hindsight/rate": earned.sum().item() / batch.numel()}
    for name, values in (("credit", credit[earned]), ("delay", delay[earned].float())):
        for percent in QUANTILES:
            value = values.quantile(percent / 100).item() if len(values) else math.nan
            found[f"hindsight/{name}_p{percent}"] = value
    return found


def distributions(batch: TensorDictBase) -> dict[str, Tensor]:
    """Values whose spread is worth seeing.

    Args:
        batch: steps ``[N, T]`` of a collector.

    Returns:
        Discounted returns and final accuracies of the episodes that ended; the helpers' hindsight
        credit and its delay in epochs; the contribution, in points of accuracy, of the seeds that
        are fossilized when an episode ends; and the norm of the LSTM's cell state at every step.
        A flat tensor each, empty where there was none.
    """
    outcome, metrics = batch["next"], batch["next", "metrics"]
    done = outcome["done"].squeeze(-1)
    earned = metrics["pending_hindsight_credit"] > 0
    fossilized = (metrics["stage"] == Stage.FOSSILIZED) & done.unsqueeze(-1)
    found = {
        "distribution/return": outcome["episode_return"][done].flatten(),
        "distribution/final_accuracy": metrics["val_accuracy"][done].flatten(),
        "distribution/hindsight_credit": metrics["pending_hindsight_credit"][earned],
        "distribution/hindsight_delay": metrics["hindsight_delay"][earned].float(),
        "distribution/contribution": metrics["contribution"][fossilized],
    }
    cell = outcome.get("recurrent_state_c", None)
    if cell is not None:
        found["distribution/cell_norm"] = cell.flatten(2).norm(dim=-1).flatten()
    return found


def named_by_op(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of :meth:`esper_rl.PPO.update` with names of ops in place of their numbers.

    Examples:
        >>> named_by_op({"op_critic_loss/0": 1.0})
        {'op_critic_loss/WAIT': 1.0}
    """
    return {_named_by_op(name): value for name, value in metrics.items()}


def _named_by_op(name: str) -> str:
    kind, _, about = name.partition("/")
    return f"{kind}/{Op(int(about)).name}" if about.isdigit() else name


def cell_metrics(batch: TensorDictBase) -> dict[str, float]:
    """Norm of the LSTM's cell state through the episode (Policy V2, "Monitoring Points").

    Args:
        batch: steps ``[N, T]`` with ``("next", "recurrent_state_c")``, the ``epoch_progress`` of
            the observation in its first column.

    Returns:
        Mean norm in every fifth of the episode, nan where the batch has no step of it, and
        ``cell_norm/drift``, that of the last fifth over that of the middle one; the same of a
        second layer as ``upper_cell_norm``. Nothing for a policy without an LSTM.
    """
    progress = batch["observation"][..., _EPOCH]  # of the step's beginning: from 0 to below 1
    part = (progress * EPISODE_PARTS + 1e-4).long().clamp(max=EPISODE_PARTS - 1)
    found: dict[str, float] = {}
    for layer in ("", "upper_"):
        cell = batch.get(("next", f"{layer}recurrent_state_c"), None)
        if cell is None:
            continue
        norm = cell.flatten(2).norm(dim=-1)
        means = [norm[part == i].mean().item() for i in range(EPISODE_PARTS)]
        found |= {f"{layer}cell_norm/fifth_{i + 1}": mean for i, mean in enumerate(means)}
        found[f"{layer}cell_norm/drift"] = means[-1] / means[EPISODE_PARTS // 2]
    return found


@torch.no_grad()
def feedback_metrics(batch: TensorDictBase, actor_critic: ActorCritic) -> dict[str, float]:
    """Measure how much the op leans on the action-feedback columns (shortcut learning).

    Args:
        batch: steps ``[N, T]`` of a collector.
        actor_critic: its policy.

    Returns:
        Mean total variation distance, in [0, 1], between π(op|s) and the same after the columns
        were zeroed (``feedback/zeroed``) or exchanged between rows (``feedback/permuted``, nan
        where there is one row only).
    """
    observation = batch["observation"]
    before = _op_probabilities(batch, observation, actor_critic)
    moved = {}
    for name, hide in HIDDEN.items():
        after = _op_probabilities(batch, hide(observation), actor_critic)
        moved[f"feedback/{name}"] = (after - before).abs().sum(-1).mean().item() / 2
    if len(batch) == 1:
        moved["feedback/permuted"] = math.nan
    return moved


def _op_probabilities(
    batch: TensorDictBase, observation: Tensor, actor_critic: ActorCritic
) -> Tensor:
    """π(op|s) ``[N, T, ops]`` of the batch's states with another observation."""
    steps = batch.copy().set("observation", observation)
    with set_recurrent_mode(True):
        for module in actor_critic.actor.module:
            if isinstance(module, ProbabilisticActor):  # the op comes first
                return module.get_dist(steps).probs
            module(steps)
    raise AssertionError("unreachable: an actor draws an op")


def find_warnings(row: Mapping[str, float]) -> dict[str, str]:
    """Find what is remarkable in an iteration's metrics.

    Args:
        row: all metrics of the iteration, by name; missing ones raise no warning, and nan does
            for :data:`EXPLODED` only.

    Returns:
        A sentence for each warning, by the name of the metric that it is about.
    """
    found = {}
    for name, value in row.items():
        kind, _, about = name.partition("/")
        if kind == "relevant_normalized_entropy" and value < ENTROPY_WARNING:
            level = "alert" if value < ENTROPY_ALERT else "warning"
            found[name] = (
                f"{level}: head {about!r} has {value:.0%} of its largest entropy where it matters; "
                "it hardly explores (see ppo.entropy_coeff)"
            )
        elif name in EXPLODED and not value <= EXPLODED[name]:
            found[name] = (
                f"alert: {name} is {value:.2g}: the updates have exploded (see ppo.lr); the policy "
                "before them is kept in checkpoint.good.pt"
            )
        elif name == "wait_rate" and value > WAIT_ALERT:
            found[name] = (
                f"alert: {value:.0%} of the ops are WAIT where another one is legal; the policy "
                "has stopped acting"
            )
        elif name.endswith("cell_norm/drift") and value > DRIFT_WARNING:
            found[name] = (
                f"warning: the LSTM's cell state grows by a factor of {value:.1f} from the middle "
                "to the end of the episode"
            )
        elif kind == "feedback" and value > FEEDBACK_WARNING:
            found[name] = (
                f"warning: {value:.0%} of the op's probability moves when the feedback columns "
                f"are {about}; the policy may have learned a shortcut"
            )
    return found
