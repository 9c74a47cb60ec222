"""Long short-term memory (Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import LSTMModule
from torchrl.modules.tensordict_module.rnn import LSTM

from esper_rl.policy.memory.base import Memory, MemoryStep, orthogonal


class _LSTMMemory(Memory):
    def initialise(self) -> None:
        orthogonal(self)
        # torch adds two biases; 1 in one of them makes the forget gate's 1 in effect.
        bias = self.get_parameter("bias_ih_l0")
        forget = slice(len(bias) // 4, len(bias) // 2)
        with torch.no_grad():
            bias[forget] = 1.0

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


class LSTMStep(MemoryStep):
    """One step of a one-layer LSTM, written out: PyTorch's own can't be compiled whole.

    Args:
        lstm: whose parameters it shares.
    """

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.register_parameter(name, lstm.get_parameter(f"{name}_l0"))

    def initial_state(self, rows: int) -> list[Tensor]:
        hidden = self.weight_hh.new_zeros(rows, self.weight_hh.shape[1])
        return [hidden, hidden.clone()]

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
