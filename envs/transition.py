"""One step of all rows, phase by phase: the rules of the world in the order in which they hold.

The state is changed in place. A copy of what a step began with is kept: rewards compare the two,
and rows that don't step are put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.actions import Op, Stage
from envs.batched.randomness import Stream, fold
from envs.credit import age_measurements, credit_helpers, record_measurements
from envs.governor import Governor
from envs.lifecycle import Applied, advance_alpha, advance_clocks, apply_action, legal_slots
from envs.populations.base import Population, SlotInputs, Validation
from envs.reset import shown_loss
from envs.reward import RewardConfig, RewardTerm, Transition, compute_terms
from envs.state import Slots, State
from envs.tasks.base import Task


@dataclass(frozen=True)
class World:
    """All that rows live by, apart from their state.

    Attributes:
        task: of the environment.
        population: the networks.
        governor: watches them.
        reward: weights of the reward's terms.
        terms: formulas of the terms, by name.
        max_epochs, time_limit, gates, counterfactual_every: see
            :class:`~envs.morphogenesis.MorphogenesisEnv`.
    """

    task: Task
    population: Population
    governor: Governor
    reward: RewardConfig
    terms: Mapping[str, RewardTerm]
    max_epochs: int
    time_limit: str
    gates: str
    counterfactual_every: int

    def slot_inputs(self, slots: Slots) -> SlotInputs:
        """Describe slots as the population takes them."""
        host_lr = torch.full_like(slots.alpha[:, 0], self.task.host_lr)
        seed_lr = torch.full_like(slots.alpha, self.task.seed_lr)
        seed_lr = torch.where(slots.stage == Stage.FOSSILIZED, host_lr[:, None], seed_lr)
        return SlotInputs(
            slots.stage, slots.blueprint, slots.algorithm, slots.alpha, host_lr, seed_lr
        )


def advance(world: World, state: State, action: dict[str, Tensor], stepping: Tensor) -> Tensor:
    """Take one step.

    Args:
        world: what rows live by.
        state: of all rows, changed in place.
        action: int64 ``[N]`` by head.
        stepping: bool ``[N]``, rows that step; the others stay as they are.

    Returns:
        The reward, ``[N, 1]``.
    """
    rows = stepping.nonzero().squeeze(1)
    legal = legal_ops(state, strict=world.gates != "permissive") & stepping[:, None, None]
    if world.counterfactual_every > 1:
        measure_pruned(world, state, action, legal)
    before = state.copy()

    applied = act(world, state, action, legal)
    move_alpha(world, state, before.slots)
    train(world, state, rows)
    advance_clocks(state.slots)
    end_epoch(world, state)
    validation, due = validate(world, state, applied, rows)
    failed = world.governor.find_failures(state, validation.loss) & stepping
    record(world, state, validation, due & ~failed)
    world.governor.roll_back(state, failed, applied)
    credit_helpers(state, applied.fossilized)
    world.governor.save_healthy(state, stepping)
    reward = pay(world, before, state, applied)
    if len(rows) < len(stepping):
        state.replace(~stepping, before)
        reward = reward * stepping[:, None]
    return reward


def legal_ops(state: State, *, strict: bool) -> Tensor:
    """The slots in which each op is legal now, see :func:`~envs.lifecycle.legal_slots`."""
    return legal_slots(state.slots, state.host_gradient_norm, strict=strict)


def act(world: World, state: State, action: dict[str, Tensor], legal: Tensor) -> Applied:
    """Carry out what is legal of the action, and plant seeds and gates."""
    slots, population = state.slots, world.population
    applied = apply_action(slots, action, legal, population.offered)
    state.success, state.executed_op = applied.success, applied.op
    state.chosen_op = action["op"].clone()
    if applied.germinated.any():
        numbers = torch.arange(slots.num_slots, device=state.key.device)
        keys = fold(state.key[:, None], Stream.SEED, state.epoch[:, None], numbers)
        population.plant(applied.germinated, slots.blueprint, keys)
    population.reset_gates(applied.gated)
    return applied


def move_alpha(world: World, state: State, before: Slots) -> None:
    """Advance the ramps, which may empty slots, and see what is in the slots now."""
    slots = state.slots
    advance_alpha(slots)
    slots.alpha_velocity = torch.where(slots.has_module, slots.alpha - before.alpha, 0.0)
    state.seed_params = world.population.count_seed_params(slots.blueprint, slots.algorithm)


def train(world: World, state: State, rows: Tensor) -> None:
    """Train rows for one epoch, each random only by its own seed and epoch."""
    keys = fold(state.key, Stream.SHUFFLE, state.epoch)
    norms = world.population.train_epoch(world.slot_inputs(state.slots), keys, rows)
    state.host_gradient_norm, state.slots.gradient_norm = norms


def measure_pruned(world: World, state: State, action: dict[str, Tensor], legal: Tensor) -> None:
    """Measure the contribution that a legal PRUNE is paid by, where the last one is older."""
    slots = state.slots
    numbers = torch.arange(slots.num_slots, device=state.key.device)
    pruned = legal[:, Op.PRUNE] & (numbers == action["slot"][:, None])
    pruned &= (action["op"] == Op.PRUNE)[:, None]
    due = (pruned & (slots.alpha > 0) & (slots.contribution_age != 0)).any(1)
    rows = due.nonzero().squeeze(1)
    if len(rows):
        validation = world.population.validate(world.slot_inputs(slots), rows, ablate=True)
        record_measurements(slots, validation.spread(rows, len(due)), due)


def end_epoch(world: World, state: State) -> None:
    """Count the epoch; the last one ends the episode."""
    state.epoch = state.epoch + 1
    over = state.epoch >= world.max_epochs
    state.terminated = over & (world.time_limit == "terminate")
    state.truncated = over & ~state.terminated


def validate(
    world: World, state: State, applied: Applied, rows: Tensor
) -> tuple[Validation, Tensor]:
    """Measure rows, with seeds left out where that is due.

    Returns:
        What was measured, of all rows, and bool ``[N]``, where contributions are due.
    """
    due = state.epoch % world.counterfactual_every == 0
    due = due | applied.fossilized.any(1) | state.done  # the reward asks for them then
    inputs = world.slot_inputs(state.slots)
    validation = world.population.validate(inputs, rows, ablate=bool(due.any()))
    return validation.spread(rows, len(due)), due


def record(world: World, state: State, validation: Validation, measured: Tensor) -> None:
    """Remember a validation, and contributions where they were ``measured``, bool ``[N]``."""
    age_measurements(state.slots)
    record_measurements(state.slots, validation, measured)
    loss = shown_loss(validation.loss, world.task)
    state.history = state.history.recorded(loss, validation.accuracy)


def pay(world: World, before: State, state: State, applied: Applied) -> Tensor:
    """Compute the reward of a step, ``[N, 1]``, and remember its terms."""
    sizes = world.population.host_size, world.task.parameter_budget
    step = Transition(before, state, applied, world.reward, *sizes)
    state.terms = compute_terms(step, world.terms)
    state.settle_credit()
    return torch.stack(list(state.terms.values())).sum(0)[:, None]
