"""The beginning of episodes: fresh hosts, which may train for some epochs by themselves."""

from __future__ import annotations

import math

from torch import Tensor

from envs.batched.randomness import Stream, fold
from envs.populations.base import Population, SlotInputs
from envs.state import History, State
from envs.tasks.base import Task


def begin(
    fresh: State, population: Population, task: Task, rows: Tensor, inputs: SlotInputs
) -> None:
    """Draw hosts for some rows, train them for ``task.warm_up`` epochs, and measure them.

    Args:
        fresh: the state of rows at their first step, with its keys; history and gradient norms
            are written, and mean something in ``rows`` only.
        population: the networks.
        task: of the environment.
        rows: int64 ``[n]``.
        inputs: of slots in which nothing is.
    """

    def measured() -> tuple[Tensor, Tensor]:
        validation = population.validate(inputs, rows, ablate=False).spread(rows, len(fresh.key))
        return shown_loss(validation.loss, task), validation.accuracy

    population.reset_hosts(rows, fold(fresh.key[rows], Stream.HOST))
    fresh.history = History.starting(*measured())
    for epoch in range(-task.warm_up, 0):  # those of an episode are counted from 0
        norms = population.train_epoch(inputs, fold(fresh.key, Stream.SHUFFLE, epoch), rows)
        fresh.host_gradient_norm, fresh.slots.gradient_norm = norms
        fresh.history = fresh.history.recorded(*measured())


def shown_loss(loss: Tensor, task: Task) -> Tensor:
    """Validation losses as the agent sees them, at most ``task.loss_limit``."""
    return loss.nan_to_num(nan=math.inf).clamp(max=task.loss_limit)
