"""Hosts and seeds that are formulas: learning curves in closed form, no data, no noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.actions import Algorithm, Stage
from envs.batched.workers import one_thread
from envs.populations.base import SlotInputs, Validation, ablations, blueprint_choices

CHANCE = 10.0
"""Accuracy of an untrained host with ten classes, in percent."""

HOST_RISE, HOST_EPOCHS = 5.0, 15.0
"""A host alone rises by so many points, 63 % of them in so many epochs."""

HOST_GRADIENT = 0.5
"""Gradient norm of every host; so small that the strict gate lets every seed pass."""

INCUBATION_SPEED = 0.1
"""Learning speed of a seed in TRAINING, as a share of one that is mixed in by α = 1."""

RIPE = 0.75
"""A helper is of use until a seed has learned this share of everything, and in the way then."""

HELP = 2.0
"""With a helper, a seed learns 1 + HELP times as fast."""

LEAN = 0.25
"""By how much more a seed gives with its helper (share of itself)."""

SLOWED, HINDERED = 0.5, 0.15
"""Beside a helper that is in its way, a seed learns and gives less by these shares."""

GATE_PARAMS = 20
"""Parameters of a seed's gate."""


@dataclass(frozen=True)
class SeedCurve:
    """Learning curve of a blueprint.

    Attributes:
        peak: points that it adds in the best slot when it has learned everything.
        epochs: learning that this takes; 1 is an epoch of a fossilized seed at α = 1.
        help: how well it helps later slots, 0 to 1.
        params: its size.
    """

    peak: float
    epochs: float
    help: float
    params: int


class FormulaPopulation:
    """Hosts whose accuracy is a formula of what was planted where, and when.

    Symbols: e the epochs that a row has trained; for the seed in slot s: α its mixing, λ its
    learning rate, P, T and h its curve's ``peak``, ``epochs`` and ``help``, ρ its slot's place
    factor, τ the learning so far (0 when planted).

    - Host: ``base = 10 + 5·(1 − exp(−e / 15))`` percent.
    - Helper of s: ``u = max over earlier slots j < s of α_j·h_j`` (0 without).
    - Learning of an epoch: ``τ += λ·v·w`` with v = 0.1 in TRAINING, α once mixed in, else 0.
      In TRAINING and BLENDING a helper speeds it up, w = 1 + 2·u, until τ ≥ ¾·T (**ripe**). It is
      in the way of a ripe seed, and of every one in HOLDING and FOSSILIZED: w = 1 − u/2 there.
    - What s gives: ``g = α·ρ·P·min(τ/T, 1)²·m``. In BLENDING, m = 1 + u/4 until it is ripe (it
      leans on its helper); then, and in HOLDING and FOSSILIZED, m = 1 − 0.15·u.
    - Accuracy: ``base + max over s of g``: seeds don't add up. Loss: ``ln 10 · (100 − accuracy)
      / 90``.
    - Gradient norms: ½ for a host, and a seed's Δτ in this epoch.

    So a seed in BLENDING has the interaction ``g·(1 − 1/m)`` ≥ 0 with a helper that gives nothing
    itself. A blend's style changes nothing but the ramp and the gate's parameters.

    Args:
        curves: of the blueprints that are offered, by name.
        places: ρ of every slot that is used.
        host_size: parameters of a host.
        num_rows: N.
        device: where everything lives.
    """

    def __init__(
        self,
        curves: Mapping[str, SeedCurve],
        places: Sequence[float],
        host_size: int,
        num_rows: int,
        device: torch.device,
    ) -> None:
        self.blueprints = blueprint_choices(tuple(curves))
        nothing = SeedCurve(peak=0.0, epochs=1.0, help=0.0, params=0)
        # One more at the end, which the index −1 of an empty slot finds.
        table = [*(curves.get(name, nothing) for name in self.blueprints), nothing]
        self._peak, self._epochs, self._help, self._params = torch.tensor(
            [[curve.peak, curve.epochs, curve.help, float(curve.params)] for curve in table],
            dtype=torch.float32,
            device=device,
        ).T.contiguous()
        self._places = torch.tensor(places, dtype=torch.float32, device=device)
        bits = torch.arange(len(places))
        left_out = ablations(len(places))[:, None] >> bits & 1
        self._kept = 1 - left_out.to(torch.float32).to(device)
        self.host_size = host_size
        self.offered = torch.tensor([name in curves for name in self.blueprints], device=device)
        self._age = torch.zeros(num_rows, dtype=torch.float32, device=device)
        self._learned = torch.zeros_like(self._age)[:, None].repeat(1, len(places))

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        """Untrained hosts in ``rows [n]``; nothing about them is random."""
        self._age[rows] = 0.0
        self._learned[rows] = 0.0

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        """Seeds that have learned nothing in the slots ``where [N, S]``."""
        self._learned.masked_fill_(where, 0.0)

    def reset_gates(self, where: Tensor) -> None:
        """Gates are counted, but have no effect."""

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        """Parameters of the seed in every slot, its gate included: float32 ``[N, S]``."""
        gated = (algorithm == Algorithm.GATE) & (blueprint >= 0)
        return self._params[blueprint] + GATE_PARAMS * gated

    def to(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One epoch of ``rows``; see the class for the formulas and the gradient norms."""
        blueprint = inputs.blueprint
        helper = _helper(self._help[blueprint] * inputs.alpha)
        stages = _Stages.of(inputs.stage)
        share = self._learned / self._epochs[blueprint]
        effect = HELP * stages.helped(share).float() - SLOWED * stages.hindered(share).float()
        speed = INCUBATION_SPEED * stages.incubates.float() + inputs.alpha * stages.mixed
        step = inputs.seed_lr * speed * (1 + effect * helper)
        self._learned[rows] += step[rows]
        self._age[rows] += 1
        return torch.full_like(self._age, HOST_GRADIENT), step

    @one_thread
    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        """Loss and accuracy of ``rows [n]``, and accuracy with seeds left out."""
        stages, blueprint = _Stages.of(inputs.stage[rows]), inputs.blueprint[rows]
        alpha = inputs.alpha[rows]
        share = self._learned[rows] / self._epochs[blueprint]
        full = self._places * self._peak[blueprint] * share.clamp(max=1).square()
        leans = stages.blends & stages.helped(share)
        effect = LEAN * leans.float() - HINDERED * stages.hindered(share).float()
        base = CHANCE + HOST_RISE * (1 - torch.exp(-self._age[rows] / HOST_EPOCHS))
        help_ = self._help[blueprint]

        def accuracy(alpha: Tensor) -> Tensor:
            """Of the same seeds mixed in by another α, float32 ``[…, n, S]``."""
            gives = alpha * full * (1 + effect * _helper(help_ * alpha))
            return base + gives.amax(-1)

        whole = accuracy(alpha)
        lost = whole[:, None].expand(-1, len(self._kept)) * 0
        if ablate:
            lost = whole[:, None] - accuracy(alpha * self._kept[:, None]).T
        loss = math.log(10) * (100 - whole) / (100 - CHANCE)
        return Validation(loss, whole, lost, stages.mixed & ablate)


@dataclass(frozen=True)
class _Stages:
    """Slots with seeds that learn and give, bool ``[n, S]`` each."""

    incubates: Tensor
    blends: Tensor
    finished: Tensor

    @classmethod
    def of(cls, stage: Tensor) -> _Stages:
        finished = (stage == Stage.HOLDING) | (stage == Stage.FOSSILIZED)
        return cls(stage == Stage.TRAINING, stage == Stage.BLENDING, finished)

    @property
    def mixed(self) -> Tensor:
        return self.blends | self.finished

    def helped(self, share: Tensor) -> Tensor:
        """Find seeds, having learned ``share`` of everything, to which a helper is of use."""
        return ~self.finished & (share < RIPE)

    def hindered(self, share: Tensor) -> Tensor:
        """Find mixed seeds whose learning and output a helper hinders."""
        return self.mixed & ~self.helped(share)


def _helper(strength: Tensor) -> Tensor:
    """The largest ``strength`` […, S] among earlier slots, 0 for the first."""
    earlier = torch.zeros_like(strength)
    earlier[..., 1:] = strength[..., :-1].cummax(-1).values
    return earlier
