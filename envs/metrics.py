"""Metrics: what loggers and plots read of a row, in its own units."""

from __future__ import annotations

from torch import Tensor

from envs.populations.left_out import ALL_SUBSETS
from envs.state import State

LARGEST_NORM = 1e6
"""The largest gradient norm that is shown, also in place of one that isn't finite."""


def compute_metrics(state: State) -> dict[str, Tensor]:
    """Compute the metrics by name.

    Each is ``[N, 1]``, ``[N, S]``, ``[N, S, S]`` for pairs of slots or ``[N]`` for choices.
    All are finite, so that a mean over rows survives one whose gradients aren't.
    """
    slots, history = state.slots, state.history
    return {
        "epoch": state.epoch[:, None],
        "val_accuracy": history.accuracy[:, None],
        "val_loss": history.loss[:, None],
        "rollback": state.rolled_back[:, None],
        "seed_params": state.seed_params.sum(1, keepdim=True),
        "host_gradient_norm": _finite(state.host_gradient_norm)[:, None],
        "executed_op": state.executed_op,
        "stage": slots.stage,
        "alpha": slots.alpha,
        "contribution": slots.contribution,
        "interaction": slots.interaction,
        **({"shapley": slots.shapley} if slots.num_slots <= ALL_SUBSETS else {}),
        "pending_hindsight_credit": state.pending_hindsight_credit,
        "hindsight_delay": state.hindsight_delay,
        "gradient_norm": _finite(slots.gradient_norm),
    }


def _finite(norm: Tensor) -> Tensor:
    return norm.nan_to_num(nan=LARGEST_NORM).clamp(max=LARGEST_NORM)
