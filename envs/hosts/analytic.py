"""Hosts and seeds that are formulas: learning curves in closed form, no data, no noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.actions import BLUEPRINTS, Algorithm, Stage
from envs.growth import Growth, Validation
from envs.workers import one_thread

CHANCE = 10.0
"""Accuracy of an untrained host with ten classes, in percent."""

HOST_RISE, HOST_EPOCHS = 5.0, 15.0
"""A host alone rises by so many points, 63 % of them in so many epochs."""

MIXED_SPEED = 0.5
"""How fast a seed learns once it is mixed in, beside 1 in TRAINING."""

HELP = 2.0
"""How much faster a seed learns with a helper: a helped one is 1 + HELP times as fast."""

LEAN, HINDRANCE = 0.25, 0.15
"""With a helper, an unripe seed in BLENDING gives more, a finished one less (shares of itself)."""

GATE_PARAMS = 20
"""Parameters of a seed's gate."""


@dataclass(frozen=True)
class SeedCurve:
    """How a blueprint learns.

    Attributes:
        peak: points that it adds in the best slot when it has learned everything.
        epochs: learning after which it gives 63 % of that.
        help: how well it helps later slots, 0 to 1.
        params: its size.
    """

    peak: float
    epochs: float
    help: float
    params: int


class AnalyticHosts:
    """Hosts whose accuracy is a formula of what was planted where, and when.

    Symbols: e the epochs that a row has trained; for the seed in slot s: α its mixing, λ its
    learning rate, P, T, h its curve's ``peak``, ``epochs`` and ``help``, ρ the slot's place
    factor, τ the learning so far (0 when planted). All are float32.

    - Host: ``base = 10 + 5·(1 − exp(−e / 15))`` percent.
    - Helper of s: ``u = max over earlier slots j < s of α_j·h_j`` (0 without).
    - Learning of an epoch: ``τ += λ·v·(1 + 2·u)`` with v = 1 in TRAINING and v = ½ in BLENDING;
      ``τ += λ/2`` in HOLDING and FOSSILIZED, where a helper is of no use.
    - Ripeness: ``k = 1 − exp(−τ / T)``.
    - What s gives: ``g = α·ρ·P·k·m`` with ``m = 1 + ¼·(1 − k)·u`` in BLENDING (it leans on its
      helper) and ``m = 1 − 0.15·u`` in HOLDING and FOSSILIZED (the helper is in its way).
    - Accuracy: ``base + max over s of g``: seeds don't add up. Loss: ``ln 10 · (100 − accuracy)
      / 90``.
    - Gradient norms: 1 for a host, and a seed's Δτ in this epoch.

    So a helper and the seed that it helps have the interaction ``¼·(1 − k)·u·g/m`` > 0 in
    BLENDING if the helper gives nothing itself. A blend's style changes nothing but the ramp and
    the gate's parameters.

    Args:
        curves: of the blueprints that are offered, by name.
        places: ρ of every slot that is used.
        host_size: parameters of a host.
        num_rows: N.
        device: where everything lives.
    """

    batches_per_epoch = minibatch_size = validation_size = None

    def __init__(
        self,
        curves: Mapping[str, SeedCurve],
        places: Sequence[float],
        host_size: int,
        num_rows: int,
        device: torch.device,
    ) -> None:
        nothing = SeedCurve(peak=0.0, epochs=1.0, help=0.0, params=0)
        # One more at the end, which the index −1 of an empty slot finds.
        table = [*(curves.get(name, nothing) for name in BLUEPRINTS), nothing]
        self._peak = torch.tensor([curve.peak for curve in table], device=device)
        self._epochs = torch.tensor([curve.epochs for curve in table], device=device)
        self._help = torch.tensor([curve.help for curve in table], device=device)
        self._params = torch.tensor([float(curve.params) for curve in table], device=device)
        self._places = torch.tensor(places, device=device)
        self.host_size = host_size
        self.offered = torch.tensor([name in curves for name in BLUEPRINTS], device=device)
        self._age = torch.zeros(num_rows, device=device)
        self._learned = torch.zeros(num_rows, len(places), device=device)

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

    def train_epoch(self, growth: Growth, keys: Tensor) -> tuple[Tensor, Tensor]:
        """One epoch of every row; see the class for the formulas and the gradient norms."""
        stage = growth.stage
        incubates = stage == Stage.TRAINING
        blends = stage == Stage.BLENDING
        finished = (stage == Stage.HOLDING) | (stage == Stage.FOSSILIZED)
        helper = _helper(self._help[growth.blueprint] * growth.alpha)
        speed = incubates + MIXED_SPEED * (blends | finished)
        step = growth.seed_lr * speed * (1 + HELP * helper * ~finished)
        self._learned += step
        self._age += 1
        return torch.ones_like(self._age), step

    @one_thread
    def validate(self, growth: Growth, rows: Tensor, *, ablate: bool) -> Validation:
        """Loss and accuracy of ``rows [n]``, and accuracy with each seed left out."""
        stage, blueprint = growth.stage[rows], growth.blueprint[rows]
        alpha, learned = growth.alpha[rows], self._learned[rows]
        ripeness = 1 - torch.exp(-learned / self._epochs[blueprint])
        full = self._places * self._peak[blueprint] * ripeness
        blends = stage == Stage.BLENDING
        mixed = blends | (stage == Stage.HOLDING) | (stage == Stage.FOSSILIZED)
        effect = torch.where(blends, LEAN * (1 - ripeness), -HINDRANCE)
        base = CHANCE + HOST_RISE * (1 - torch.exp(-self._age[rows] / HOST_EPOCHS))
        help_ = self._help[blueprint]

        def accuracy(alpha: Tensor) -> Tensor:
            """Of the same seeds mixed in by another α, float32 ``[…, n, S]``."""
            gives = alpha * full * (1 + effect * _helper(help_ * alpha))
            return base + gives.amax(-1)

        whole = accuracy(alpha)
        if ablate:
            others = 1 - torch.eye(alpha.shape[1], device=alpha.device)
            without = accuracy(alpha * others[:, None]).T
        else:
            mixed = torch.zeros_like(mixed)
            without = whole[:, None].expand_as(alpha)
        loss = math.log(10) * (100 - whole) / (100 - CHANCE)
        return Validation(loss, whole, without, mixed)


def _helper(strength: Tensor) -> Tensor:
    """The largest ``strength`` […, S] among earlier slots, 0 for the first."""
    earlier = torch.zeros_like(strength)
    earlier[..., 1:] = strength[..., :-1].cummax(-1).values
    return earlier
