"""Gated recurrent unit (Cho et al. 2014): one state where an LSTM has two, three gates of four."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import GRUModule
from torchrl.modules.tensordict_module.rnn import GRU

from esper_rl.policy.memory.base import Memory, MemoryStep, orthogonal


class _GRUMemory(Memory):
    def initialise(self) -> None:
        orthogonal(self)
        # An update gate that is more open than closed keeps the state at first.
        bias = self.get_parameter("bias_ih_l0")
        update = slice(len(bias) // 3, 2 * len(bias) // 3)
        with torch.no_grad():
            bias[update] = 1.0

    def from_the_beginning(self, x: Tensor) -> Tensor:
        return self(x, x.new_zeros(1, len(x), x.shape[-1]))[0]

    def carried(self, name: str, in_key: str, out_key: str) -> TensorDictModuleBase:
        state = f"{name}_state"
        return GRUModule(gru=self, in_keys=[in_key, state], out_keys=[out_key, ("next", state)])

    def step_module(self) -> MemoryStep:
        return GRUStep(self)


class PlainGRU(_GRUMemory, nn.GRU):
    """PyTorch's own, whose kernels are fast without compilation."""


class CompilableGRU(_GRUMemory, GRU):
    """TorchRL's, written in Python: ``torch.compile(fullgraph=True)`` takes it."""


class GRUStep(MemoryStep):
    """One step of a one-layer GRU, written out.

    Args:
        gru: whose parameters it shares.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def __init__(self, gru: nn.Module) -> None:
        super().__init__()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.register_parameter(name, gru.get_parameter(f"{name}_l0"))

    def initial_state(self, rows: int) -> list[Tensor]:
        return [self.weight_hh.new_zeros(rows, self.weight_hh.shape[1])]

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        (h,) = state
        reset, update, new = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        reset_h, update_h, new_h = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, -1)
        keep = (update + update_h).sigmoid()
        proposed = (new + (reset + reset_h).sigmoid() * new_h).tanh()
        h = (1 - keep) * proposed + keep * h
        return h, h


def make_gru(size: int, *, compilable: bool) -> Memory:
    """A layer that is as wide as its input."""
    kind = CompilableGRU if compilable else PlainGRU
    return kind(size, size, batch_first=True)
