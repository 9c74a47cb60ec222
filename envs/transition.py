"""One step of all rows, phase by phase: the rules of the world in the order in which they hold.

A phase takes a state and gives another one; only the networks themselves are changed in place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.actions import Op, Stage
from envs.batched.randomness import Stream, fold
from envs.credit import age_measurements, credit_helpers, record_measurements
from envs.governor import Governor
from envs.lifecycle import (
    Applied,
    action_masks,
    advance_alpha,
    advance_clocks,
    apply_action,
    legal_slots,
)
from envs.observation import compute_observation
from envs.populations.base import Population, SlotInputs, Validation
from envs.reset import shown_loss
from envs.reward import RewardConfig, RewardTerm, Transition, compute_terms
from envs.specs import show
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
        num_present: slots that the hosts have, from the input on; nothing is legal in the others.
        max_epochs, time_limit, gates, counterfactual_every: see
            :class:`~envs.morphogenesis.MorphogenesisEnv`.
    """

    task: Task
    population: Population
    governor: Governor
    reward: RewardConfig
    terms: Mapping[str, RewardTerm]
    num_present: int
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


def advance(
    world: World, state: State, action: dict[str, Tensor], stepping: Tensor
) -> tuple[State, Tensor]:
    """Take one step.

    Args:
        world: what rows live by.
        state: of all rows.
        action: int64 ``[N]`` by head.
        stepping: bool ``[N]``, rows that step; the others stay as they are.

    Returns:
        The state after it, and the reward, ``[N, 1]``.
    """
    legal = legal_ops(world, state, strict=world.gates != "permissive") & stepping[:, None, None]
    if world.counterfactual_every > 1:
        state = measure_pruned(world, state, action, legal)
    before = state

    state, applied = act(world, state, action, legal)
    state = train(world, state, stepping)
    state, applied = judge(world, state, applied, stepping)
    state, reward = pay(world, before, state, applied)
    if not stepping.all():
        state.replace(~stepping, before)
        reward = reward * stepping[:, None]
    return state, reward


def legal_ops(world: World, state: State, *, strict: bool) -> Tensor:
    """The slots in which each op is legal now, bool ``[N, 6, S]``.

    See :func:`~envs.lifecycle.legal_slots`; in slots that a host lacks nothing is but WAIT.
    """
    legal = legal_slots(state.slots, state.host_gradient_norm, strict=strict)
    legal[:, Op.WAIT + 1 :, world.num_present :] = False
    return legal


def act(
    world: World, state: State, action: dict[str, Tensor], legal: Tensor
) -> tuple[State, Applied]:
    """Carry out what is legal of the action, plant seeds and gates, and advance α.

    A ramp takes its first part in the step in which it begins; one to removal may empty its slot.
    """
    before, state = state.slots, state.copy()
    slots, population = state.slots, world.population
    applied = apply_action(slots, action, legal, population.offered)
    state.success, state.executed_op = applied.success, applied.op
    state.chosen_op = action["op"].clone()
    if applied.germinated.any():
        numbers = torch.arange(slots.num_slots, device=state.key.device)
        keys = fold(state.key[:, None], Stream.SEED, state.epoch[:, None], numbers)
        population.plant(applied.germinated, slots.blueprint, keys)
    population.reset_gates(applied.gated)
    advance_alpha(slots)
    slots.alpha_velocity = torch.where(slots.has_module, slots.alpha - before.alpha, 0.0)
    state.seed_params = population.count_seed_params(slots.blueprint, slots.algorithm)
    return state, applied


def train(world: World, state: State, stepping: Tensor) -> State:
    """Train the rows ``stepping [N]`` for an epoch, each random only by its own seed and epoch."""
    state, rows = state.copy(), stepping.nonzero().squeeze(1)
    keys = fold(state.key, Stream.SHUFFLE, state.epoch)
    norms = world.population.train_epoch(world.slot_inputs(state.slots), keys, rows)
    state.host_gradient_norm, state.slots.gradient_norm = norms
    return state


def judge(world: World, state: State, applied: Applied, stepping: Tensor) -> tuple[State, Applied]:
    """Count the epoch, validate, record what was measured, and take failed rows back.

    Args:
        world: what rows live by.
        state: of all rows, after their training.
        applied: what became of the action.
        stepping: bool ``[N]``, rows that step.

    Returns:
        The state, and what became of the action now: a rollback undoes it.
    """
    state, applied = count_epoch(world, state), copy.copy(applied)
    validation, due = validate(world, state, applied, stepping)
    failed = world.governor.find_failures(state, validation.loss) & stepping
    state = record(world, state, validation, due & ~failed)
    world.governor.roll_back(state, failed, applied)
    credit_helpers(state, applied.fossilized)
    world.governor.save_healthy(state, stepping)
    return state, applied


def measure_pruned(world: World, state: State, action: dict[str, Tensor], legal: Tensor) -> State:
    """Measure the contribution that a legal PRUNE is paid by, where the last one is older."""
    state, slots = state.copy(), state.slots
    numbers = torch.arange(slots.num_slots, device=state.key.device)
    pruned = legal[:, Op.PRUNE] & (numbers == action["slot"][:, None])
    pruned &= (action["op"] == Op.PRUNE)[:, None]
    due = (pruned & (slots.alpha > 0) & (slots.contribution_age != 0)).any(1)
    rows = due.nonzero().squeeze(1)
    if len(rows):
        validation = world.population.validate(world.slot_inputs(slots), rows, ablate=True)
        record_measurements(state.slots, validation.spread(rows, len(due)), due)
    return state


def count_epoch(world: World, state: State) -> State:
    """Move the slots' clocks; the last epoch ends the episode."""
    state = state.copy()
    advance_clocks(state.slots)
    state.epoch = state.epoch + 1
    over = state.epoch >= world.max_epochs
    state.terminated = over & (world.time_limit == "terminate")
    state.truncated = over & ~state.terminated
    return state


def validate(
    world: World, state: State, applied: Applied, stepping: Tensor
) -> tuple[Validation, Tensor]:
    """Measure the rows ``stepping [N]``, with seeds left out where that is due.

    Returns:
        What was measured, of all rows, and bool ``[N]``, where contributions are due.
    """
    rows = stepping.nonzero().squeeze(1)
    due = state.epoch % world.counterfactual_every == 0
    due = due | applied.fossilized.any(1) | state.done  # the reward asks for them then
    inputs = world.slot_inputs(state.slots)
    validation = world.population.validate(inputs, rows, ablate=bool(due.any()))
    return validation.spread(rows, len(due)), due


def record(world: World, state: State, validation: Validation, measured: Tensor) -> State:
    """Remember a validation, and contributions where they were ``measured``, bool ``[N]``."""
    state = state.copy()
    age_measurements(state.slots)
    record_measurements(state.slots, validation, measured)
    loss = shown_loss(validation.loss, world.task)
    state.history = state.history.recorded(loss, validation.accuracy)
    return state


def pay(world: World, before: State, state: State, applied: Applied) -> tuple[State, Tensor]:
    """Compute the reward of a step, ``[N, 1]``, and remember its terms."""
    state, sizes = state.copy(), (world.population.host_size, world.task.parameter_budget)
    step = Transition(before, state, applied, world.reward, *sizes)
    state.terms = compute_terms(step, world.terms)
    state.settle_credit()
    return state, torch.stack(list(state.terms.values())).sum(0)[:, None]


def observe(world: World, state: State) -> dict[str, Any]:
    """All that the state shows: observation, masks, metrics, reward terms and ends."""
    legal = legal_ops(world, state, strict=world.gates == "strict")
    observation = compute_observation(
        state, max_epochs=world.max_epochs, parameter_budget=world.task.parameter_budget
    )
    return show(state, observation, action_masks(legal, world.population.offered))
