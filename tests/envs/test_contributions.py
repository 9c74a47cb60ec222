"""Contributions through the environment: right, measured when due, and by what rewards are paid."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.invariants import differences
from envs.actions import Op
from envs.credit import age_measurements, record_measurements
from envs.populations import Validation
from envs.registration import make_task
from envs.reward import REWARD_TERMS, RewardConfig
from envs.state import Slots
from tests.support.environments import CONV_LIGHT, GROW, HOLDING, act, column, play, small_env
from tests.support.populations import make_population, use_plain_passes

SELDOM = RewardConfig(synergy=0.0, hindsight=0.0)
"""Pays for nothing that must be measured in every epoch."""


@pytest.mark.parametrize("style", range(4))
def test_contribution_is_what_forcing_alpha_to_zero_costs(style):
    env = small_env(num_envs=4, max_epochs=16, validation_size=100)
    plan = [{**heads, "slot": slot, "style": style} for slot in (0, 2) for heads in GROW]
    state = play(env, [*plan, {}])[-1]
    growth, rows = env.slot_inputs(env.state.slots), torch.arange(4)
    whole = env.population.validate(growth, rows, ablate=False).accuracy
    assert (state["metrics", "alpha"][:, [0, 2]] > 0).all()
    for slot in (0, 2):
        alpha = growth.alpha.clone()
        alpha[:, slot] = 0
        without = env.population.validate(replace(growth, alpha=alpha), rows, ablate=False)
        expected = whole - without.accuracy
        torch.testing.assert_close(state["metrics", "contribution"][:, slot], expected)
        name = f"slot{slot}_contribution_norm"
        shown = state["observation"][:, column(name)]
        torch.testing.assert_close(shown, expected.clamp(-10, 10) / 10)
    assert not state["metrics", "contribution"][:, 1].any()
    torch.testing.assert_close(whole, state["metrics", "val_accuracy"].squeeze(1))


def test_contributions_when_every_row_holds_something_else():
    env = small_env(num_envs=8, max_epochs=16, validation_size=100)
    rows = torch.arange(8)
    first, second = rows % 3, (rows + 1) % 3
    seeds = [
        {"slot": first, "blueprint": 1 + rows % 7, "style": rows % 4},
        {"slot": second, "blueprint": 1 + (rows + 3) % 7, "style": (rows // 2) % 4},
    ]
    plan = [{**h, **{k: v.tolist() for k, v in s.items()}} for s in seeds for h in GROW]
    state = play(env, [*plan, {}])[-1]
    growth = env.slot_inputs(env.state.slots)
    assert ((growth.alpha > 0).sum(1) == 2).all()
    accuracy = state["metrics", "val_accuracy"]
    for slot in range(3):
        alpha = growth.alpha.clone()
        alpha[:, slot] = 0
        without = env.population.validate(replace(growth, alpha=alpha), rows, ablate=False)
        expected = accuracy[:, 0] - without.accuracy
        torch.testing.assert_close(state["metrics", "contribution"][:, slot], expected)
    assert (state["metrics", "contribution"] != 0).any()


def test_contribution_is_zero_and_stale_before_blending():
    state = play(small_env(), GROW[:2])[-1]
    assert not state["metrics", "contribution"].any()
    assert not state["observation"][:, column("slot0_counterfactual_fresh")].any()


@pytest.mark.parametrize("every", [1, 3])
def test_counterfactuals_are_measured_every_so_many_epochs(every):
    env = small_env(max_epochs=14, counterfactual_every=every, reward=SELDOM)
    states = play(env, [*GROW, *[{}] * 8])
    fresh, last, age = column("slot0_counterfactual_fresh"), None, None
    for epoch, state in enumerate(states):
        contribution = state["metrics", "contribution"][:, 0]
        if epoch >= 3 and epoch % every == 0:
            age, last = 0, contribution
        elif age is not None:
            age += 1
            assert contribution.equal(last)
        expected = 0.0 if age is None else 0.8**age
        torch.testing.assert_close(state["observation"][:, fresh], torch.full((3,), expected))


def test_contribution_changes_and_ages():
    slots = Slots.dormant(1, 3, torch.device("cpu"))

    def measure(lost: list[float], ablated: list[bool]) -> None:
        first, second, third = lost
        sets = [0.0, first, second, first + second, third]
        validation = Validation(
            loss=torch.ones(1),
            accuracy=torch.full((1,), 50.0),
            lost=torch.tensor([[*sets, *[third] * 3]]),
            variance=torch.zeros(1, 8),
            ablated=torch.tensor([ablated]),
        )
        age_measurements(slots)
        record_measurements(slots, validation, torch.ones(1, dtype=torch.bool))

    def now() -> list:
        fields = (slots.contribution, slots.contribution_change, slots.contribution_age)
        return [field[0].tolist() for field in fields]

    measure([10, 0, 0], [True, False, False])
    assert now() == [[10, 0, 0], [10, 0, 0], [0, -1, -1]]
    measure([0, 0, 0], [False, False, False])
    assert now() == [[10, 0, 0], [10, 0, 0], [1, -1, -1]]
    measure([3, -4, 0], [True, True, False])
    assert now() == [[3, -4, 0], [-7, -4, 0], [0, 0, -1]]


def test_five_of_500_images_are_exactly_one_point():
    """Whatever else is right: percentages in float32 are off in one case of six."""
    logits = torch.zeros(1, 500, 2)
    targets = torch.zeros(1, 500, dtype=torch.int64)
    population = make_population(num_rows=1, validation_size=500)
    for right in range(5, 501):
        logits[0, :, 1] = 1.0
        logits[0, :right, 1] = -1.0
        whole, _ = population.data.objective.score(logits, targets)
        logits[0, right - 5 : right, 1] = 1.0
        lost = whole - population.data.objective.score(logits, targets)[0]
        assert (lost * 100 / 500).item() == 1.0


def test_a_contribution_of_one_point_passes_gate_five():
    """Through a validation in which the seed answers five of 500 images more."""
    env = small_env(num_envs=1, max_epochs=12, gates="strict", validation_size=500)
    state = env.reset()
    for heads in HOLDING:
        env.state.host_gradient_norm = torch.zeros(1)
        state = act(env, state, **heads)
    use_plain_passes(env.population)
    shares = []
    score = env.population.data.objective.score

    def answers(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # The seed is there in the first pass of an epoch, and left out in the second.
        right = torch.full_like(score(outputs, targets)[0], shares.pop())
        return right, right

    env.population.data.objective.score = answers
    for right in (57, 123, 301, 499):
        shares[:] = [right - 5, right]
        state = act(env, state)
        assert state["metrics", "contribution"][0, 0] == 1.0
        assert state["action_mask", "slot"][0, Op.FOSSILIZE, 0]


def test_only_rows_that_are_due_are_measured():
    """Rows at different epochs: the one that isn't due keeps its old contribution."""
    env = small_env(
        num_envs=2, max_epochs=20, counterfactual_every=2, reward=SELDOM, validation_size=200
    )
    state = play(env, GROW)[-1]
    state = env.reset(state.clone().set("_reset", torch.tensor([[False], [True]])))
    for heads in GROW:
        state = act(env, state, op=[0, int(heads["op"])], blueprint=CONV_LIGHT, alpha_target=2)
    state = act(env, state)  # epochs 7 and 4
    before = env.state.slots.contribution.clone()
    assert env.state.slots.contribution_age[:, 0].tolist() == [1, 0]
    state = act(env, state)  # epochs 8 and 5
    assert env.state.slots.contribution_age[:, 0].tolist() == [0, 1]
    assert env.state.slots.contribution[1].equal(before[1])


@pytest.mark.parametrize("every", [1, 5])
def test_rewards_are_paid_by_what_holds_when_they_are_paid(every):
    """However seldom contributions are measured, the rewards are the same."""
    plan = [*GROW, {}, {}, {"op": Op.ADVANCE}, {"op": Op.FOSSILIZE}]
    plan += [{**heads, "slot": 1} for heads in GROW] + [{}, {}, {"op": Op.PRUNE, "slot": 1}]
    sizes = {"max_epochs": len(plan), "validation_size": 200, "batches_per_epoch": 3}
    often, seldom = (small_env(counterfactual_every=n, reward=SELDOM, **sizes) for n in (1, every))
    paid = set()
    for a, b in zip(play(often, plan)[1:], play(seldom, plan)[1:], strict=True):
        for name in REWARD_TERMS:
            assert a["reward_terms", name].equal(b["reward_terms", name]), name
            paid |= {name} if a["reward_terms", name].any() else set()
    assert {"fossilize", "prune", "terminal"} <= paid
    assert not seldom.state.slots.contribution_age[:, 0].any()  # measured for the bonus at the end


def test_an_illegal_prune_measures_nothing():
    """It runs as WAIT: all that differs afterwards is what the row was told to do."""
    plan = [*HOLDING, {"op": Op.FOSSILIZE}, {}, {}]
    options = {"max_epochs": 30, "counterfactual_every": 20, "reward": SELDOM}
    states = []
    for op in (Op.WAIT, Op.PRUNE):
        env = small_env(**options, validation_size=200)
        state = play(env, plan)[-1]
        assert env.state.slots.contribution_age[:, 0].tolist() == [2, 2, 2]
        assert not state["action_mask", "slot"][:, Op.PRUNE, 0].any()
        states.append(act(env, state, op=int(op)))
    waited, refused = states
    assert not refused["last_action_success"].any()
    assert set(differences(waited, refused)) == {
        "observation",
        "last_action_success",
        "last_action_op",
    }
    told = [column("last_action_success"), column("last_action_op_wait")]
    told.append(column("last_action_op_prune"))
    changed = (waited["observation"] != refused["observation"]).any(0).nonzero().squeeze(1)
    assert changed.tolist() == sorted(told)


def test_parameters_are_shown_against_the_tasks_budget():
    env = small_env()
    state = play(env, GROW[:1])[-1]
    budget = 8 * sum(segment.size for segment in env.task.host.segments)
    seed = 8 * 8 * 9 + 2 * 8
    expected = math.log(1 + seed) / math.log(1 + budget)
    shown = state["observation"][:, column("params_utilization")]
    torch.testing.assert_close(shown, torch.full((3,), expected))


def test_a_seed_starts_anew_in_another_epoch():
    task = replace(make_task("digits"), host_lr=0.0, seed_lr=0.0)
    planted = []
    for wait in (0, 1, 1):
        env = small_env(task=task, num_envs=1)
        play(env, [*[{}] * wait, GROW[0]])
        planted.append(env.population.seed_params[0].clone())
    assert not planted[0].equal(planted[1])
    assert planted[1].equal(planted[2])


def test_a_row_that_starts_over_has_executed_nothing():
    env = small_env(num_envs=2)
    state = play(env, GROW[:1])[-1]
    assert state["metrics", "executed_op"].tolist() == [Op.GERMINATE] * 2
    state = env.reset(state.clone().set("_reset", torch.tensor([[False], [True]])))
    assert state["metrics", "executed_op"].tolist() == [Op.GERMINATE, Op.WAIT]
