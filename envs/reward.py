"""The reward: terms, each a name and a formula, their weights, and the modes that use them.

:data:`REWARD_TERMS` is the one place where a term is written: specs, sums and plots follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from envs.actions import STAGES, Op, Stage
from envs.checks import check_choice, check_number
from envs.lifecycle import Applied
from envs.lookup import look_up
from envs.state import State
from envs.typed import check_types

CONTRIBUTES = 1.0
"""Accuracy points from which a fossilized seed earns the terminal bonus: strict gate 5's own."""

MOST_INTERACTION = 10.0
"""Accuracy points up to which an interaction counts in ``synergy``: half of ``progress``, at most,
is to be had by it."""

_POTENTIALS = [row.potential for row in STAGES.values()]

HASTY_EPOCHS = 5
"""Epochs since it was planted up to which pruning a seed is hasty."""


@dataclass(frozen=True)
class RewardConfig:
    """Weights of the reward's terms; accuracy counts as a fraction.

    The defaults are calibrated (``benchmarks/calibration.py``): under them the best fixed schedule
    earns most, then the heuristic, random play and waiting; nobody earns more by holding seeds for
    ever or by churning; and of two networks as accurate the smaller one earns more. Potentials are
    those of Ng et al. (1999): they don't change which policy is best.

    Attributes:
        mode: which terms are paid, one of :data:`MODES`: ``"shaped"`` by step and stage,
            ``"simplified"`` without what judges single ops, ``"sparse"`` at the end only,
            ``"minimal"`` the same with a cost of hasty prunes. A task's own terms always count.
        gamma: discount of the potentials; must be the agent's own.
        progress: weight of accuracy, as a potential. The last step of a terminated episode takes
            it back.
        stage: weight of the slots' stages, as a potential.
        rent: paid in every step, times log(1 + Σ α · seed parameters / host parameters). So small
            that planting later to pay it for fewer steps costs more than it saves.
        shock: paid times Σ (Δα)².
        intervention: cost of each op that is carried out. So small that playing at random, which
            acts all the time, still earns a little more than never acting.
        fossilize: weight of the contribution of a seed that is fossilized.
        fossilize_limit: fraction up to which a contribution counts there. A seed goes on learning
            and contributes more later: without a limit, waiting in HOLDING would pay.
        fossilize_cost: paid besides when that contribution is not positive.
        prune: weight of minus the contribution of a seed that is pruned. So small that planting a
            bad seed to prune it never earns back the ops' costs (see ``prune_limit``).
        prune_limit: fraction up to which a contribution counts in ``prune``, either way.
        upkeep: paid in every step for each seed that is mixed in but not fossilized, so that
            finishing early is worth something.
        synergy: weight of the interactions, as a potential: helping pays when it is seen, and
            what is lost later is paid back.
        hindsight: weight of the credit of helpers whose seed was fossilized a step before, or in
            this step if it is the episode's last.
        terminal: weight of the accuracy at the last epoch. As large as ``progress``, so that
            accuracy pays when it is gained and the last step brings no lump.
        bonus: earned at the last epoch for each fossilized seed that contributes at least 1 point.
        size: weight of the seeds' share of the parameter budget in ``outcome``, which is paid at
            the last epoch: best accuracy less that.
        hasty_prune: cost of pruning a seed younger than 5 epochs, in mode ``"minimal"``.
        governor: cost of a rollback, see :mod:`envs.governor`.

    Raises:
        TypeError: if a weight isn't a number.
        ValueError: if one is negative or not finite, ``gamma`` not in (0, 1] or the mode unknown.
    """

    mode: str = "shaped"
    gamma: float = 0.995
    progress: float = 10.0
    stage: float = 0.1
    rent: float = 0.005
    shock: float = 0.01
    intervention: dict[Op, float] = field(
        default_factory=lambda: {
            Op.GERMINATE: 0.0025,
            Op.FOSSILIZE: 0.00125,
            Op.PRUNE: 0.000625,
            Op.SET_ALPHA_TARGET: 0.000625,
        }
    )
    fossilize: float = 1.0
    fossilize_limit: float = 0.05
    fossilize_cost: float = 0.05
    prune: float = 0.015
    prune_limit: float = 0.2
    upkeep: float = 0.01
    synergy: float = 5.0
    hindsight: float = 1.0
    terminal: float = 10.0
    bonus: float = 0.2
    size: float = 0.1
    hasty_prune: float = 0.1
    governor: float = 10.0

    def __post_init__(self) -> None:
        check_types(self, "reward weight ")
        check_choice("reward mode", self.mode, MODES)
        check_number("gamma", self.gamma, above=0, most=1)
        for name, weight in self.weights().items():
            if name != "mode":
                check_number(f"reward weight {name}", weight, least=0)

    def weights(self) -> dict[str, float | str]:
        """All fields by name, each op's cost as ``intervention[OP]``."""
        weights = {each.name: getattr(self, each.name) for each in fields(self)}
        costs = weights.pop("intervention")
        return weights | {f"intervention[{Op(op).name}]": cost for op, cost in costs.items()}

    def check_cadence(self, counterfactual_every: int) -> None:
        """Refuse to measure interactions more seldom than they are paid for.

        Raises:
            ValueError: if they are, and they aren't measured in every epoch.
        """
        paid = [name for name in ("synergy", "hindsight") if self.pays(name)]
        paid = [name for name in paid if getattr(self, name) > 0]
        if paid and counterfactual_every > 1:
            raise ValueError(
                f"counterfactual_every must be 1 while the reward pays {' and '.join(paid)}, which "
                f"need the interactions of every epoch, got {counterfactual_every}; set their "
                "weights to 0 or choose another reward mode"
            )

    def pays(self, term: str) -> bool:
        """Is a term paid in this mode?"""
        return term not in REWARD_TERMS or term in MODES[self.mode]


@dataclass
class Transition:
    """A step, as the reward's formulas read it.

    Attributes:
        before, after: the state around it.
        applied: what became of the action.
        weights: of the terms.
        host_size: parameters of a host without seeds.
        parameter_budget: of the task, in parameters of seeds.
    """

    before: State
    after: State
    applied: Applied
    weights: RewardConfig
    host_size: int
    parameter_budget: int

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
        look_up(_POTENTIALS, state.slots.stage).sum(1) for state in (t.before, t.after)
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
    scaled = t.weights.fossilize * share.clamp(max=t.weights.fossilize_limit)
    paid = scaled - t.weights.fossilize_cost * (share <= 0).float()
    return (paid * t.applied.fossilized).sum(1)


def _prune(t: Transition) -> Tensor:
    limit = t.weights.prune_limit
    hurt = (-t.before.slots.contribution / 100).clamp(-limit, limit)
    return (t.weights.prune * hurt * t.applied.pruned).sum(1)


def _upkeep(t: Transition) -> Tensor:
    slots = t.after.slots
    unfinished = (slots.alpha > 0) & (slots.stage != Stage.FOSSILIZED)
    return -t.weights.upkeep * unfinished.float().sum(1)


def _synergy(t: Transition) -> Tensor:
    before, after = (
        state.slots.interaction.clamp(0, MOST_INTERACTION).sum((1, 2)) / (2 * 100)
        for state in (t.before, t.after)
    )
    return t.weights.synergy * t.change(before, after)


def _hindsight(t: Transition) -> Tensor:
    due = t.before.pending_hindsight_credit + t.after.pending_hindsight_credit * t.ends[:, None]
    return t.weights.hindsight * due.sum(1)


def _terminal(t: Transition) -> Tensor:
    slots = t.after.slots
    fossils = slots.stage == Stage.FOSSILIZED
    contributing = (fossils & (slots.contribution >= CONTRIBUTES)).sum(1).float()
    accuracy = t.after.history.accuracy / 100
    return (t.weights.terminal * accuracy + t.weights.bonus * contributing) * t.ends


def _outcome(t: Transition) -> Tensor:
    used = t.after.seed_params.sum(1) / t.parameter_budget
    return (t.after.history.best_accuracy / 100 - t.weights.size * used) * t.ends


def _hasty_prune(t: Transition) -> Tensor:
    hasty = t.applied.pruned & (t.before.slots.age < HASTY_EPOCHS)
    return -t.weights.hasty_prune * hasty.float().sum(1)


def _governor(t: Transition) -> Tensor:
    return -t.weights.governor * t.after.rolled_back.float()


REWARD_TERMS: dict[str, RewardTerm] = {
    "progress": _progress,
    "stage": _stage,
    "rent": _rent,
    "shock": _shock,
    "intervention": _intervention,
    "fossilize": _fossilize,
    "prune": _prune,
    "upkeep": _upkeep,
    "synergy": _synergy,
    "hindsight": _hindsight,
    "terminal": _terminal,
    "outcome": _outcome,
    "hasty_prune": _hasty_prune,
    "governor": _governor,
}
"""The terms, which sum to the reward, by name; :class:`RewardConfig` says what each pays."""


MODES: dict[str, frozenset[str]] = {
    "shaped": frozenset(REWARD_TERMS) - {"outcome", "hasty_prune"},
    "simplified": frozenset({"progress", "stage", "intervention", "rent", "terminal", "governor"}),
    "sparse": frozenset({"outcome"}),
    "minimal": frozenset({"outcome", "hasty_prune"}),
}
"""Terms of :data:`REWARD_TERMS` that each mode pays; the others are 0 in it."""


def compute_terms(step: Transition, formulas: Mapping[str, RewardTerm]) -> dict[str, Tensor]:
    """Compute the terms of a step by name, ``[N]`` each; 0 where the mode doesn't pay them.

    Raises:
        FloatingPointError: if a term of the task's own isn't finite; it names a row.
        ValueError: if it isn't ``[N]``.
    """
    nothing = torch.zeros_like(step.after.history.accuracy)
    terms = {
        name: formula(step) if step.weights.pays(name) else nothing
        for name, formula in formulas.items()
    }
    for name in formulas.keys() - REWARD_TERMS.keys():
        terms[name] = _checked(name, terms[name], nothing)
    return terms


def _checked(name: str, term: Tensor, like: Tensor) -> Tensor:
    """A term that somebody else has written, as the others are."""
    if not isinstance(term, Tensor) or term.shape != like.shape:
        got = list(term.shape) if isinstance(term, Tensor) else repr(term)
        raise ValueError(f"reward term {name!r} must be a tensor {list(like.shape)}, got {got}")
    broken = ~term.isfinite()
    if broken.any():
        row = int(broken.nonzero()[0, 0])
        raise FloatingPointError(
            f"reward term {name!r} must be finite, got {term[row].item()} in row {row}"
        )
    return term.to(like.dtype)


def _by_index(values: Mapping[Any, float], size: int, index: Tensor) -> Tensor:
    """``values[index]``, 0 where there is none."""
    return look_up([float(values.get(place, 0.0)) for place in range(size)], index)
