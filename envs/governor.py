"""The governor: notices networks that have failed, and takes them back to when they were well.

A network **fails at once** when its loss or one of its parameters isn't finite, or when it has lost
what it knew: its losses were well below that of guessing, and the loss is back there now. It
**diverges** when the loss is over three limits at once for some epochs in a row; such epochs don't
enter the statistics from which two of the limits follow.

A row that failed gets back host and fossilized seeds of its last snapshot. Its live seeds are lost
and the optimizer starts anew; the episode goes on, but the third time it ends.

The seed document has no governor: its thresholds are this project's own (docs/design.md,
"Governor"), and ``benchmarks.soak`` plays a million steps under them, faults among them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.actions import Op, Stage
from envs.batched.workers import one_thread
from envs.lifecycle import Applied
from envs.populations.base import Population
from envs.state import Snapshot, State

LEAST_EPOCHS = 10
"""Healthy epochs from which on a row can have known something."""

KNOWING_SHARE, GUESSING_SHARE = 0.6, 0.065
"""Shares of the loss of guessing: below the first a network knows something; within the second of
it, it knows nothing."""

SIGMAS, TIMES = 6.0, 3.0
"""Standard deviations above the mean, and multiples of the mean, that are limits of the loss."""

PATIENCE = 3
"""Epochs in a row over all limits that are a failure."""

SNAPSHOT_EPOCHS = 5
"""Healthy epochs between two snapshots; fossilizing a seed asks for one too."""

MOST_ROLLBACKS = 3
"""Rollbacks of an episode that end it."""

_MEASURED = ("gradient_norm", "contribution", "contribution_change", "contribution_age", "shapley")


class Governor:
    """Watches the rows of a population.

    Args:
        population: the networks, whose weights and optimizer state it changes.
        loss_limit: loss that an epoch over the limits exceeds, in nats.
        guessing_loss: of a network that knows nothing; None where that means nothing.

    The population keeps the weights of a snapshot; what else belongs to it is in
    :attr:`envs.state.State.watch`.
    """

    def __init__(
        self, population: Population, loss_limit: float, guessing_loss: float | None
    ) -> None:
        self.population, self.loss_limit = population, loss_limit
        self.guessing_loss = guessing_loss

    @one_thread
    def find_failures(self, state: State, loss: Tensor) -> Tensor:
        """Judge the epoch that was just validated, and count it.

        Args:
            state: of all rows; ``watch`` is changed.
            loss: validation losses in nats, ``[N]``, as they are.

        Returns:
            Bool ``[N]``: rows that have failed.
        """
        watch = state.watch
        seen = ~watch.losses.isnan()
        count = seen.sum(1)
        losses = torch.where(seen, watch.losses, 0.0)
        mean = losses.sum(1) / count.clamp(min=1)
        squares = (losses - mean[:, None]).square() * seen
        spread = (squares.sum(1) / count.clamp(min=1)).sqrt()
        limit = torch.maximum(mean + SIGMAS * spread, TIMES * mean).clamp(min=self.loss_limit)
        over = loss > limit
        watch.over = torch.where(over, watch.over + 1, 0)

        failed = ~loss.isfinite() | (watch.over >= PATIENCE) | ~self.population.finite()
        if self.guessing_loss is not None:
            knew = (count >= LEAST_EPOCHS) & (mean < KNOWING_SHARE * self.guessing_loss)
            failed |= knew & ((loss / self.guessing_loss - 1).abs() <= GUESSING_SHARE)

        healthy = ~(failed | over)
        counted = torch.cat([watch.losses[:, 1:], loss[:, None]], 1)
        watch.losses = torch.where(healthy[:, None], counted, watch.losses)
        watch.age = watch.age + healthy
        return failed

    @one_thread
    def roll_back(self, state: State, failed: Tensor, applied: Applied) -> None:
        """Take rows back to their snapshots, and undo the action on a seed that is lost by it.

        Args:
            state: changed in place.
            failed: bool ``[N]``, rows that are taken back.
            applied: what became of the action in this step; changed in place.
        """
        state.rolled_back = failed
        if not failed.any():
            return
        self.population.restore(failed.nonzero().squeeze(1))
        watch, slots, snapshot = state.watch, state.slots, state.watch.snapshot
        state.history.replace(failed, snapshot.history)
        state.host_gradient_norm = torch.where(
            failed, snapshot.host_gradient_norm, state.host_gradient_norm
        )
        fossils = snapshot.slots.stage == Stage.FOSSILIZED
        restored, lost = failed[:, None] & fossils, failed[:, None] & slots.has_module & ~fossils
        for name in _MEASURED:
            values = torch.where(restored, getattr(snapshot.slots, name), getattr(slots, name))
            setattr(slots, name, values)
        pairs = fossils[:, :, None] & fossils[:, None, :]
        interaction = torch.where(pairs, snapshot.slots.interaction, 0.0)
        slots.interaction = torch.where(failed[:, None, None], interaction, slots.interaction)
        slots.empty(lost, Stage.EMBARGOED)
        slots.clock = torch.where(lost, 1, slots.clock)  # as after any step in a stage
        state.seed_params = self.population.count_seed_params(slots.blueprint, slots.algorithm)
        self._undo(state, (lost & applied.acted).any(1), applied)

        watch.rollbacks = watch.rollbacks + failed
        watch.over = torch.where(failed, 0, watch.over)
        ends = watch.rollbacks >= MOST_ROLLBACKS
        state.terminated, state.truncated = state.terminated | ends, state.truncated & ~ends

    @staticmethod
    def _undo(state: State, undone: Tensor, applied: Applied) -> None:
        applied.success = applied.success & ~undone
        applied.op = torch.where(undone, Op.WAIT, applied.op)
        for name in ("acted", "germinated", "gated", "fossilized", "pruned"):
            setattr(applied, name, getattr(applied, name) & ~undone[:, None])
        state.success, state.executed_op = applied.success, applied.op

    def save_healthy(self, state: State, stepping: Tensor) -> None:
        """Save those of the rows ``stepping [N]`` that are due and whose epoch was healthy."""
        watch, fossil = state.watch, Stage.FOSSILIZED
        new = (state.slots.stage == fossil) & (watch.snapshot.slots.stage != fossil)
        due = (watch.age >= SNAPSHOT_EPOCHS) | new.any(1)
        due = due & stepping & (watch.over == 0) & ~state.rolled_back
        if due.any():
            self.save(state, due)

    @one_thread
    def save(self, state: State, where: Tensor) -> None:
        """Take a snapshot of the rows ``where [N]``."""
        watch = state.watch
        self.population.save(where.nonzero().squeeze(1))
        now = Snapshot(state.slots.copy(), state.history.copy(), state.host_gradient_norm)
        watch.snapshot.replace(where, now)
        watch.age = torch.where(where, 0, watch.age)
