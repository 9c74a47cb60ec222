"""The reward, term by term."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from envs.actions import Op, Stage

REWARD_TERMS: tuple[str, ...] = (
    "progress",
    "stage",
    "rent",
    "shock",
    "intervention",
    "fossilize",
    "prune",
    "terminal",
)
"""Names of the entries of ``reward_terms``; they sum to the reward."""

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
        progress: of accuracy as a potential; the last step of a terminated episode takes it back.
        stage: of the stages as a potential.
        rent: per step, times log(1 + Σ α · seed parameters / host parameters). So small that
            planting later to pay it for fewer steps costs more than it saves.
        shock: times Σ (Δα)².
        intervention: cost of each op that is carried out.
        fossilize: times the contribution of a seed that is fossilized. Small, because a seed
            that goes on learning in HOLDING contributes more later: waiting there would pay.
        fossilize_cost: paid besides when that contribution is not positive.
        prune: times minus the contribution of a seed that is pruned. So small that planting a
            bad seed to prune it never earns back the ops' costs (see ``prune_limit``).
        prune_limit: contributions count up to that fraction, either way, in ``prune``.
        terminal: of accuracy at the last epoch. As large as ``progress``, so that accuracy pays
            when it is gained and the last step brings no lump.
        bonus: at the last epoch, per fossilized seed that contributes at least 1 point.
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
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")
        weights = {each.name: getattr(self, each.name) for each in fields(self)}
        costs = weights.pop("intervention")
        weights |= {f"intervention[{Op(op).name}]": cost for op, cost in costs.items()}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"the reward weight {name} must be a finite number of at least 0, got {weight}"
                )


@dataclass
class Outcome:
    """What a step did, as far as the reward looks at it; everything has a leading N.

    Attributes:
        accuracy_before, accuracy: percent ``[N]``.
        stage_before, stage: int64 ``[N, S]``.
        alpha_before, alpha: float32 ``[N, S]``.
        params_share: float32 ``[N]``, Σ α · seed parameters / host parameters.
        op: int64 ``[N]``, carried out.
        fossilized, pruned: bool ``[N, S]``, in this step.
        contribution_before, contribution: accuracy points ``[N, S]``.
        last_epoch: bool ``[N]``.
        terminated: bool ``[N]``.
    """

    accuracy_before: Tensor
    accuracy: Tensor
    stage_before: Tensor
    stage: Tensor
    alpha_before: Tensor
    alpha: Tensor
    params_share: Tensor
    op: Tensor
    fossilized: Tensor
    pruned: Tensor
    contribution_before: Tensor
    contribution: Tensor
    last_epoch: Tensor
    terminated: Tensor


def reward_terms(outcome: Outcome, config: RewardConfig) -> dict[str, Tensor]:
    """Every term, float32 ``[N]``.

    ``progress`` and ``stage`` are differences of potentials, γ·Φ(s′) − Φ(s), with Φ = 0 in a
    terminated state, so they can't change which policy is best (Ng et al. 1999).
    """
    o = outcome
    going_on = (~o.terminated).float() * config.gamma
    accuracy = o.accuracy / 100
    fossils = o.stage == Stage.FOSSILIZED
    contributing = (fossils & (o.contribution >= CONTRIBUTES)).sum(1)
    share = o.contribution / 100
    fossilize = config.fossilize * share - config.fossilize_cost * (share <= 0)
    hurt = (-o.contribution_before / 100).clamp(-config.prune_limit, config.prune_limit)
    return {
        "progress": config.progress * (going_on * accuracy - o.accuracy_before / 100),
        "stage": config.stage
        * (going_on * _stage_potential(o.stage) - _stage_potential(o.stage_before)),
        "rent": -config.rent * torch.log1p(o.params_share),
        "shock": -config.shock * (o.alpha - o.alpha_before).square().sum(1),
        "intervention": -_by_index(config.intervention, len(Op), o.op),
        "fossilize": (fossilize * o.fossilized).sum(1),
        "prune": (config.prune * hurt * o.pruned).sum(1),
        "terminal": (config.terminal * accuracy + config.bonus * contributing) * o.last_epoch,
    }


def _stage_potential(stage: Tensor) -> Tensor:
    return _by_index(STAGE_POTENTIAL, len(Stage), stage).sum(1)


def _by_index(values: dict[Op, float] | dict[Stage, float], size: int, index: Tensor) -> Tensor:
    """``values[index]``, 0 where there is none."""
    table = torch.zeros(size, device=index.device)
    for place, value in values.items():
        table[place] = value
    return table[index]
