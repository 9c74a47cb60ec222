"""Populations whose networks are tensors with a row for each: keeping them, and going back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from envs.batched.workers import one_thread
from envs.batched_state import cloned, like


class TensorRows:
    """Base of populations that say what their ``weights`` and ``optimizer_state`` are.

    Attributes:
        saved: the weights of each row as they were when it was saved, or at first.
    """

    saved: list[Tensor]

    @property
    def weights(self) -> Sequence[Tensor]:
        """All that the networks have learned: tensors with a row for each, ``[N, …]``.

        They are the population's own: writing into a row changes that network.
        """
        raise NotImplementedError

    @property
    def optimizer_state(self) -> Sequence[Tensor]:
        """The optimizer's memory, in the same way; 0 before the first step."""
        raise NotImplementedError

    @one_thread
    def keep_first(self) -> None:
        """Save all rows for the first time."""
        self.saved = [weights.clone() for weights in self.weights]

    def finite(self) -> Tensor:
        sums = [weights.reshape(len(weights), -1).sum(1) for weights in self.weights]
        return torch.stack([each.isfinite() for each in sums]).all(0)

    def save(self, rows: Tensor) -> None:
        for weights, saved in zip(self.weights, self.saved, strict=True):
            if len(rows) == len(saved):
                saved.copy_(weights)
            else:
                saved[rows] = weights[rows]

    def restore(self, rows: Tensor) -> None:
        for weights, saved in zip(self.weights, self.saved, strict=True):
            weights[rows] = saved[rows]
        for buffer in self.optimizer_state:
            buffer[rows] = 0

    def state_dict(self) -> dict[str, Any]:
        return cloned(self._tensors())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        mine = self._tensors()
        theirs = like("networks", mine, state)
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])

    def _tensors(self) -> dict[str, Tensor]:
        kinds = {
            "weights": self.weights,
            "optimizer_state": self.optimizer_state,
            "saved": self.saved,
        }
        return {f"{kind}.{i}": x for kind, tensors in kinds.items() for i, x in enumerate(tensors)}
