"""Optimizers that step the parameters of many networks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from envs.errors import check_number


class Optimizer(Protocol):
    """A rule that works elementwise, so networks never mix."""

    @property
    def num_buffers(self) -> int:
        """Numbers that it remembers of each parameter; all are 0 at the start."""
        ...

    def step(
        self, params: Tensor, buffers: Sequence[Tensor], gradient: Tensor, rate: Tensor
    ) -> None:
        """Change ``params`` and ``buffers`` in place; all tensors are vectors of one length.

        Args:
            params: the parameters.
            buffers: what is remembered of them, ``num_buffers`` vectors.
            gradient: of the loss.
            rate: learning rate of each parameter.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum, as :class:`torch.optim.SGD` computes it.

    Args:
        momentum: in [0, 1).

    Raises:
        ValueError: if the momentum is out of range.
    """

    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, least=0, below=1)

    @property
    def num_buffers(self) -> int:
        return 1

    def step(
        self, params: Tensor, buffers: Sequence[Tensor], gradient: Tensor, rate: Tensor
    ) -> None:
        (velocity,) = buffers
        velocity.mul_(self.momentum).add_(gradient)
        params.addcmul_(velocity, rate, value=-1)
