"""The contract of a policy's memory: a layer of the trunk that carries a state over steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.envs import TensorDictPrimer


class CarriedMemory(Protocol):
    """A memory as a TensorDict module: the batch holds its state, before and under ``next``.

    In recurrent mode (:class:`torchrl.modules.set_recurrent_mode`) the last batch dimension is
    time, and a sequence goes on from the state that is stored at its first step; else every step
    goes on from its own. Where ``is_init`` marks a step, an episode begins.
    """

    in_keys: list[NestedKey]
    out_keys: list[NestedKey]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Make the transform that adds the state to an environment's resets."""
        ...


class MemoryStep(nn.Module, ABC):
    """One step of a memory on plain tensors, for a policy that is served; shares its parameters.

    Attributes:
        states: tensors that its state consists of.
    """

    states: int

    @abstractmethod
    def initial_state(self, rows: int) -> list[Tensor]:
        """The state before an episode's first step, ``[rows, …]`` each."""

    @abstractmethod
    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Output ``[rows, size]`` after an input of that shape, then the state after it."""


class Memory(nn.Module, ABC):
    """A layer of the trunk that carries a state.

    A further kind is a file beside this one, its line in :data:`esper_rl.policy.memory.RECURRENT`,
    and its option in :class:`esper_rl.policy.ActorCriticConfig`.
    """

    @abstractmethod
    def initialise(self) -> None:
        """Draw the first weights anew, as the whole network is initialised."""

    @abstractmethod
    def from_the_beginning(self, x: Tensor) -> Tensor:
        """Output ``[N, T, size]`` of episodes that begin with the first step."""

    @abstractmethod
    def carried(self, name: str, in_key: str, out_key: str) -> TensorDictModuleBase:
        """Make a :class:`CarriedMemory` of the layer.

        Args:
            name: of the layer; names its state.
            in_key, out_key: what it reads and writes.
        """

    @abstractmethod
    def step_module(self) -> MemoryStep:
        """Make its step on plain tensors."""


class RecurrentStep(MemoryStep):
    """A step of a one-layer recurrent network, written out: PyTorch's own can't be compiled whole.

    Args:
        layer: whose parameters it shares.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.register_parameter(name, layer.get_parameter(f"{name}_l0"))

    def initial_state(self, rows: int) -> list[Tensor]:
        size = self.weight_hh.shape[1]
        return [self.weight_hh.new_zeros(rows, size) for _ in range(self.states)]


def remember_at_first(layer: nn.Module) -> None:
    """Orthogonal weights and no biases, but for an open gate by which a layer keeps its state.

    It is the second gate both of an LSTM (forget) and of a GRU (update).
    """
    for name, parameter in layer.named_parameters():
        if "weight" in name:
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
    # torch adds two biases; 1 in one of them makes the gate's 1 in effect.
    size = layer.get_parameter("weight_hh_l0").shape[1]
    with torch.no_grad():
        layer.get_parameter("bias_ih_l0")[size : 2 * size] = 1.0
