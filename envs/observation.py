"""The observation: features of the row and of every slot, each a name and a formula.

:data:`ROW_FEATURES` and :data:`SLOT_FEATURES` are the one place where a feature is written: names,
width, columns and specs follow from them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from envs.actions import ALPHA_SPEED_EPOCHS, Algorithm, AlphaMode, Op, Stage
from envs.batched.workers import one_thread
from envs.checks import check_integer
from envs.populations.left_out import MOST_SLOTS
from envs.state import History, Slots, State

FRESHNESS = 0.8
"""Worth of a counterfactual that is one epoch old, as a share of a new one's: half after three."""

LOW, HIGH = -1.0, 1.5
"""Range of every feature."""


@dataclass
class View:
    """Input of the formulas.

    Attributes:
        state: of all rows.
        max_epochs: steps of an episode.
        parameter_budget: seed parameters at which ``params_utilization`` is 1.
    """

    state: State
    max_epochs: int
    parameter_budget: int

    @property
    def history(self) -> History:
        return self.state.history

    @property
    def slots(self) -> Slots:
        return self.state.slots

    @cached_property
    def loss_changes(self) -> Tensor:
        """Of the latest epochs, newest last: ``[N, 4]``."""
        return self.history.losses.diff(dim=1)

    @cached_property
    def accuracy_changes(self) -> Tensor:
        """Of the latest epochs, newest last: ``[N, 4]``."""
        return self.history.accuracies.diff(dim=1)

    @cached_property
    def gradient_norm(self) -> Tensor:
        """Of the seeds, infinite where it is nan: ``[N, S]``."""
        return self.slots.gradient_norm.nan_to_num(nan=math.inf)

    @cached_property
    def alpha_up_to_here(self) -> Tensor:
        """Σ α of a slot and all before it: ``[N, S]``."""
        return self.slots.alpha.cumsum(1)

    def share(self, where: Tensor) -> Tensor:
        """Of the slots: bool ``[N, S]`` to float32 ``[N]``."""
        return where.float().mean(1)


Formula = Callable[[View], Tensor]


def _chosen(op: Op) -> Formula:
    return lambda v: v.state.chosen_op == op


def _in_stage(stage: Stage) -> Formula:
    return lambda v: v.slots.stage == stage


def _spread(values: Tensor) -> Tensor:
    """Standard deviation over time: ``[N, T]`` to ``[N]``.

    Summed column by column: PyTorch's own rounds a row otherwise when there are more of them.
    """
    columns, zero = values.unbind(1), torch.zeros_like(values[:, 0])
    mean = sum(columns, zero) / len(columns)
    return (sum(((column - mean) ** 2 for column in columns), zero) / len(columns)).sqrt()


def _time_to_target(v: View) -> Tensor:
    left = (v.slots.ramp_epochs - v.slots.ramp_done) / max(ALPHA_SPEED_EPOCHS)
    return torch.where(v.slots.alpha_mode == AlphaMode.HOLD, 0.0, left)


def _gradient_health(v: View) -> Tensor:
    """1 within [1e-3, 10], and 0 from three decades off; 0 when not finite."""
    norm = v.gradient_norm
    decades_off = torch.maximum(torch.log10(1e-3 / norm), torch.log10(norm / 10)).clamp(min=0)
    return torch.where(norm.isfinite(), (1 - decades_off / 3).clamp(0, 1), 0.0)


def _counterfactual_fresh(v: View) -> Tensor:
    age = v.slots.contribution_age
    return torch.where(age >= 0, FRESHNESS ** age.float(), 0.0)


ROW_FEATURES: dict[str, Formula] = {
    "epoch_progress": lambda v: v.state.epoch / v.max_epochs,
    "loss_norm": lambda v: torch.log1p(v.history.loss) / math.log(11),
    "loss_delta_norm": lambda v: v.loss_changes[:, -1].clamp(-2, 2) / 2,
    "accuracy_norm": lambda v: v.history.accuracy / 100,
    "accuracy_delta_norm": lambda v: v.accuracy_changes[:, -1].clamp(-10, 10) / 10,
    "plateau_norm": lambda v: v.history.plateau_epochs.clamp(max=20) / 20,
    "host_stabilized": lambda v: v.history.stabilized,
    "loss_trend": lambda v: v.loss_changes.mean(1).clamp(-2, 2) / 2,
    "loss_volatility": lambda v: torch.log1p(_spread(v.history.losses)) / math.log(3),
    "accuracy_trend": lambda v: v.accuracy_changes.mean(1).clamp(-10, 10) / 10,
    "accuracy_volatility": lambda v: (_spread(v.history.accuracies) / 30).clamp(max=1),
    "best_accuracy_norm": lambda v: v.history.best_accuracy / 100,
    "best_loss_norm": lambda v: torch.log1p(v.history.best_loss) / math.log(11),
    "params_utilization": lambda v: (
        torch.log1p(v.state.seed_params.sum(1)) / math.log1p(v.parameter_budget)
    ).clamp(max=1.0),
    "slot_utilization": lambda v: v.share(v.slots.has_module),
    "num_training_norm": lambda v: v.share(v.slots.stage == Stage.TRAINING),
    "num_blending_norm": lambda v: v.share(v.slots.stage == Stage.BLENDING),
    "num_holding_norm": lambda v: v.share(v.slots.stage == Stage.HOLDING),
    "last_action_success": lambda v: v.state.success,
    **{f"last_action_op_{op.name.lower()}": _chosen(op) for op in Op},
}
"""Features of the row, in index order: name and formula, ``[N]``."""

SLOT_FEATURES: dict[str, Formula] = {
    "is_active": lambda v: v.slots.stage != Stage.DORMANT,
    **{f"stage_{stage.name.lower()}": _in_stage(stage) for stage in Stage},
    "alpha": lambda v: v.slots.alpha,
    "alpha_target": lambda v: v.slots.ramp_target,
    "alpha_mode_norm": lambda v: v.slots.alpha_mode / max(AlphaMode),
    "alpha_velocity": lambda v: v.slots.alpha_velocity.clamp(-1, 1),
    "time_to_target_norm": _time_to_target,
    "alpha_algorithm_norm": lambda v: v.slots.algorithm / max(Algorithm),
    "contribution_norm": lambda v: v.slots.contribution.clamp(-10, 10) / 10,
    "contribution_velocity_norm": lambda v: v.slots.contribution_change.clamp(-10, 10) / 10,
    "epochs_in_stage_norm": lambda v: v.slots.clock.clamp(max=50) / 50,
    "gradient_norm_norm": lambda v: v.gradient_norm.clamp(0, 10) / 10,
    "gradient_health": _gradient_health,
    "has_vanishing": lambda v: v.gradient_norm < 1e-4,
    "has_exploding": lambda v: v.gradient_norm > 10,
    "interaction_sum_norm": lambda v: v.slots.interaction.sum(2).clamp(0, 10) / 10,
    "boost_received_norm": lambda v: v.slots.interaction.amax(2).clamp(0, 5) / 5,
    "upstream_alpha_norm": lambda v: (v.alpha_up_to_here - v.slots.alpha).clamp(0, 3) / 3,
    "downstream_alpha_norm": lambda v: (
        (v.alpha_up_to_here[:, -1:] - v.alpha_up_to_here).clamp(0, 3) / 3
    ),
    "counterfactual_fresh": _counterfactual_fresh,
}
"""Features of a slot, in index order: name and formula, ``[N, S]``."""

ACTION_FEEDBACK: tuple[str, ...] = tuple(n for n in ROW_FEATURES if n.startswith("last_action_"))
"""Names of the features that tell what became of the last action."""

_SHOWN_WITHOUT_MODULE = torch.tensor(
    [n in ("is_active", "epochs_in_stage_norm") or n.startswith("stage_") for n in SLOT_FEATURES]
)


def feature_names(num_slots: int = 3) -> tuple[str, ...]:
    """Names of all features in index order.

    Raises:
        ValueError: for more slots than an environment may have.

    Examples:
        >>> names = feature_names(3)
        >>> len(names), names[18], names[25 + 29 + 11]
        (112, 'last_action_success', 'slot1_alpha')
    """
    check_integer("num_slots", num_slots, most=MOST_SLOTS)
    slots = (f"slot{slot}_{name}" for slot in range(num_slots) for name in SLOT_FEATURES)
    return (*ROW_FEATURES, *slots)


def feature_columns(*names: str, num_slots: int = 3) -> list[int]:
    """Columns of the observation that show these features.

    Args:
        *names: of :func:`feature_names`.
        num_slots: S; those of the row have the same columns whatever it is.

    Raises:
        ValueError: for an unknown name.

    Examples:
        >>> feature_columns("epoch_progress", "slot1_alpha")
        [0, 65]
    """
    known = feature_names(num_slots)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"names must be of feature_names({num_slots}), got {name!r}"
                + (f", near {near[0]!r}" if near else "")
            )
    return [known.index(name) for name in names]


@one_thread
def compute_observation(state: State, *, max_epochs: int, parameter_budget: int) -> Tensor:
    """Compute the observation: float32 ``[N, row features + S · slot features]`` in [−1, 1.5].

    A dormant slot shows zeros; one in cool-down shows only that it is active, stage and clock.

    Args:
        state: of all rows.
        max_epochs, parameter_budget: see :class:`View`.
    """
    view = View(state, max_epochs, parameter_budget)
    row = torch.stack([formula(view).float() for formula in ROW_FEATURES.values()], dim=1)
    slots = torch.stack([formula(view).float() for formula in SLOT_FEATURES.values()], dim=2)
    active = (view.slots.stage != Stage.DORMANT)[:, :, None]
    shown = view.slots.has_module[:, :, None] | (active & _SHOWN_WITHOUT_MODULE.to(active.device))
    slots = torch.where(shown, slots, 0.0)
    return torch.cat([row, slots.flatten(1)], dim=1).clamp(LOW, HIGH)
