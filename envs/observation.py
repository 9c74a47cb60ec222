"""What the agent sees: 25 features of the row and 29 of every slot."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.actions import ALPHA_SPEED_EPOCHS, AlphaMode, Op, Stage
from envs.lifecycle import Slots
from envs.workers import one_thread

BASE_FEATURES: tuple[str, ...] = (
    "epoch_progress",
    "loss_norm",
    "loss_delta_norm",
    "accuracy_norm",
    "accuracy_delta_norm",
    "plateau_norm",
    "host_stabilized",
    "loss_trend",
    "loss_volatility",
    "accuracy_trend",
    "accuracy_volatility",
    "best_accuracy_norm",
    "best_loss_norm",
    "params_utilization",
    "slot_utilization",
    "num_training_norm",
    "num_blending_norm",
    "num_holding_norm",
    "last_action_success",
    *(f"last_action_op_{op.name.lower()}" for op in Op),
)
"""Names of the features 0 to 24."""

SLOT_FEATURES: tuple[str, ...] = (
    "is_active",
    *(f"stage_{stage.name.lower()}" for stage in Stage),
    "alpha",
    "alpha_target",
    "alpha_mode_norm",
    "alpha_velocity",
    "time_to_target_norm",
    "alpha_algorithm_norm",
    "contribution_norm",
    "contribution_velocity_norm",
    "epochs_in_stage_norm",
    "gradient_norm_norm",
    "gradient_health",
    "has_vanishing",
    "has_exploding",
    "interaction_sum_norm",
    "boost_received_norm",
    "upstream_alpha_norm",
    "downstream_alpha_norm",
    "counterfactual_fresh",
)
"""Names of a slot's 29 features."""

ACTION_FEEDBACK: tuple[int, int] = (18, 25)
"""First column of the last action's success and op, and the column after the last one."""

_KEPT_IN_COOL_DOWN = torch.tensor(
    [
        name in ("is_active", "epochs_in_stage_norm") or name.startswith("stage_")
        for name in SLOT_FEATURES
    ]
)

HISTORY = 5
"""Epochs that trends and volatilities look back."""

STABLE_IMPROVEMENT, STABLE_EPOCHS = 0.03, 3
"""A host is stable after that many epochs in a row with a smaller relative loss improvement."""

PLATEAU_RISE = 0.5
"""Accuracy points by which accuracy must exceed its last notable value to end a plateau."""

FRESHNESS = 0.8
"""How much a counterfactual is worth, per epoch of its age."""

LOW, HIGH = -1.0, 1.5
"""Range of every feature."""


def feature_names(num_slots: int = 3) -> tuple[str, ...]:
    """Names of all features in index order.

    Examples:
        >>> names = feature_names(3)
        >>> len(names), names[18], names[25 + 29 + 11]
        (112, 'last_action_success', 'slot1_alpha')
    """
    slots = (f"slot{slot}_{name}" for slot in range(num_slots) for name in SLOT_FEATURES)
    return (*BASE_FEATURES, *slots)


@dataclass
class History:
    """What is remembered of each row's validations.

    Attributes:
        losses, accuracies: float32 ``[N, 5]``, newest last; nats and percent.
        best_loss, best_accuracy: ``[N]``.
        plateau_accuracy: ``[N]``, accuracy at its last notable rise.
        plateau_epochs: int64 ``[N]``, epochs since.
        stable_epochs: int64 ``[N]``, epochs in a row with little improvement.
        stabilized: bool ``[N]``.
    """

    losses: Tensor
    accuracies: Tensor
    best_loss: Tensor
    best_accuracy: Tensor
    plateau_accuracy: Tensor
    plateau_epochs: Tensor
    stable_epochs: Tensor
    stabilized: Tensor

    @classmethod
    def starting(cls, loss: Tensor, accuracy: Tensor) -> History:
        """History of rows that were just validated untrained: nothing has changed yet."""
        count = torch.zeros_like(loss, dtype=torch.int64)
        return cls(
            losses=loss[:, None].repeat(1, HISTORY),
            accuracies=accuracy[:, None].repeat(1, HISTORY),
            best_loss=loss,
            best_accuracy=accuracy,
            plateau_accuracy=accuracy,
            plateau_epochs=count,
            stable_epochs=count,
            stabilized=count.bool(),
        )

    @property
    def loss(self) -> Tensor:
        return self.losses[:, -1]

    @property
    def accuracy(self) -> Tensor:
        return self.accuracies[:, -1]

    def replaced(self, where: Tensor, other: History) -> History:
        """This history with the rows ``where [N]`` taken from another."""
        merged = {}
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(other, field.name)
            merged[field.name] = torch.where(where.view(-1, *[1] * (old.dim() - 1)), new, old)
        return History(**merged)

    def recorded(self, loss: Tensor, accuracy: Tensor) -> History:
        """The history after one more epoch."""
        rise = accuracy > self.plateau_accuracy + PLATEAU_RISE
        improvement = (self.loss - loss) / self.loss.clamp(min=1e-8)
        stable = torch.where(improvement < STABLE_IMPROVEMENT, self.stable_epochs + 1, 0)
        return History(
            losses=torch.cat([self.losses[:, 1:], loss[:, None]], 1),
            accuracies=torch.cat([self.accuracies[:, 1:], accuracy[:, None]], 1),
            best_loss=torch.minimum(self.best_loss, loss),
            best_accuracy=torch.maximum(self.best_accuracy, accuracy),
            plateau_accuracy=torch.where(rise, accuracy, self.plateau_accuracy),
            plateau_epochs=torch.where(rise, 0, self.plateau_epochs + 1),
            stable_epochs=stable,
            stabilized=self.stabilized | (stable >= STABLE_EPOCHS),
        )


@one_thread
def observe(
    history: History,
    slots: Slots,
    *,
    epoch_progress: Tensor,
    params_utilization: Tensor,
    last_action_success: Tensor,
    last_action_op: Tensor,
) -> Tensor:
    """The observation: float32 ``[N, 25 + 29·S]`` in [−1, 1.5].

    Args:
        history: of validation.
        slots: the slots now.
        epoch_progress: float32 ``[N]``, epochs over their number.
        params_utilization: float32 ``[N]``, see :func:`params_utilization`.
        last_action_success: bool ``[N]``.
        last_action_op: int64 ``[N]``, the op that was chosen, carried out or not.
    """
    base = _base_features(history, slots)
    base["epoch_progress"] = epoch_progress
    base["params_utilization"] = params_utilization
    base["last_action_success"] = last_action_success.float()
    for i, chosen in enumerate(F.one_hot(last_action_op, len(Op)).float().unbind(1)):
        base[f"last_action_op_{Op(i).name.lower()}"] = chosen
    row = torch.stack([base[name] for name in BASE_FEATURES], dim=1)
    return torch.cat([row, _slot_features(slots).flatten(1)], dim=1).clamp(LOW, HIGH)


def params_utilization(seed_params: Tensor, budget: int) -> Tensor:
    """log(1 + seed parameters) / log(1 + budget), at most 1."""
    return (torch.log1p(seed_params) / math.log1p(budget)).clamp(max=1.0)


def _base_features(history: History, slots: Slots) -> dict[str, Tensor]:
    loss, accuracy = history.loss, history.accuracy
    loss_changes, accuracy_changes = history.losses.diff(dim=1), history.accuracies.diff(dim=1)

    def share(stage: Stage) -> Tensor:
        return (slots.stage == stage).float().mean(1)

    return {
        "loss_norm": torch.log1p(loss) / math.log(11),
        "loss_delta_norm": loss_changes[:, -1].clamp(-2, 2) / 2,
        "accuracy_norm": accuracy / 100,
        "accuracy_delta_norm": accuracy_changes[:, -1].clamp(-10, 10) / 10,
        "plateau_norm": history.plateau_epochs.clamp(max=20) / 20,
        "host_stabilized": history.stabilized.float(),
        "loss_trend": loss_changes.mean(1).clamp(-2, 2) / 2,
        "loss_volatility": torch.log1p(history.losses.std(1, correction=0)) / math.log(3),
        "accuracy_trend": accuracy_changes.mean(1).clamp(-10, 10) / 10,
        "accuracy_volatility": (history.accuracies.std(1, correction=0) / 30).clamp(max=1),
        "best_accuracy_norm": history.best_accuracy / 100,
        "best_loss_norm": torch.log1p(history.best_loss) / math.log(11),
        "slot_utilization": slots.has_module.float().mean(1),
        "num_training_norm": share(Stage.TRAINING),
        "num_blending_norm": share(Stage.BLENDING),
        "num_holding_norm": share(Stage.HOLDING),
    }


def _slot_features(slots: Slots) -> Tensor:
    """``[N, S, 29]``."""
    alpha = slots.alpha
    active = slots.stage != Stage.DORMANT
    norm = slots.gradient_norm.nan_to_num(nan=math.inf)
    vanishing = torch.log10(1e-3 / norm)
    decades_off = torch.maximum(vanishing, torch.log10(norm / 10)).clamp(min=0)
    healthy = (1 - decades_off / 3).clamp(0, 1)
    up_to_here = alpha.cumsum(1)
    features = {
        "is_active": active,
        "alpha": alpha,
        "alpha_target": slots.ramp_target,
        "alpha_mode_norm": slots.alpha_mode / max(AlphaMode),
        "alpha_velocity": slots.alpha_velocity.clamp(-1, 1),
        "time_to_target_norm": torch.where(
            slots.alpha_mode == AlphaMode.HOLD,
            0.0,
            (slots.ramp_epochs - slots.ramp_done) / max(ALPHA_SPEED_EPOCHS),
        ),
        "alpha_algorithm_norm": slots.algorithm / 2,
        "contribution_norm": slots.contribution.clamp(-10, 10) / 10,
        "contribution_velocity_norm": slots.contribution_change.clamp(-10, 10) / 10,
        "epochs_in_stage_norm": slots.clock.clamp(max=50) / 50,
        "gradient_norm_norm": norm.clamp(0, 10) / 10,
        "gradient_health": torch.where(norm.isfinite(), healthy, 0.0),
        "has_vanishing": norm < 1e-4,
        "has_exploding": norm > 10,
        # Interactions between seeds are not measured: both stay 0.
        "interaction_sum_norm": torch.zeros_like(alpha),
        "boost_received_norm": torch.zeros_like(alpha),
        "upstream_alpha_norm": (up_to_here - alpha).clamp(0, 3) / 3,
        "downstream_alpha_norm": (up_to_here[:, -1:] - up_to_here).clamp(0, 3) / 3,
        "counterfactual_fresh": torch.where(
            slots.contribution_age >= 0, FRESHNESS ** slots.contribution_age.float(), 0.0
        ),
    }
    stages = F.one_hot(slots.stage, len(Stage)).float()
    for i, stage in enumerate(Stage):
        features[f"stage_{stage.name.lower()}"] = stages[..., i]
    stacked = torch.stack([features[name].float() for name in SLOT_FEATURES], dim=2)
    kept = _KEPT_IN_COOL_DOWN.to(alpha.device)
    visible = slots.has_module.unsqueeze(2) | (active.unsqueeze(2) & kept)
    return torch.where(visible, stacked, 0.0)
