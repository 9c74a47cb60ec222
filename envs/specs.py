"""All that the environment takes and shows: names, shapes, dtypes and ranges; and the values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded

from envs.actions import Op, Stage
from envs.metrics import compute_metrics
from envs.observation import HIGH, LOW, feature_names
from envs.populations.left_out import ALL_SUBSETS
from envs.state import State


def show(state: State, observation: Tensor, action_mask: dict[str, Tensor]) -> dict[str, Any]:
    """All that a reset or a step shows, but for the reward; for its specs see :class:`SpecMaker`.

    Args:
        state: of all rows.
        observation: the features.
        action_mask: legal choices of every head.
    """
    return {
        "observation": observation,
        "blueprint_indices": state.slots.blueprint,
        "last_action_success": state.success[:, None],
        "last_action_op": state.chosen_op,
        "action_mask": action_mask,
        "metrics": compute_metrics(state),
        "reward_terms": {name: term[:, None] for name, term in state.terms.items()},
        "done": state.done[:, None],
        "terminated": state.terminated[:, None],
        "truncated": state.truncated[:, None],
    }


class SpecMaker:
    """Makes specs for N rows.

    Args:
        num_rows: N.
        num_slots: S.
        head_sizes: number of choices of every head of the action.
        device: of all specs.
    """

    def __init__(
        self, num_rows: int, num_slots: int, head_sizes: Mapping[str, int], device: torch.device
    ) -> None:
        self.rows, self.slots, self.sizes, self.device = num_rows, num_slots, head_sizes, device

    def observation(self, max_epochs: int, reward_terms: Iterable[str]) -> Composite:
        """All that a reset shows, but for the ends."""
        real, flag, whole = self._real, self._flag, self._whole
        features = (self.rows, len(feature_names(self.slots)))
        masks = {
            head: flag(len(Op), self.slots) if head == "slot" else flag(size)
            for head, size in self.sizes.items()
        }
        metrics = {
            "epoch": whole(0, max_epochs, 1),
            "val_accuracy": real(1),
            "val_loss": real(1),
            "rollback": flag(1),
            "seed_params": real(1),
            "host_gradient_norm": real(1),
            "executed_op": self._choice(len(Op)),
            "stage": whole(0, len(Stage) - 1, self.slots),
            "alpha": real(self.slots),
            "contribution": real(self.slots),
            "interaction": real(self.slots, self.slots),
            **({"shapley": real(self.slots)} if self.slots <= ALL_SUBSETS else {}),
            "pending_hindsight_credit": real(self.slots),
            "hindsight_delay": whole(0, max_epochs, self.slots),
            "gradient_norm": real(self.slots),
        }
        return self._composite(
            observation=Bounded(LOW, HIGH, features, dtype=torch.float32, device=self.device),
            blueprint_indices=whole(-1, self.sizes["blueprint"] - 1, self.slots),
            last_action_success=flag(1),
            last_action_op=self._choice(len(Op)),
            action_mask=self._composite(**masks),
            metrics=self._composite(**metrics),
            reward_terms=self._composite(**{term: real(1) for term in reward_terms}),
        )

    def action(self) -> Composite:
        """An index for each head."""
        heads = {head: self._choice(size) for head, size in self.sizes.items()}
        return self._composite(action=self._composite(**heads))

    def reward(self) -> Unbounded:
        """The sum of the terms."""
        return self._real(1)

    def done(self) -> Composite:
        """The ends of an episode."""
        return self._composite(
            done=self._flag(1), terminated=self._flag(1), truncated=self._flag(1)
        )

    def _real(self, *shape: int) -> Unbounded:
        return Unbounded((self.rows, *shape), dtype=torch.float32, device=self.device)

    def _flag(self, *shape: int) -> Binary:
        return Binary(shape=(self.rows, *shape), dtype=torch.bool, device=self.device)

    def _whole(self, low: int, high: int, *shape: int) -> Bounded:
        return Bounded(low, high, (self.rows, *shape), dtype=torch.int64, device=self.device)

    def _choice(self, size: int) -> Categorical:
        return Categorical(size, (self.rows,), dtype=torch.int64, device=self.device)

    def _composite(self, **specs: object) -> Composite:
        return Composite(**specs, shape=(self.rows,), device=self.device)
