"""Modules of the network as TensorDict modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from esper_rl.policy.attention import RecentAttention


class TensorModule(TensorDictModuleBase):
    """A module from tensors to tensors; what :class:`~tensordict.nn.TensorDictModule` does for any.

    That one tries to convert every output from a data frame, for which it looks through the disk
    at each call where pandas isn't installed: a fifth of a policy's step.

    Args:
        module: called with the entries of ``in_keys``; gives one tensor.
        in_keys: what it reads; a missing one is a KeyError.
        out_key: what it writes.
    """

    def __init__(
        self, module: Callable[..., Tensor], in_keys: Sequence[NestedKey], out_key: NestedKey
    ) -> None:
        super().__init__()
        self.module = module
        self.in_keys, self.out_keys = list(in_keys), [out_key]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        out = self.module(*(tensordict[key] for key in self.in_keys))
        return tensordict.set(self.out_keys[0], out)


class AttentionModule(TensorDictModuleBase):
    """:class:`RecentAttention` of a key, its state carried beside it as an LSTM's is.

    Over a time dimension it starts from the state stored at the first step, and writes none.

    Args:
        attention: the layer.
        in_key: what it reads.
        out_key: what it writes.
    """

    def __init__(self, attention: RecentAttention, in_key: str, out_key: str) -> None:
        super().__init__()
        self.attention = attention
        self.state = ["attention_past", "attention_count"]
        self.in_keys = [in_key, *self.state, "is_init"]
        self.out_keys = [out_key, *(("next", name) for name in self.state)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        x, past, count, is_init = (tensordict.get(key) for key in self.in_keys)
        if recurrent_mode():
            out = self.attention.over_time(x, past[:, 0], count[:, 0], is_init)
            return tensordict.set(self.out_keys[0], out)
        for key, value in zip(
            self.out_keys, self.attention.step(x, past, count, is_init), strict=True
        ):
            tensordict.set(key, value)
        return tensordict

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the state to an environment's resets."""
        past, count = self.state
        shape = (self.attention.span, self.attention.size)
        return TensorDictPrimer(
            {past: Unbounded(shape), count: Unbounded((1,), dtype=torch.int64)}, expand_specs=True
        )
