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
from torchrl.modules import recurrent_mode, set_recurrent_mode

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


def as_set(tensordict: TensorDictBase) -> set_recurrent_mode:
    """The recurrent mode that the caller has set; without one, over time where time there is.

    Args:
        tensordict: steps; more than one batch dimension means that the last one is time.
    """
    mode = recurrent_mode()
    return set_recurrent_mode(tensordict.ndim > 1 if mode is None else mode)


class AttentionModule(TensorDictModuleBase):
    """:class:`RecentAttention` of a key, its state carried beside it as an LSTM's is.

    In recurrent mode the last batch dimension is time. As with an LSTM, a sequence goes on from the
    state stored at its first step, and begins anew, from the state stored there, at each further
    step that ``is_init`` marks; no state is written. Else every step goes on from its own state, or
    from none where ``is_init`` marks it.

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
        shape = x.shape[:-1]
        x, count, is_init = (each.reshape(-1, each.shape[-1]) for each in (x, count, is_init))
        past = past.reshape(-1, *past.shape[-2:])
        if recurrent_mode():
            out = self._over_time(x, past, count, is_init.squeeze(-1), steps=shape[-1])
            return tensordict.set(self.out_keys[0], out.reshape(*shape, -1))
        for key, value in zip(
            self.out_keys, self.attention.step(x, past, count, is_init), strict=True
        ):
            tensordict.set(key, value.reshape(*shape, *value.shape[1:]))
        return tensordict

    def _over_time(
        self, x: Tensor, past: Tensor, count: Tensor, is_init: Tensor, steps: int
    ) -> Tensor:
        """Outputs of sequences of so many steps, all of them one after the other."""
        place = torch.arange(len(x), device=x.device)
        begins = is_init | (place % steps == 0)
        first = begins.nonzero().squeeze(1)
        piece = begins.cumsum(0) - 1
        place = place - first[piece]
        padded = x.new_zeros(len(first), int(place.max()) + 1, x.shape[-1])
        padded[piece, place] = x
        return self.attention.over_time(padded, past[first], count[first])[piece, place]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that adds the state to an environment's resets."""
        past, count = self.state
        shape = (self.attention.span, self.attention.size)
        return TensorDictPrimer(
            {past: Unbounded(shape), count: Unbounded((1,), dtype=torch.int64)}, expand_specs=True
        )
