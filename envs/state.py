"""All that a row is, apart from its network's weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.actions import AlphaMode, Op, Stage
from envs.batched_state import Rows

HISTORY = 5
"""Epochs that trends and volatilities look back."""

ROUNDING = 1e-4
"""Accuracy points by which a float32 may be off."""

STABLE_IMPROVEMENT, STABLE_EPOCHS = 0.03, 3
"""A host is stable after that many epochs in a row with a smaller relative loss improvement."""

PLATEAU_RISE = 0.5
"""Accuracy points by which accuracy must exceed its last notable value to end a plateau: more than
two of digits' 500 validation examples."""


@dataclass
class Slots(Rows):
    """State of all slots, each tensor ``[N, S]`` if not said otherwise.

    Attributes:
        stage: int64, a :class:`~envs.actions.Stage`.
        clock: int64, epochs in the stage.
        age: int64, epochs since its seed was planted, 0 without one.
        blueprint: int64, −1 where no module sits.
        algorithm: int64, an :class:`~envs.actions.Algorithm`.
        alpha: float32 in [0, 1].
        alpha_velocity: float32, change of α in the last step.
        alpha_mode: int64, an :class:`~envs.actions.AlphaMode`.
        ramp_start, ramp_target: float32, where the ramp begins and ends. Before blending, the
            target is the one chosen at germination.
        ramp_epochs, ramp_done: int64, length of the ramp and epochs of it that are over.
        ramp_curve: int64, an :class:`~envs.actions.AlphaCurve`.
        removing: bool, the module goes when the ramp arrives.
        gradient_norm: float32, of the seed, mean over the last epoch's minibatches.
        contribution: float32, accuracy points, last measured.
        contribution_change: float32, by the last measurement.
        contribution_age: int64, epochs since the last measurement, −1 for never.
        shapley: float32, Shapley value in accuracy points, last measured; 0 where S is above
            :data:`envs.populations.left_out.ALL_SUBSETS`.
        interaction: float32 ``[N, S, S]``, accuracy points that two seeds give together beyond
            what each gives without the other, last measured; symmetric, 0 with itself.
        peak: float32 ``[N, S, S]``: ``peak[:, i, j]`` is the largest interaction above its noise
            that the seed in slot i has had with slot j, also with a seed that has left it; 0 if
            there was none.
        helper_gone: int64 ``[N, S, S]``, epochs since the seed of that peak left slot j, −1
            while it is there.
    """

    stage: Tensor
    clock: Tensor
    age: Tensor
    blueprint: Tensor
    algorithm: Tensor
    alpha: Tensor
    alpha_velocity: Tensor
    alpha_mode: Tensor
    ramp_start: Tensor
    ramp_target: Tensor
    ramp_epochs: Tensor
    ramp_done: Tensor
    ramp_curve: Tensor
    removing: Tensor
    gradient_norm: Tensor
    contribution: Tensor
    contribution_change: Tensor
    contribution_age: Tensor
    shapley: Tensor
    interaction: Tensor
    peak: Tensor
    helper_gone: Tensor

    @classmethod
    def dormant(cls, num_rows: int, num_slots: int, device: torch.device) -> Slots:
        """Slots that hold nothing."""
        integer = torch.zeros(num_rows, num_slots, dtype=torch.int64, device=device)
        real = torch.zeros(num_rows, num_slots, dtype=torch.float32, device=device)
        pairs = real[:, :, None].repeat(1, 1, num_slots)
        return cls(
            stage=integer + Stage.DORMANT,
            clock=integer,
            age=integer,
            blueprint=integer - 1,
            algorithm=integer,
            alpha=real,
            alpha_velocity=real,
            alpha_mode=integer,
            ramp_start=real,
            ramp_target=real,
            ramp_epochs=integer,
            ramp_done=integer,
            ramp_curve=integer,
            removing=integer.bool(),
            gradient_norm=real,
            contribution=real,
            contribution_change=real,
            contribution_age=integer - 1,
            shapley=real,
            interaction=pairs,
            peak=pairs,
            helper_gone=pairs.long() - 1,
        )

    @property
    def num_slots(self) -> int:
        """S."""
        return self.stage.shape[1]

    @property
    def has_module(self) -> Tensor:
        """Bool ``[N, S]``: does a module sit in the slot?"""
        return self.blueprint >= 0

    def empty(self, where: Tensor, stage: Stage) -> None:
        """Take the module out of the slots ``where [N, S]`` and set their stage, clock 0."""
        if not where.any():  # as in most steps
            return
        num_rows, num_slots = self.stage.shape
        fresh = Slots.dormant(num_rows, num_slots, self.stage.device)
        fresh.stage = torch.full_like(self.stage, stage)
        self.replace(where, fresh)
        gone = where[:, None, :]
        self.interaction = torch.where(gone, 0.0, self.interaction)
        left = gone & (self.peak > 0) & (self.helper_gone < 0)
        self.helper_gone = torch.where(left, 0, self.helper_gone)

    def enter(self, where: Tensor, stage: Stage | Tensor) -> None:
        """Set the stage of the slots ``where [N, S]``, clock 0."""
        self.stage = torch.where(where, stage, self.stage)
        self.clock = torch.where(where, 0, self.clock)

    def ramp(
        self, where: Tensor, target: Tensor, epochs: Tensor, curve: Tensor, removing: Tensor
    ) -> None:
        """Aim α of the slots ``where [N, S]`` at ``target``.

        A ramp of 0 epochs is over at once; aiming at the α that holds already changes nothing.

        Args:
            where: bool ``[N, S]``.
            target, epochs, curve: broadcast with ``where``.
            removing: bool, broadcasts with ``where``: the module goes on arrival.
        """
        aimed = where & (target != self.alpha)
        moves = aimed & (epochs > 0)
        mode = torch.where(target > self.alpha, AlphaMode.UP, AlphaMode.DOWN)
        self.alpha_mode = torch.where(moves, mode, self.alpha_mode)
        self.ramp_start = torch.where(aimed, self.alpha, self.ramp_start)
        self.ramp_target = torch.where(aimed, target, self.ramp_target)
        self.ramp_epochs = torch.where(aimed, epochs, self.ramp_epochs)
        self.ramp_done = torch.where(aimed, 0, self.ramp_done)
        self.ramp_curve = torch.where(aimed, curve, self.ramp_curve)
        self.removing = torch.where(moves, removing, self.removing)
        self.alpha = torch.where(aimed & ~moves, target, self.alpha)


@dataclass
class History(Rows):
    """Validation history of each row.

    Attributes:
        losses, accuracies: float32 ``[N, 5]``, newest last; nats and percent.
        best_loss, best_accuracy: ``[N]``.
        plateau_accuracy: ``[N]``, accuracy at its last notable rise.
        plateau_epochs: int64 ``[N]``, epochs since.
        stable_epochs: int64 ``[N]``, epochs in a row with little improvement.
        stabilized: bool ``[N]``.
    """

    losses: Tensor
    accuracies: Tensor
    best_loss: Tensor
    best_accuracy: Tensor
    plateau_accuracy: Tensor
    plateau_epochs: Tensor
    stable_epochs: Tensor
    stabilized: Tensor

    @classmethod
    def starting(cls, loss: Tensor, accuracy: Tensor) -> History:
        """History of rows that were just validated untrained: nothing has changed yet."""
        count = torch.zeros_like(loss, dtype=torch.int64)
        return cls(
            losses=loss[:, None].repeat(1, HISTORY),
            accuracies=accuracy[:, None].repeat(1, HISTORY),
            best_loss=loss,
            best_accuracy=accuracy,
            plateau_accuracy=accuracy,
            plateau_epochs=count,
            stable_epochs=count,
            stabilized=count.bool(),
        )

    @property
    def loss(self) -> Tensor:
        """The newest, ``[N]``."""
        return self.losses[:, -1]

    @property
    def accuracy(self) -> Tensor:
        """The newest, ``[N]``."""
        return self.accuracies[:, -1]

    def recorded(self, loss: Tensor, accuracy: Tensor) -> History:
        """The history after one more epoch."""
        rise = accuracy - self.plateau_accuracy > PLATEAU_RISE + ROUNDING
        improvement = (self.loss - loss) / self.loss.clamp(min=1e-8)
        stable = torch.where(improvement < STABLE_IMPROVEMENT, self.stable_epochs + 1, 0)
        return History(
            losses=torch.cat([self.losses[:, 1:], loss[:, None]], 1),
            accuracies=torch.cat([self.accuracies[:, 1:], accuracy[:, None]], 1),
            best_loss=torch.minimum(self.best_loss, loss),
            best_accuracy=torch.maximum(self.best_accuracy, accuracy),
            plateau_accuracy=torch.where(rise, accuracy, self.plateau_accuracy),
            plateau_epochs=torch.where(rise, 0, self.plateau_epochs + 1),
            stable_epochs=stable,
            stabilized=self.stabilized | (stable >= STABLE_EPOCHS),
        )


@dataclass
class Snapshot(Rows):
    """A row when it was last saved, apart from its network's weights.

    Attributes:
        slots: what sat in them.
        history: of validations.
        host_gradient_norm: float32 ``[N]``.
    """

    slots: Slots
    history: History
    host_gradient_norm: Tensor


WATCHED = 20
"""Healthy epochs that a row's present loss is compared with."""


@dataclass
class Watch(Rows):
    """The governor's notes.

    Attributes:
        losses: float32 ``[N, 20]``, of the latest healthy epochs, newest last, nan for none.
        over: int64 ``[N]``, epochs in a row over all limits.
        age: int64 ``[N]``, healthy epochs since the snapshot.
        rollbacks: int64 ``[N]``, in this episode.
        snapshot: the row when it was last saved.
    """

    losses: Tensor
    over: Tensor
    age: Tensor
    rollbacks: Tensor
    snapshot: Snapshot


@dataclass
class State(Rows):
    """A row at the end of a step, or after its reset.

    Attributes:
        slots: what sits in them.
        history: of validations.
        episode: int64 ``[N]``, resets of the row since it was seeded, less 1.
        epoch: int64 ``[N]``, steps of the episode.
        key: int64 ``[N]``, from which all random numbers of the episode follow.
        chosen_op, executed_op: int64 ``[N]``, the last action's op and what was carried out.
        success: bool ``[N]``, False where the last action was refused.
        rolled_back: bool ``[N]``: the governor has taken the row back in the last step.
        terminated, truncated: bool ``[N]``.
        host_gradient_norm: float32 ``[N]``, mean over the last epoch's minibatches.
        seed_params: float32 ``[N, S]``, parameters in the slots.
        pending_hindsight_credit: float32 ``[N, S]``, what the slots' seeds, or those before
            them, have earned by helping one that was fossilized in the last step; paid with the
            next reward, but for an episode's last step, which pays its own.
        hindsight_delay: int64 ``[N, S]``, epochs between a helper's end and that; 0 if it lives.
        terms: the last reward, by term, float32 ``[N]``.
        watch: the governor's notes.
    """

    slots: Slots
    history: History
    episode: Tensor
    epoch: Tensor
    key: Tensor
    chosen_op: Tensor
    executed_op: Tensor
    success: Tensor
    rolled_back: Tensor
    terminated: Tensor
    truncated: Tensor
    host_gradient_norm: Tensor
    seed_params: Tensor
    pending_hindsight_credit: Tensor
    hindsight_delay: Tensor
    terms: dict[str, Tensor]
    watch: Watch

    @classmethod
    def fresh(
        cls,
        num_slots: int,
        terms: Iterable[str],
        *,
        episode: Tensor,
        key: Tensor,
        loss: Tensor,
        accuracy: Tensor,
    ) -> State:
        """Rows at the beginning of an episode.

        Args:
            num_slots: S.
            terms: names of the reward's terms.
            episode, key: int64 ``[N]``.
            loss, accuracy: of the untrained networks, ``[N]``.
        """
        slots = Slots.dormant(len(episode), num_slots, episode.device)
        wait = torch.full_like(episode, Op.WAIT)
        none, blank = torch.zeros_like(episode), torch.zeros_like(loss)
        no, history = none.bool(), History.starting(loss, accuracy)
        unseen = torch.full_like(loss, math.nan)[:, None].repeat(1, WATCHED)
        snapshot = Snapshot(slots.copy(), history.copy(), blank)
        return cls(
            slots=slots,
            history=history,
            episode=episode,
            epoch=none,
            key=key,
            chosen_op=wait,
            executed_op=wait,
            success=~no,
            rolled_back=no,
            terminated=no,
            truncated=no,
            host_gradient_norm=blank,
            seed_params=slots.alpha,
            pending_hindsight_credit=slots.alpha,
            hindsight_delay=slots.clock,
            terms=dict.fromkeys(terms, blank),
            watch=Watch(unseen, over=none, age=none, rollbacks=none, snapshot=snapshot),
        )

    @property
    def done(self) -> Tensor:
        """Bool ``[N]``: is the episode over?"""
        return self.terminated | self.truncated

    def settle_credit(self) -> None:
        """Forget the credit that waits where the episode is over: it was paid in the last step."""
        over = self.done[:, None]
        self.pending_hindsight_credit = torch.where(over, 0.0, self.pending_hindsight_credit)
        self.hindsight_delay = torch.where(over, 0, self.hindsight_delay)
