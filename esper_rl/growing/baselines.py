"""Policies to compare with: they need no training and read masks and the epoch.

Each is a TensorDict module, so it takes a learned policy's place in a rollout, a collector or
:func:`esper_rl.evaluation.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from envs.actions import ALPHA_TARGETS, BLUEPRINTS, HEADS, TEMPO_EPOCHS, Op, Style
from envs.lifecycle import draw_action
from envs.observation import feature_columns
from envs.tasks.plans import BestPlan
from esper_rl.errors import check_choice, check_integer, check_number

_EPOCH, _PLATEAU = feature_columns("epoch_progress", "plateau_norm")
_MASK_KEYS = tuple(("action_mask", head) for head in HEADS)
_ACTION_KEYS = tuple(("action", head) for head in HEADS)

STRONG = ("conv_heavy", "flex_attention", "mlp")
"""Blueprints that do well alone at the first slot of a convolutional or a transformer host, or of
one without positions."""


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
        return _write_action(tensordict, **draw_action(tensordict["action_mask"]))


class FixedSchedulePolicy(TensorDictModuleBase):
    """Grows one seed through its whole life as early as possible, then waits.

    It germinates in the first epoch of an episode (and never again: a seed that is lost stays
    lost), advances and fossilizes as soon as the masks allow it.

    Reads ``"observation"`` (its ``epoch_progress``) and ``("action_mask", head)``, writes
    ``("action", head)``, int64 ``[N]``, for every head.

    Args:
        slot: where to grow, from 0.
        blueprint: name of the seed; for one of a host's own the choice's index, which is
            ``env.population.blueprints.index(name)``. Default: the first of :data:`STRONG` that
            the world offers, or the first that it offers at all.
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
        blueprint: str | int | None = None,
        style: Style = Style.LINEAR_ADD,
        tempo_epochs: int = 3,
        alpha_target: float = 1.0,
    ) -> None:
        super().__init__()
        self.slot, self.blueprint = slot, _blueprint(blueprint)
        self.choices = {
            "slot": slot,
            "style": _index("style", style, tuple(Style)),
            "tempo": _index("tempo_epochs", tempo_epochs, TEMPO_EPOCHS),
            "alpha_target": _index("alpha_target", alpha_target, ALPHA_TARGETS),
        }

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = tensordict["action_mask"]
        blueprint = _offered(masks, [self.slot], self.blueprint)
        legal = masks["slot"][..., self.slot]  # [N, ops]
        first_epoch = tensordict["observation"][..., _EPOCH] == 0
        op = _constant(tensordict, Op.WAIT)
        op = op.where(~(legal[..., Op.GERMINATE] & first_epoch), Op.GERMINATE)
        op = op.where(~legal[..., Op.ADVANCE], Op.ADVANCE)
        op = op.where(~legal[..., Op.FOSSILIZE], Op.FOSSILIZE)
        choices = {head: _constant(tensordict, index) for head, index in self.choices.items()}
        return _write_action(
            tensordict, op=op, blueprint=_constant(tensordict, blueprint), **choices
        )


class SchedulePolicy(TensorDictModuleBase):
    """Grows seeds by a table, a row of it for each row of the world or one for all.

    Each seed is germinated in its epoch, or in one of the next where several are due, and never
    again; it is advanced and fossilized as soon as the masks allow it. Where several slots could
    act, those that plant come first, then those that advance, then those nearer to the input.

    Reads ``"observation"`` (its ``epoch_progress``) and ``("action_mask", head)``, writes
    ``("action", head)``, int64 ``[N]``, for every head.

    Args:
        blueprints: int64 ``[S]`` or ``[N, S]``, what to grow in each slot, -1 for nothing.
        epochs: int64, the same shape, when to plant it, from 0.
        max_epochs: epochs of an episode.

    Raises:
        ValueError: for shapes that differ; when called on a world that doesn't have the slots or
            doesn't offer a blueprint.

    Examples:
        >>> SchedulePolicy(torch.tensor([4, -1, 2]), torch.tensor([0, 0, 10]), 50).max_epochs
        50
    """

    in_keys = ("observation", *_MASK_KEYS)
    out_keys = _ACTION_KEYS

    def __init__(self, blueprints: Tensor, epochs: Tensor, max_epochs: int) -> None:
        super().__init__()
        if blueprints.shape != epochs.shape:
            raise ValueError(
                f"epochs must have the shape of blueprints, {list(blueprints.shape)}, got "
                f"{list(epochs.shape)}"
            )
        self.blueprints, self.epochs, self.max_epochs = blueprints, epochs, max_epochs
        self.planted = blueprints[blueprints >= 0].unique().tolist()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = tensordict["action_mask"]
        legal = masks["slot"]  # [N, ops, S]
        for blueprint in self.planted:
            _offered(masks, range(self.blueprints.shape[-1]), blueprint)
        planned = self.blueprints.to(legal.device).expand(legal[..., 0, :].shape)
        epoch = (tensordict["observation"][..., _EPOCH, None] * self.max_epochs).round()
        since = epoch - self.epochs.to(legal.device)
        at_most = (planned >= 0).sum(-1, keepdim=True)  # epochs that the others may take to plant
        wanted = {
            Op.GERMINATE: (planned >= 0) & (since >= 0) & (since < at_most),
            Op.ADVANCE: planned >= 0,
            Op.FOSSILIZE: planned >= 0,
        }
        op, slot = _constant(tensordict, Op.WAIT), _constant(tensordict, 0)
        for each, where in wanted.items():
            possible = legal[..., each, :] & where
            acts = possible.any(-1) & (op == Op.WAIT)
            op = op.where(~acts, each)
            slot = slot.where(~acts, possible.int().argmax(-1))
        blueprint = planned.gather(-1, slot[..., None])[..., 0].clamp(min=0)
        full = _constant(tensordict, ALPHA_TARGETS.index(1.0))
        return _write_action(tensordict, op=op, slot=slot, blueprint=blueprint, alpha_target=full)


class HeuristicPolicy(TensorDictModuleBase):
    """Grows one seed after the other by rules of thumb.

    - **Plant** the blueprint in the first free slot of ``slots`` when accuracy stands still (no
      notable rise for ``patience`` epochs) and no seed is unfinished.
    - **Advance** a fresh seed at once, one in TRAINING when its gradient is healthy, one in
      BLENDING when its ramp is over.
    - **Fossilize** one that holds and contributes at least ``contribution`` points; **prune** it
      when it has held for ``patience`` epochs and still contributes less.

    Reads ``"observation"`` and ``("action_mask", head)``, writes ``("action", head)``, int64
    ``[N]``, for every head.

    Args:
        blueprint: as for :class:`FixedSchedulePolicy`.
        slots: where to grow, in this order; default: all, from the input on.
        patience: epochs.
        contribution: accuracy points that a seed must give to stay.
        gradient_health: of a seed that is blended in, at least, in [0, 1].

    Raises:
        ValueError: for a choice that doesn't exist; when called on a world that doesn't have a
            slot or doesn't offer the blueprint.

    Examples:
        >>> HeuristicPolicy(slots=[0, 2]).slots
        (0, 2)
    """

    in_keys = ("observation", *_MASK_KEYS)
    out_keys = _ACTION_KEYS

    def __init__(
        self,
        blueprint: str | int | None = None,
        slots: Sequence[int] | None = None,
        patience: int = 3,
        contribution: float = 1.0,
        gradient_health: float = 0.5,
    ) -> None:
        super().__init__()
        self.slots = None if slots is None else tuple(slots)
        self.patience = check_integer("patience", patience)
        self.contribution = check_number("contribution", contribution, least=0)
        self.gradient_health = check_number("gradient_health", gradient_health, least=0, most=1)
        self.blueprint = _blueprint(blueprint)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        masks = tensordict["action_mask"]
        num_slots = masks["slot"].shape[-1]
        order = tuple(range(num_slots)) if self.slots is None else self.slots
        blueprint = _offered(masks, order, self.blueprint)
        see = partial(_features, tensordict["observation"], num_slots)
        held = see("stage_holding").bool() & (see("epochs_in_stage_norm") * 50 >= self.patience)
        points = see("contribution_norm") * 10
        healthy = see("gradient_health") >= self.gradient_health
        stands_still = tensordict["observation"][..., _PLATEAU] * 20 >= self.patience
        unfinished = masks["slot"][..., Op.PRUNE, :].any(-1)
        wanted = {
            Op.PRUNE: held & (points < self.contribution),
            Op.FOSSILIZE: points >= self.contribution,
            Op.ADVANCE: ~see("stage_training").bool() | healthy,
            Op.GERMINATE: (stands_still & ~unfinished)[..., None],
        }
        op, slot = _constant(tensordict, Op.WAIT), _constant(tensordict, order[0])
        for each, where in wanted.items():
            possible = masks["slot"][..., each, :] & where
            for place in order:
                # The first that is possible stays: only a row that still waits is given an op.
                here = possible[..., place] & (op == Op.WAIT)
                op, slot = op.where(~here, each), slot.where(~here, place)
        full = ALPHA_TARGETS.index(1.0)
        return _write_action(
            tensordict,
            op=op,
            slot=slot,
            blueprint=_constant(tensordict, blueprint),
            alpha_target=_constant(tensordict, full),
        )


class PlanPolicy(TensorDictModuleBase):
    """Plays the best plan of a task where it is known.

    Reads ``"observation"`` and ``("action_mask", "op")``, writes ``("action", head)``, int64
    ``[N]``, for every head. It remembers, for each row, which of the two plans it is on.

    Args:
        best: the plan, a :class:`envs.tasks.plans.BestPlan`.
        max_epochs: steps of an episode.
        num_slots: S.

    Raises:
        ValueError: if the plan acts after the last step, or on a slot that there isn't.
    """

    in_keys = ("observation", ("action_mask", "op"))
    out_keys = _ACTION_KEYS

    def __init__(self, best: BestPlan, max_epochs: int, num_slots: int = 3) -> None:
        super().__init__()
        check_integer("max_epochs", max_epochs, least=max(*best.plan, *best.otherwise) + 1)
        actions = [*best.plan.values(), *best.otherwise.values()]
        slots = max(action.get("slot", 0) for action in actions) + 1
        check_integer("num_slots", num_slots, least=slots)
        self.max_epochs = max_epochs
        self.decided_at = best.decided_at
        (self.column,) = feature_columns(best.feature, num_slots=num_slots)
        # By plan, step and head; after the last step nothing is done.
        self.table = torch.zeros(2, max_epochs + 1, len(HEADS), dtype=torch.int64)
        for number, plan in enumerate((best.otherwise, best.plan)):
            for step, action in plan.items():
                for head, index in action.items():
                    self.table[number, step, HEADS.index(head)] = int(index)
        self.taken: Tensor | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict["observation"]
        step = (observation[..., _EPOCH] * self.max_epochs).round().long()
        shown = (observation[..., self.column] > 0).long()
        taken = torch.zeros_like(shown) if self.taken is None else self.taken
        self.taken = torch.where(step <= self.decided_at, shown, taken)
        chosen = self.table.to(step.device)[self.taken, step]
        return _write_action(tensordict, **dict(zip(HEADS, chosen.unbind(-1), strict=True)))


def _features(observation: Tensor, num_slots: int, name: str) -> Tensor:
    """A feature of every slot, ``[..., S]``."""
    names = (f"slot{slot}_{name}" for slot in range(num_slots))
    return observation[..., feature_columns(*names, num_slots=num_slots)]


def _blueprint(blueprint: str | int | None) -> int | None:
    if blueprint is None or isinstance(blueprint, int):
        return blueprint
    return _index("blueprint", blueprint, BLUEPRINTS)


def _offered(masks: TensorDictBase, slots: Sequence[int], blueprint: int | None) -> int:
    """The blueprint, or the default one; refuses slots and blueprints that the world lacks."""
    last = masks["slot"].shape[-1] - 1
    for slot in slots:
        check_integer("slot", slot, least=0, most=last, what="last slot of the world")
    offered = masks["blueprint"].flatten(0, -2).all(0).nonzero().flatten().tolist()
    if blueprint is None:
        strong = (BLUEPRINTS.index(name) for name in STRONG)
        return next((index for index in strong if index in offered), offered[0])
    if blueprint not in offered:
        names = dict(enumerate(BLUEPRINTS))
        allowed = ", ".join(str(names.get(i, i)) for i in offered)
        raise ValueError(
            f"blueprint must be one that this world offers, {allowed}, got "
            f"{names.get(blueprint, blueprint)!r}"
        )
    return blueprint


def _index(argument: str, choice: object, choices: tuple) -> int:
    check_choice(argument, choice, choices)
    return choices.index(choice)


def _constant(tensordict: TensorDictBase, value: int) -> Tensor:
    mask = tensordict["action_mask", "op"]
    return torch.full(mask.shape[:-1], value, dtype=torch.int64, device=mask.device)


def _write_action(tensordict: TensorDictBase, **choices: Tensor) -> TensorDictBase:
    """Write the heads that were chosen; the others have no effect and get index 0."""
    for head in HEADS:
        chosen = choices[head] if head in choices else _constant(tensordict, 0)
        tensordict["action", head] = chosen
    return tensordict
