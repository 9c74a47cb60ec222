"""Checks of a batch, with messages that name the entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import ValueEstimators

_REFUSED = {
    "functional": "the loss runs actor and critic as they are, so that both share one trunk pass",
    "delay_actor": "it needs functionalised modules",
    "separate_losses": "value gradients may reach the shared trunk",
    "samples_mc_entropy": "entropies are exact",
    "clip_value": "the value isn't clipped",
    "max_importance_ratio": "the ratio is that of the stored policy",
}
_PASSED_ON = {
    "entropy_bonus",
    "log_explained_variance",
    "normalize_advantage",
    "normalize_advantage_exclude_dims",
    "advantage_norm",
    "reduction",
    "device",
}


def require_options(options: dict[str, Any]) -> None:
    """Refuse options of the loss that the parent would drop without a word, or that can't work.

    Args:
        options: by name; those that can't work and are off are taken out.

    Raises:
        NotImplementedError: for one of the parent's that can't work here.
        TypeError: for an unknown one.
    """
    for option, reason in _REFUSED.items():
        if options.pop(option, None):
            raise NotImplementedError(f"option {option!r} must be left out: {reason}")
    unknown = sorted(set(options) - _PASSED_ON)
    if unknown:
        raise TypeError(
            f"options must be of FactoredClipPPOLoss or {sorted(_PASSED_ON)}, got {unknown}"
        )


def require_entries(tensordict: TensorDictBase, keys: Iterable[NestedKey]) -> None:
    """Refuse a batch that lacks an entry.

    Raises:
        KeyError: if it does.
    """
    present = tensordict.keys(True)
    for key in keys:
        if key not in present:
            raise KeyError(f"the batch lacks the entry {key!r}, which the loss needs")


def require_column(key: NestedKey, values: Tensor, tensordict: TensorDictBase) -> None:
    """Refuse an entry that isn't one number a step, ``[..., 1]``.

    Raises:
        ValueError: if it isn't.
    """
    wanted = [*tensordict.shape, 1]
    if list(values.shape) != wanted:
        raise ValueError(f"{key!r} must be of shape {wanted}, got {list(values.shape)}")


def require_finite(key: NestedKey, values: Tensor, valid: Tensor) -> None:
    """Refuse an entry ``[..., 1]`` with a step that counts and isn't finite.

    Raises:
        ValueError: if there is one.
    """
    bad = ~values.detach().squeeze(-1).isfinite() & valid
    if bad.any():
        step = bad.nonzero()[0].tolist()
        raise ValueError(f"{key!r} must be finite, got nan or infinity at {step}")


def require_legal(log_prob: Tensor, valid: Tensor, actions: Sequence[NestedKey]) -> None:
    """Refuse stored actions that their masks forbid, of log-probability −∞.

    Args:
        log_prob: ``[..., heads]``.
        valid: bool ``[...]``, steps that count.
        actions: key of each head's action.

    Raises:
        ValueError: if there is one.
    """
    forbidden = (log_prob.detach() == -torch.inf) & valid.unsqueeze(-1)
    if forbidden.any():
        *step, head = forbidden.nonzero()[0].tolist()
        raise ValueError(
            f"{actions[head]!r} must be legal under its mask, got a forbidden one at {step}"
        )


def require_valid(valid: Tensor) -> None:
    """Refuse a batch without a step that counts.

    Raises:
        ValueError: if there is none.
    """
    if not valid.any():
        raise ValueError("the batch must have at least one step that isn't padding, got none")


def require_estimable(
    value_type: object, critic: TensorDictModuleBase | None, actions: Sequence[NestedKey]
) -> None:
    """Refuse what torchrl's estimators would get wrong.

    They evaluate the critic on every ``next`` entry: there the action isn't known, and a recurrent
    state goes on across the ends of episodes. V-trace evaluates the actor, too, and hides the
    stored actions from it, although the masks of most heads depend on the first one's.

    Raises:
        NotImplementedError: for a critic that reads an action or ``is_init``; for V-trace with
            several heads.
    """
    if value_type is ValueEstimators.VTrace and len(actions) > 1:
        raise NotImplementedError(
            f"value_type must be one that leaves an actor of {len(actions)} heads alone, got "
            "ValueEstimators.VTrace: use ValueEstimators.GAE, or compute advantages first, with "
            "esper_rl.objectives.compute_advantages"
        )
    read = {"is_init", *actions} & set(() if critic is None else critic.in_keys)
    if read:
        raise NotImplementedError(
            "make_value_estimator must have a critic that reads neither the action nor a recurrent "
            f"state, got one that reads {sorted(map(str, read))}: compute advantages first, with "
            "esper_rl.objectives.compute_advantages"
        )
