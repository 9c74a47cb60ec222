"""The reward: terms, each a name and a formula, and their weights.

:data:`REWARD_TERMS` is the one place where a term is written: specs, sums and plots follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from envs.actions import Op, Stage
from envs.errors import check_number
from envs.lifecycle import Applied
from envs.state import State

STAGE_POTENTIAL: dict[Stage, float] = {
    Stage.GERMINATED: 1.0,
    Stage.TRAINING: 2.0,
    Stage.BLENDING: 3.5,
    Stage.HOLDING: 5.5,
    Stage.FOSSILIZED: 6.0,
}
"""Potential of a slot in that stage, before its weight; 0 in all others."""

CONTRIBUTES = 1.0
"""Accuracy points from which a fossilized seed earns the terminal bonus."""


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward's terms; accuracy counts as a fraction.

    Attributes:
        gamma: discount of the potentials; must be the agent's own.
        progress: weight of accuracy, as a potential. The last step of a terminated episode takes
            it back.
        stage: weight of the slots' stages, as a potential.
        rent: paid in every step, times log(1 + Σ α · seed parameters / host parameters). So small
            that planting later to pay it for fewer steps costs more than it saves.
        shock: paid times Σ (Δα)².
        intervention: cost of each op that is carried out.
        fossilize: weight of the contribution of a seed that is fossilized. Small, because a seed
            that goes on learning in HOLDING contributes more later: waiting there would pay.
        fossilize_cost: paid besides when that contribution is not positive.
        prune: weight of minus the contribution of a seed that is pruned. So small that planting a
            bad seed to prune it never earns back the ops' costs (see ``prune_limit``).
        prune_limit: fraction up to which a contribution counts in ``prune``, either way.
        terminal: weight of the accuracy at the last epoch. As large as ``progress``, so that
            accuracy pays when it is gained and the last step brings no lump.
        bonus: earned at the last epoch for each fossilized seed that contributes at least 1 point.

    Raises:
        TypeError: if a weight isn't a number.
        ValueError: if one is negative or not finite, or ``gamma`` not in (0, 1].
    """

    gamma: float = 0.995
    progress: float = 10.0
    stage: float = 0.1
    rent: float = 0.005
    shock: float = 0.01
    intervention: dict[Op, float] = field(
        default_factory=lambda: {
            Op.GERMINATE: 0.02,
            Op.FOSSILIZE: 0.01,
            Op.PRUNE: 0.005,
            Op.SET_ALPHA_TARGET: 0.005,
        }
    )
    fossilize: float = 0.1
    fossilize_cost: float = 0.05
    prune: float = 0.1
    prune_limit: float = 0.2
    terminal: float = 10.0
    bonus: float = 0.2

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, above=0, most=1)
        weights = {each.name: getattr(self, each.name) for each in fields(self)}
        costs = weights.pop("intervention")
        weights |= {f"intervention[{Op(op).name}]": cost for op, cost in costs.items()}
        for name, weight in weights.items():
            check_number(f"reward weight {name}", weight, least=0)


@dataclass
class Transition:
    """A step, as the reward's formulas read it.

    Attributes:
        before, after: the state around it.
        applied: what became of the action.
        weights: of the terms.
        host_size: parameters of a host without seeds.
    """

    before: State
    after: State
    applied: Applied
    weights: RewardConfig
    host_size: int

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """γ·Φ(s′) − Φ(s) for potentials ``[N]``, with Φ = 0 in a terminated state.

        Such differences can't change which policy is best (Ng et al. 1999).
        """
        return (~self.after.terminated).float() * self.weights.gamma * after - before

    @property
    def ends(self) -> Tensor:
        """Bool ``[N]``: is this the episode's last step?"""
        return self.after.done & ~self.before.done


RewardTerm = Callable[[Transition], Tensor]
"""A formula of a step: float32 ``[N]``."""


def _progress(t: Transition) -> Tensor:
    before, after = t.before.history.accuracy / 100, t.after.history.accuracy / 100
    return t.weights.progress * t.change(before, after)


def _stage(t: Transition) -> Tensor:
    before, after = (
        _by_index(STAGE_POTENTIAL, len(Stage), state.slots.stage).sum(1)
        for state in (t.before, t.after)
    )
    return t.weights.stage * t.change(before, after)


def _rent(t: Transition) -> Tensor:
    share = (t.after.slots.alpha * t.after.seed_params).sum(1) / t.host_size
    return -t.weights.rent * torch.log1p(share)


def _shock(t: Transition) -> Tensor:
    return -t.weights.shock * (t.after.slots.alpha - t.before.slots.alpha).square().sum(1)


def _intervention(t: Transition) -> Tensor:
    return -_by_index(t.weights.intervention, len(Op), t.applied.op)


def _fossilize(t: Transition) -> Tensor:
    share = t.after.slots.contribution / 100
    paid = t.weights.fossilize * share - t.weights.fossilize_cost * (share <= 0).float()
    return (paid * t.applied.fossilized).sum(1)


def _prune(t: Transition) -> Tensor:
    limit = t.weights.prune_limit
    hurt = (-t.before.slots.contribution / 100).clamp(-limit, limit)
    return (t.weights.prune * hurt * t.applied.pruned).sum(1)


def _terminal(t: Transition) -> Tensor:
    slots = t.after.slots
    fossils = slots.stage == Stage.FOSSILIZED
    contributing = (fossils & (slots.contribution >= CONTRIBUTES)).sum(1).float()
    accuracy = t.after.history.accuracy / 100
    return (t.weights.terminal * accuracy + t.weights.bonus * contributing) * t.ends


REWARD_TERMS: dict[str, RewardTerm] = {
    "progress": _progress,
    "stage": _stage,
    "rent": _rent,
    "shock": _shock,
    "intervention": _intervention,
    "fossilize": _fossilize,
    "prune": _prune,
    "terminal": _terminal,
}
"""The terms, which sum to the reward, by name; :class:`RewardConfig` says what each pays."""


def _by_index(values: Mapping[Any, float], size: int, index: Tensor) -> Tensor:
    """``values[index]``, 0 where there is none."""
    table = [values.get(place, 0.0) for place in range(size)]
    return torch.tensor(table, dtype=torch.float32, device=index.device)[index]
