"""Hosts and seeds that are formulas: learning curves in closed form, no data, no noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from envs.actions import Algorithm
from envs.batched.randomness import fold
from envs.batched.workers import one_thread
from envs.networks.growing import GrowingNetwork
from envs.populations.base import SlotInputs, Validation, blueprint_choices
from envs.populations.left_out import SetsLeftOut
from envs.populations.tensor_rows import TensorRows

CHANCE = 10.0
"""Accuracy of an untrained host with ten classes, in percent."""

HOST_RISE, HOST_EPOCHS = 15.0, 15.0
"""A host alone rises by so many points, 63 % of them in so many epochs."""

GRADIENT = 0.5
"""Gradient norm of every host, and of a seed that trains; it tells nothing of how well."""

RIPE_GAIN = 0.8
"""Share of its peak that a learner gives as soon as it is ripe."""

HELP = 6.0
"""Points that a helper or decoy is worth beside a learner that isn't ripe."""

HINDERED = 0.03
"""Share of a ripe learner's gain that is lost beside a helper or decoy."""

GATE_PARAMS = 20
"""Parameters of a seed's gate."""


@dataclass(frozen=True)
class SeedCurve:
    """Learning curve of a blueprint.

    Attributes:
        params: its size.
        peak: points that a learner gives in the end; 0 for a candidate that may help one.
        helped: epochs beside a helper after which a learner is ripe.
        alone: further epochs after which it gives its peak.
    """

    params: int
    peak: float = 0.0
    helped: float = 1.0
    alone: float = 1.0


class FormulaPopulation(TensorRows):
    """Hosts whose accuracy is a formula of what was planted, and when.

    Seeds are of two kinds: **learners**, whose curve has a peak, and candidates for a **helper**.
    Which candidate is the helper is drawn in every episode of a row; the others are **decoys**.

    Symbols: e the epochs that a row has trained; for the seed in slot s: α its mixing, λ its
    learning rate, P, H and A its curve's ``peak``, ``helped`` and ``alone``, τ the learning so
    far (0 when planted); for the slot before s: h its α if it holds a helper, d its α if it holds
    a decoy, else 0. Only seeds that are **mixed** count, those in BLENDING, HOLDING, FOSSILIZED.

    - Host: ``base = 10 + 15·(1 − exp(−e / 15))`` percent.
    - A learner learns λ an epoch if it is **ripe**, τ ≥ H, or has a helper in the slot before.
    - A ripe learner gives ``α·P·(0.8 + 0.2·min((τ − H) / A, 1))``, less 3 % · (h + d) of it: the
      helper is in its way now. Learners don't add up, the best one counts.
    - Beside one that isn't ripe, helper and decoy both seem to be worth six points. A decoy gives
      ``6·d`` itself. With a helper, the host has risen by ``6·h`` for good, and the learner,
      left without it, costs ``6·h``.
    - Loss: ``ln 10 · (100 − accuracy) / 90``. Gradient norms: ½ for hosts and for seeds in
      TRAINING or mixed.

    So accuracy and contributions are the same with helper and decoy until a learner is ripe; what
    differs is the **interaction** with the learner, ``6·h`` for a helper and 0 for a decoy. A
    blend's style changes nothing but the ramp and the gate's parameters.

    Args:
        curves: of the blueprints that are offered, by name.
        host_size: parameters of a host.
        num_rows: N.
        num_slots: S.
        device: where everything lives.

    Raises:
        ValueError: if no blueprint may be a helper.

    Attributes:
        helper: int64 ``[N]``: index of the blueprint that helps in this episode.
    """

    def __init__(
        self,
        curves: Mapping[str, SeedCurve],
        host_size: int,
        num_rows: int,
        num_slots: int,
        device: torch.device,
    ) -> None:
        self.host_size = host_size
        self.blueprints = blueprint_choices(tuple(curves))
        self.offered = torch.tensor([name in curves for name in self.blueprints], device=device)
        nothing = SeedCurve(params=0)
        # One more at the end, which the index −1 of an empty slot finds.
        table = [*(curves.get(name, nothing) for name in self.blueprints), nothing]
        self._params, self._peak, self._helped, self._alone = torch.tensor(
            [[float(curve.params), curve.peak, curve.helped, curve.alone] for curve in table],
            dtype=torch.float32,
            device=device,
        ).T.contiguous()
        self._candidate = torch.tensor([curve.peak == 0 for curve in table], device=device)
        self._candidate[-1] = False
        names = [name for name, curve in curves.items() if curve.peak == 0]
        if not names:
            raise ValueError(
                "curves must have a candidate for the helper, one with peak 0, got none among "
                f"{sorted(curves)}"
            )
        indices = [self.blueprints.index(name) for name in names]
        self._candidates = torch.tensor(indices, dtype=torch.int64, device=device)
        self._kept = (~SetsLeftOut(num_slots).members).float().to(device)
        self.helper = self._candidates[:1].repeat(num_rows)
        self._age = torch.zeros(num_rows, dtype=torch.float32, device=device)
        self._learned = torch.zeros_like(self._age)[:, None].repeat(1, num_slots)
        self.keep_first()

    @property
    def weights(self) -> Sequence[Tensor]:
        """Helpers, epochs trained and what the seeds have learned."""
        return [self.helper, self._age, self._learned]

    @property
    def optimizer_state(self) -> Sequence[Tensor]:
        """None."""
        return []

    def reset_hosts(self, rows: Tensor, keys: Tensor) -> None:
        """Untrained hosts in ``rows [n]``; which candidate helps is drawn from ``keys [n]``."""
        self._age[rows] = 0.0
        self._learned[rows] = 0.0
        self.helper[rows] = self._candidates[fold(keys) % len(self._candidates)]

    def plant(self, where: Tensor, blueprint: Tensor, keys: Tensor) -> None:
        """Seeds that have learned nothing in the slots ``where [N, S]``."""
        self._learned.masked_fill_(where, 0.0)

    def reset_gates(self, where: Tensor) -> None:
        """Gates are counted, but have no effect."""

    def network(self, row: int, inputs: SlotInputs) -> GrowingNetwork:
        raise TypeError(
            "the task must train networks for one to be taken out; its rows are formulas"
        )

    def load_network(self, row: int, network: GrowingNetwork, inputs: SlotInputs) -> None:
        raise TypeError("the task must train networks for one to be put in; its rows are formulas")

    def count_seed_params(self, blueprint: Tensor, algorithm: Tensor) -> Tensor:
        """Parameters of the seed in every slot, its gate included: float32 ``[N, S]``."""
        gated = (algorithm == Algorithm.GATE) & (blueprint >= 0)
        return self._params[blueprint] + GATE_PARAMS * gated

    def to(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        self.saved = [weights.to(device) for weights in self.saved]

    def train_epoch(self, inputs: SlotInputs, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """One epoch of ``rows``; see the class for the formulas and the gradient norms."""
        now = self._slots(inputs, rows)
        helped = _before(now.helpers.float()) > 0
        learns = now.learners & (helped | ~now.unripe)
        self._learned[rows] += inputs.seed_lr[rows] * learns
        self._age[rows] += 1
        trains = inputs.trains
        return torch.full_like(self._age, GRADIENT), GRADIENT * trains.float()

    @one_thread
    def validate(self, inputs: SlotInputs, rows: Tensor, *, ablate: bool) -> Validation:
        """Loss and accuracy of ``rows [n]``, and accuracy with seeds left out."""
        now, alpha = self._slots(inputs, rows), inputs.alpha[rows]
        base = CHANCE + HOST_RISE * (1 - torch.exp(-self._age[rows] / HOST_EPOCHS))
        risen = _before(alpha * now.helpers)

        def accuracy(alpha: Tensor) -> Tensor:
            """Of the same hosts with seeds mixed in by another α ``[…, n, S]``."""
            helper, decoy = (_before(alpha * kind) for kind in (now.helpers, now.decoys))
            gain = alpha * now.gain * (1 - HINDERED * (helper + decoy))
            missed = (risen - helper) * (alpha > 0)
            beside = HELP * (decoy + risen - missed) * now.unripe
            return base + gain.amax(-1) + beside.sum(-1)

        whole = accuracy(alpha)
        lost = torch.zeros(len(rows), len(self._kept), dtype=whole.dtype, device=whole.device)
        if ablate:
            lost = whole[:, None] - accuracy(alpha * self._kept[:, None]).T
        loss = math.log(10) * (100 - whole) / (100 - CHANCE)
        exact = torch.zeros_like(lost)
        return Validation(loss, whole, lost, exact, inputs.mixed[rows] & ablate)

    def _slots(self, inputs: SlotInputs, rows: Tensor) -> _Slots:
        blueprint, learned = inputs.blueprint[rows], self._learned[rows]
        mixed = inputs.mixed[rows]
        peak, missing = self._peak[blueprint], self._helped[blueprint] - learned
        learners = mixed & (peak > 0)
        unripe = learners & (missing > 0)
        beyond = (-missing / self._alone[blueprint]).clamp(max=1)
        gain = peak * (RIPE_GAIN + (1 - RIPE_GAIN) * beyond) * (learners & ~unripe)
        candidates = mixed & self._candidate[blueprint]
        helps = blueprint == self.helper[rows, None]
        return _Slots(learners, unripe, gain, candidates & helps, candidates & ~helps)


@dataclass(frozen=True)
class _Slots:
    """Seeds that are mixed in: bool ``[n, S]`` each, and ``gain`` of a ripe learner at α = 1."""

    learners: Tensor
    unripe: Tensor
    gain: Tensor
    helpers: Tensor
    decoys: Tensor


def _before(values: Tensor) -> Tensor:
    """Values ``[…, S]`` of the slot before each, 0 before the first."""
    return pad(values[..., :-1], (1, 0))
