"""Gated recurrent unit (Cho et al. 2014): one state where an LSTM has two, three gates of four."""

from __future__ import annotations

import torch.nn.functional as F
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import GRUModule
from torchrl.modules.tensordict_module.rnn import GRU

from esper_rl.policy.memory.base import Memory, MemoryStep, RecurrentStep, remember_at_first


class _GRUMemory(Memory):
    def initialise(self) -> None:
        remember_at_first(self)

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


class GRUStep(RecurrentStep):
    """One step of a GRU."""

    states = 1

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
