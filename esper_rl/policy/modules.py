"""Modules of the network as TensorDict modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.modules import recurrent_mode, set_recurrent_mode


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
