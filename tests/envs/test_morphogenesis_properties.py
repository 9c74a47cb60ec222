"""Invariants that hold after any sequence of actions, resets, faults, saving and loading."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from benchmarks.invariants import FAULTS, Player, legal_heads, mixed_heads
from envs.actions import Op, Stage
from envs.lifecycle import GATES
from tests.support.environments import small_env

NUM_ENVS, NUM_SLOTS, STEPS = 6, 3, 20

FEW_CASES = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SEEDS = st.integers(0, 2**31)
SOME_ROWS = st.lists(st.booleans(), min_size=NUM_ENVS, max_size=NUM_ENVS).map(torch.tensor)
ENVIRONMENTS = {
    gates: [small_env(num_envs=NUM_ENVS, max_epochs=STEPS, gates=gates) for _ in range(2)]
    for gates in GATES
}
"""Two of each kind, so that one can go on where the other was saved."""


class Machine(RuleBasedStateMachine):
    """Whatever is done, and in whatever order, :class:`Player` finds nothing wrong."""

    @initialize(gates=st.sampled_from(GATES), seed=SEEDS)
    def start(self, gates: str, seed: int) -> None:
        env, self.other = ENVIRONMENTS[gates]
        env.set_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.player = Player(env)

    @rule(steps=st.integers(1, 6), nonsense=st.sampled_from([0.0, 0.0, 0.3, 1.0]))
    def play(self, steps: int, nonsense: float) -> None:
        for _ in range(steps):
            player = self.player
            player.step(mixed_heads(player.env, player.state, nonsense, self.generator))
            self.player.reset(torch.zeros(NUM_ENVS, dtype=torch.bool))

    @rule(rows=SOME_ROWS)
    def reset(self, rows: torch.Tensor) -> None:
        self.player.reset(rows)

    @rule(rows=SOME_ROWS, fault=st.sampled_from(FAULTS))
    def fail(self, rows: torch.Tensor, fault: str) -> None:
        self.player.break_rows(rows, fault)

    @rule()
    def go_on_elsewhere(self) -> None:
        here = self.player.env
        self.player.save_and_load(self.other)
        self.other = here


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(FEW_CASES, max_examples=2)
@given(seed=SEEDS)
def test_a_policy_that_follows_the_masks_visits_every_stage(seed):
    """Keeps the other tests honest: legal random play reaches all of a seed's life."""
    player = Player(small_env(num_envs=NUM_ENVS, max_epochs=40))
    generator, seen = torch.Generator().manual_seed(seed), set()
    for _ in range(40):
        player.step(legal_heads(player.state, generator))
        assert player.state["last_action_success"].all()
        seen |= set(player.state["metrics", "stage"].flatten().tolist())
    assert seen == set(range(Stage.DORMANT, Stage.RESETTING + 1))


@FEW_CASES
@given(steps=st.integers(0, 16), seed=SEEDS)
def test_every_op_is_refused_exactly_where_its_mask_is_false(steps, seed):
    """One op a row, in the same slot, from states that legal play reaches."""
    player = Player(small_env(num_envs=NUM_ENVS, max_epochs=40))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        player.step(legal_heads(player.state, generator))
    for slot in range(NUM_SLOTS):
        ops = torch.randperm(len(Op), generator=generator).tolist()
        player.step({"op": ops, "slot": [slot] * 6, "blueprint": [1] * 6})


@pytest.mark.parametrize("gates", GATES)
def test_the_player_finds_what_is_wrong(gates):
    """A network that fails and isn't taken back is noticed."""
    player = Player(small_env(num_envs=NUM_ENVS, gates=gates))
    player.env.population.host_params[2] = torch.nan
    with pytest.raises(AssertionError):
        player.step(legal_heads(player.state, torch.Generator().manual_seed(0)))
