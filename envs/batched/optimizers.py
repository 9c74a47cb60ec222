"""Optimizers that step the parameters of many networks at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

from torch import Tensor

from envs.checks import check_number
from envs.typed import check_types


class Rule(IntEnum):
    """Optimizers that :mod:`envs.batched.steps` has in compiled form."""

    SGD = 0
    ADAMW = 1


@runtime_checkable
class Optimizer(Protocol):
    """A rule that works elementwise, so networks never mix."""

    @property
    def num_buffers(self) -> int:
        """Numbers that it remembers of each parameter; all are 0 at the start."""
        ...

    def step(
        self, params: Tensor, buffers: Sequence[Tensor], gradient: Tensor, rate: Tensor
    ) -> None:
        """Change ``params`` and ``buffers`` in place; all tensors are of one shape.

        Args:
            params: the parameters.
            buffers: what is remembered of them, ``num_buffers`` tensors.
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
    rule = Rule.SGD

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its arguments, for the compiled form."""
        return (self.momentum,)

    def __post_init__(self) -> None:
        check_types(self)
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


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as :class:`torch.optim.AdamW`.

    Every parameter counts its own steps, since seeds are planted at different times.

    Args:
        beta1, beta2: decay of the means of gradients and of their squares, in [0, 1).
        epsilon: added to the root of the latter.
        weight_decay: share of a parameter that goes in a step, times the learning rate.

    Raises:
        ValueError: if a number is out of range.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    rule = Rule.ADAMW

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its arguments, for the compiled form."""
        return self.beta1, self.beta2, self.epsilon, self.weight_decay

    def __post_init__(self) -> None:
        check_types(self)
        check_number("beta1", self.beta1, least=0, below=1)
        check_number("beta2", self.beta2, least=0, below=1)
        check_number("epsilon", self.epsilon, above=0)
        check_number("weight_decay", self.weight_decay, least=0)

    @property
    def num_buffers(self) -> int:
        return 3

    def step(
        self, params: Tensor, buffers: Sequence[Tensor], gradient: Tensor, rate: Tensor
    ) -> None:
        mean, square, steps = buffers
        steps.add_(1)
        mean.lerp_(gradient, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        root = (square / (1 - self.beta2**steps)).sqrt_().add_(self.epsilon)
        params.mul_(1 - rate * self.weight_decay)
        params.sub_(rate * mean / (1 - self.beta1**steps) / root)
