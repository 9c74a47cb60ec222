"""What the environment asks of the networks in its care, whatever they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class Growth:
    """What the slots of all rows do in an epoch.

    Attributes:
        stage, blueprint, algorithm: int64 ``[N, S]``.
        alpha: float32 ``[N, S]``.
        seed_lr: float32 ``[N, S]``, learning rate of each slot's seed.
    """

    stage: Tensor
    blueprint: Tensor
    algorithm: Tensor
    alpha: Tensor
    seed_lr: Tensor


@dataclass
class Validation:
    """Result of a validation pass over n rows.

    Attributes:
        loss: mean cross-entropy in nats, float32 ``[n]``; may be non-finite.
        accuracy: percent, ``[n]``.
        accuracy_without: percent with a slot's α forced to 0, ``[n, S]``; where the slot's α is
            0 anyway, the same as ``accuracy``.
        ablated: bool ``[n, S]``: was ``accuracy_without`` measured?
    """

    loss: Tensor
    accuracy: Tensor
    accuracy_without: Tensor
    ablated: Tensor


class GrowingHosts(Protocol):
    """N hosts with S slots each: trained networks, or formulas that behave like them.

    Attributes:
        host_size: parameters of a host without seeds.
        offered: bool ``[13]``, the blueprints that can be planted.
        batches_per_epoch, minibatch_size, validation_size: None where there is no data.
    """

    host_size: int
    offered: Tensor

    @property
    def batches_per_epoch(self) -> int | None: ...

    @property
    def minibatch_size(self) -> int | None: ...

    @property
    def validation_size(self) -> int | None: ...

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        """Fresh hosts, without seeds, in ``rows [n]`` from int64 ``keys [n]``."""
        ...

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        """Fresh seeds in the slots ``where [N, S]``, of ``blueprint`` and from int64 ``keys``."""
        ...

    def reset_gates(self, where: Tensor) -> None:
        """Fresh gates (½ everywhere) for the seeds in the slots ``where [N, S]``."""
        ...

    def train_epoch(self, growth: Growth, keys: Tensor) -> tuple[Tensor, Tensor]:
        """One epoch of every row, random only by int64 ``keys [N]``.

        Returns:
            Gradient norms, means over the epoch: of the hosts ``[N]`` and of the seeds
            ``[N, S]`` (0 where no seed trained).
        """
        ...

    def validate(self, growth: Growth, rows: Tensor, *, ablate: bool) -> Validation:
        """Loss and accuracy of ``rows [n]``, and accuracy with each seed left out.

        Args:
            growth: what the slots do.
            rows: int64 ``[n]``, without repetition.
            ablate: measure ``accuracy_without``.
        """
        ...

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        """Parameters of the seed in every slot, its gate included: float32 ``[N, S]``.

        Args:
            blueprint: int64 ``[N, S]``, −1 for none.
            algorithm: int64 ``[N, S]``.
        """
        ...
