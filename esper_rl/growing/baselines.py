"""Policies to compare with: they need no training and read masks and the epoch.

Each is a TensorDict module, so it takes a learned policy's place in a rollout, a collector or
:func:`esper_rl.evaluation.evaluate`.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from envs.actions import ALPHA_TARGETS, BLUEPRINTS, HEADS, TEMPO_EPOCHS, Op, Style
from envs.observation import feature_columns
from esper_rl.errors import check_choice, check_integer
from esper_rl.policy.masks import select_row

(_EPOCH,) = feature_columns("epoch_progress")
_MASK_KEYS = tuple(("action_mask", head) for head in HEADS)
_ACTION_KEYS = tuple(("action", head) for head in HEADS)


class WaitPolicy(TensorDictModuleBase):
    """Never touches the host.

    Reads ``("action_mask", "op")``, writes ``("action", head)``, int64 ``[N]``, for every head.
    """

    in_keys = (("action_mask", "op"),)
    out_keys = _ACTION_KEYS

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return _write_action(tensordict, op=_constant(tensordict, Op.WAIT))


class RandomPolicy(TensorDictModuleBase):
    """Uniform draws of what is legal: the op, then a slot that is legal for it, then the rest.

    Reads ``("action_mask", head)``, writes ``("action", head)``, int64 ``[N]``, for every head.
    It draws in every exploration mode: there is no greedy form of it.
    """

    in_keys = _MASK_KEYS
    out_keys = _ACTION_KEYS

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = tensordict["action_mask"]
        op = _draw(masks["op"])
        choices = {head: _draw(masks[head]) for head in HEADS if head not in ("op", "slot")}
        return _write_action(
            tensordict, op=op, slot=_draw(select_row(masks["slot"], op)), **choices
        )


class FixedSchedulePolicy(TensorDictModuleBase):
    """Grows one seed through its whole life as early as possible, then waits.

    It germinates in the first epoch of an episode (and never again: a seed that is lost stays
    lost), advances and fossilizes as soon as the masks allow it.

    Reads ``"observation"`` (its ``epoch_progress``) and ``("action_mask", head)``, writes
    ``("action", head)``, int64 ``[N]``, for every head.

    Args:
        slot: where to grow, from 0.
        blueprint: name of the seed; for one of a host's own the choice's index, which is
            ``env.population.blueprints.index(name)``.
        style: how it is mixed in.
        tempo_epochs: epochs of the ramp.
        alpha_target: where the ramp ends.

    Raises:
        ValueError: for a choice that doesn't exist; when called on a world that doesn't have the
            slot or doesn't offer the blueprint.

    Examples:
        >>> FixedSchedulePolicy(slot=1, blueprint="norm").slot
        1
    """

    in_keys = ("observation", *_MASK_KEYS)
    out_keys = _ACTION_KEYS

    def __init__(
        self,
        slot: int = 0,
        blueprint: str | int = "conv_heavy",
        style: Style = Style.LINEAR_ADD,
        tempo_epochs: int = 3,
        alpha_target: float = 1.0,
    ) -> None:
        super().__init__()
        self.slot = slot
        self.choices = {
            "slot": slot,
            "blueprint": blueprint
            if isinstance(blueprint, int)
            else _index("blueprint", blueprint, BLUEPRINTS),
            "style": _index("style", style, tuple(Style)),
            "tempo": _index("tempo_epochs", tempo_epochs, TEMPO_EPOCHS),
            "alpha_target": _index("alpha_target", alpha_target, ALPHA_TARGETS),
        }

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = tensordict["action_mask"]
        self._check(masks)
        legal = masks["slot"][..., self.slot]  # [N, ops]
        first_epoch = tensordict["observation"][..., _EPOCH] == 0
        op = _constant(tensordict, Op.WAIT)
        op = op.where(~(legal[..., Op.GERMINATE] & first_epoch), Op.GERMINATE)
        op = op.where(~legal[..., Op.ADVANCE], Op.ADVANCE)
        op = op.where(~legal[..., Op.FOSSILIZE], Op.FOSSILIZE)
        choices = {head: _constant(tensordict, index) for head, index in self.choices.items()}
        return _write_action(tensordict, op=op, **choices)

    def _check(self, masks: TensorDictBase) -> None:
        slots = masks["slot"].shape[-1]
        check_integer("slot", self.slot, least=0, most=slots - 1, what="last slot of the world")
        offered = masks["blueprint"].flatten(0, -2).all(0).nonzero().flatten().tolist()
        index = self.choices["blueprint"]
        if index not in offered:
            names = dict(enumerate(BLUEPRINTS))
            allowed = ", ".join(str(names.get(i, i)) for i in offered)
            raise ValueError(
                f"blueprint must be one that this world offers, {allowed}, got "
                f"{names.get(index, index)!r}"
            )


def _index(argument: str, choice: object, choices: tuple) -> int:
    check_choice(argument, choice, choices)
    return choices.index(choice)


def _constant(tensordict: TensorDictBase, value: int) -> Tensor:
    mask = tensordict["action_mask", "op"]
    return torch.full(mask.shape[:-1], value, dtype=torch.int64, device=mask.device)


def _draw(mask: Tensor) -> Tensor:
    """One uniform draw among the true entries of every row, ``[..., n]`` to ``[...]``."""
    flat = mask.flatten(0, -2).float()
    return torch.multinomial(flat, 1).reshape(mask.shape[:-1])


def _write_action(tensordict: TensorDictBase, **choices: Tensor) -> TensorDictBase:
    """Write the heads that were chosen; the others have no effect and get index 0."""
    for head in HEADS:
        chosen = choices[head] if head in choices else _constant(tensordict, 0)
        tensordict["action", head] = chosen
    return tensordict
