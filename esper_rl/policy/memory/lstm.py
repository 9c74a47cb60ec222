"""Long short-term memory (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

import torch.nn.functional as F
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import LSTMModule
from torchrl.modules.tensordict_module.rnn import LSTM

from esper_rl.policy.memory.base import Memory, MemoryStep, RecurrentStep, remember_at_first


class _LSTMMemory(Memory):
    def initialise(self) -> None:
        remember_at_first(self)

    def from_the_beginning(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, len(x), x.shape[-1])
        return self(x, (start, start))[0]

    def carried(self, name: str, in_key: str, out_key: str) -> TensorDictModuleBase:
        states = [name.replace("lstm", f"recurrent_state_{part}") for part in "hc"]
        following = [("next", state) for state in states]
        return LSTMModule(lstm=self, in_keys=[in_key, *states], out_keys=[out_key, *following])

    def step_module(self) -> MemoryStep:
        return LSTMStep(self)


class PlainLSTM(_LSTMMemory, nn.LSTM):
    """PyTorch's own, whose kernels are fast without compilation."""


class CompilableLSTM(_LSTMMemory, LSTM):
    """TorchRL's, written in Python: ``torch.compile(fullgraph=True)`` takes it."""


class LSTMStep(RecurrentStep):
    """One step of an LSTM."""

    states = 2

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        h, c = state
        gates = F.linear(x, self.weight_ih, self.bias_ih)
        gates = gates + F.linear(h, self.weight_hh, self.bias_hh)
        enter, forget, new, leave = gates.chunk(4, -1)
        c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
        h = leave.sigmoid() * c.tanh()
        return h, h, c


def make_lstm(size: int, *, compilable: bool) -> Memory:
    """A layer that is as wide as its input."""
    kind = CompilableLSTM if compilable else PlainLSTM
    return kind(size, size, batch_first=True)
