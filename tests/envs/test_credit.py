"""Interactions, Shapley values and hindsight credit, against the slow and obvious way."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchrl.envs.utils import check_env_specs

from envs import ArrayTask, ConvHost, MorphogenesisEnv
from envs.actions import BLUEPRINTS, Op, Stage
from envs.credit import (
    contributions,
    credit_helpers,
    interactions,
    shapley_values,
)
from envs.populations.left_out import SetsLeftOut
from envs.state import Slots
from envs.tasks.scaffold import HELPERS
from tests.support.environments import GROW, act, column, legal_action, play, small_env
from tests.support.populations import copy_growth
from tests.support.slots import make
from tests.support.states import make_state

FIVE = ConvHost(
    kernel_size=1, channels=(8, 8, 8, 8, 8), pooled=(True, True, False, False, False), classes=10
)


def five_slots() -> MorphogenesisEnv:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(400, 1, 8, 8, generator=generator)
    task = ArrayTask(name="five", host=FIVE, train=(images, torch.arange(400) % 10), validation=200)
    return MorphogenesisEnv(task, num_envs=3, num_slots=5, max_epochs=40, seed=0)


def grow(env: MorphogenesisEnv, slots: list[int]) -> list:
    """A seed in each of the slots, another one in every row."""
    plan = []
    for slot in slots:
        chosen = {"slot": slot, "blueprint": [1 + (slot + row) % 7 for row in range(env.num_envs)]}
        plan += [{**heads, **chosen} for heads in GROW]
    return play(env, [*plan, {}])


def brute_force(env: MorphogenesisEnv, left_out: tuple[int, ...]) -> Tensor:
    """Accuracy now with the α of these slots forced to 0."""
    growth = env.slot_inputs(env.state.slots)
    alpha = growth.alpha.clone()
    alpha[:, list(left_out)] = 0.0
    rows = torch.arange(env.num_envs)
    return env.population.validate(copy_growth(growth, alpha=alpha), rows, ablate=False).accuracy


@pytest.mark.parametrize("world", ["three", "five"])
def test_interactions_by_brute_force_on_a_live_state(world):
    slots = [0, 1, 2] if world == "three" else [0, 1, 3, 4]
    env = small_env(max_epochs=40, validation_size=200) if world == "three" else five_slots()
    state = grow(env, slots)[-1]
    found = state["metrics", "interaction"]
    whole = brute_force(env, ())
    for i in range(env.num_slots):
        alone = whole - brute_force(env, (i,))
        torch.testing.assert_close(state["metrics", "contribution"][:, i], alone, atol=1e-4, rtol=0)
        assert not found[:, i, i].any()
        for j in range(i):
            expected = whole - brute_force(env, (i,)) - brute_force(env, (j,))
            expected = expected + brute_force(env, (i, j))
            torch.testing.assert_close(found[:, i, j], expected, atol=1e-4, rtol=0)
            assert found[:, i, j].equal(found[:, j, i])
    assert (found != 0).float().mean() > 0.05


def test_shapley_values_by_brute_force_on_a_live_state():
    env = small_env(max_epochs=40, validation_size=200)
    state = grow(env, [0, 1, 2])[-1]
    accuracy = {
        present: brute_force(env, tuple({0, 1, 2} - set(present)))
        for size in range(4)
        for present in combinations(range(3), size)
    }
    orders = list(permutations(range(3)))
    for slot in range(3):
        gains = []
        for order in orders:
            before = tuple(sorted(order[: order.index(slot)]))
            after = tuple(sorted((*before, slot)))
            gains.append(accuracy[after] - accuracy[before])
        expected = torch.stack(gains).mean(0)
        found = state["metrics", "shapley"][:, slot]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    total = accuracy[0, 1, 2] - accuracy[()]
    assert (total != 0).any()
    torch.testing.assert_close(state["metrics", "shapley"].sum(1), total, atol=1e-4, rtol=0)


def test_shapley_values_are_shown_where_all_sets_are_known():
    check_env_specs(five_slots())
    assert ("metrics", "shapley") not in five_slots().reset().keys(True)
    assert ("metrics", "shapley") in small_env().reset().keys(True)


def test_more_slots_than_pairs_allow():
    host = ConvHost(kernel_size=1, channels=(2,) * 17, pooled=(False,) * 17, classes=2)
    images, classes = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
    task = ArrayTask(name="deep", host=host, train=(images, classes), validation=10)
    with pytest.raises(ValueError, match="num_slots must be an integer from 1 to 16"):
        MorphogenesisEnv(task, num_envs=1, num_slots=17)
    state = MorphogenesisEnv(task, num_envs=1, num_slots=16).reset()
    assert state["metrics", "interaction"].shape == (1, 16, 16)


accuracies = st.lists(st.integers(0, 500), min_size=8, max_size=8)


@given(correct=accuracies)
def test_values_of_any_game(correct):
    """Of 500 answers, whatever subset gives whatever accuracy."""
    counts = torch.tensor([correct], dtype=torch.float32)
    lost = (counts[:, :1] - counts) / 5
    together = interactions(lost, 3)[0]
    for i, j in combinations(range(3), 2):
        one, other = 1 << i, 1 << j
        answers = correct[0] - correct[one] - correct[other] + correct[one | other]
        assert together[i, j].item() == pytest.approx(answers / 5, abs=1e-4)
        assert (together[i, j] == 0) == (answers == 0)  # rounding is no interaction
    values = shapley_values(lost, 3)[0]
    assert values.sum().item() == pytest.approx((correct[0] - correct[7]) / 5, abs=1e-3)
    assert contributions(lost, 3)[0].tolist() == [lost[0, 1], lost[0, 2], lost[0, 4]]


def test_a_seed_that_changes_nothing_is_worth_nothing():
    lost = torch.tensor([[0.0, 6.0, 0.0, 6.0, 2.0, 10.0, 2.0, 10.0]])
    assert shapley_values(lost, 3)[0, 1] == 0
    assert not interactions(lost, 3)[0, 1].any()
    assert interactions(lost, 3)[0, 0, 2] == -2.0


@pytest.mark.parametrize(("num_slots", "sets"), [(1, 2), (3, 8), (4, 11), (5, 16)])
def test_sets_that_are_left_out(num_slots, sets):
    found = SetsLeftOut(num_slots).bits
    assert len(set(found.tolist())) == sets
    assert found[0] == 0
    if num_slots > 3:
        assert max(bits.bit_count() for bits in found.tolist()) == 2


def test_features_of_interactions():
    """Interactions with all others count; the largest one is the boost."""
    env = small_env(num_envs=1)
    env.reset()
    slots = env.state.slots
    slots.blueprint = torch.tensor([[1, 2, 3]])
    slots.stage = torch.full((1, 3), int(Stage.HOLDING))
    slots.interaction = torch.tensor([[[0.0, 3.0, 1.5], [3.0, 0.0, -8.0], [1.5, -8.0, 0.0]]])
    seen = env.observe()["observation"][0]
    for slot, (total, boost) in enumerate([(0.45, 0.6), (0.0, 0.6), (0.0, 0.3)]):
        assert seen[column(f"slot{slot}_interaction_sum_norm")].item() == pytest.approx(total)
        assert seen[column(f"slot{slot}_boost_received_norm")].item() == pytest.approx(boost)


def test_no_interaction_with_a_seed_that_is_gone():
    """Also when nothing is measured in the epoch in which it goes."""
    slots = make(num_slots=3, interaction=2.0)
    slots.empty(torch.tensor([[False, True, False]]), Stage.PRUNED)
    assert not slots.interaction[:, 1].any()
    assert not slots.interaction[:, :, 1].any()
    assert (slots.interaction[:, 0, 2] == 2.0).all()


# -- hindsight --------------------------------------------------------------------------------


def credited(slots: Slots, fossilized: list[bool]) -> tuple[list[float], list[int]]:
    state = make_state(slots)
    credit_helpers(state, torch.tensor([fossilized]))
    return state.pending_hindsight_credit[0].tolist(), state.hindsight_delay[0].tolist()


@pytest.mark.parametrize(
    ("peaks", "contribution", "want"),
    [
        ([0.0, 0.5, 0.0], 4.0, [0.0, 0.05, 0.0]),
        ([0.0, 0.5, 1.0], 4.0, [0.0, 0.05, 0.1]),
        ([0.0, 3.0, 1.0], 4.0, [0.0, 0.15, 0.05]),
        ([0.0, 90.0, 0.0], 0.2, [0.0, 0.2, 0.0]),
        ([0.0, 3.0, 1.0], 0.0, [0.0, 0.0, 0.0]),
        ([0.0, 3.0, 1.0], -2.0, [0.0, 0.0, 0.0]),
    ],
)
def test_credit(peaks, contribution, want):
    peak = torch.zeros(1, 3, 3)
    peak[0, 0] = torch.tensor(peaks)
    peak[0, 2] = 7.0  # who helped another one doesn't count
    slots = make(num_slots=3, peak=peak, contribution=contribution)
    assert credited(slots, [True, False, False])[0] == pytest.approx(want)
    assert credited(slots, [False, False, False])[0] == [0.0, 0.0, 0.0]


def scaffolded(
    epochs_after: int, *, prune: bool = True, env: MorphogenesisEnv | None = None
) -> tuple[list, MorphogenesisEnv]:
    """States of an episode in which slot 0 helps slot 1, which is fossilized later."""
    env = MorphogenesisEnv("scaffold", num_envs=1, seed=0) if env is None else env
    helper, big = (BLUEPRINTS.index(name) for name in (HELPERS[0], "conv_heavy"))
    plan = [
        {"op": Op.GERMINATE, "slot": 0, "blueprint": helper, "alpha_target": 2},
        {"op": Op.ADVANCE, "slot": 0},
        {"op": Op.ADVANCE, "slot": 0},
        {"op": Op.GERMINATE, "slot": 1, "blueprint": big, "alpha_target": 2},
        {"op": Op.ADVANCE, "slot": 1},
        {"op": Op.ADVANCE, "slot": 1},
        *[{}] * 62,
        {"op": Op.PRUNE, "slot": 0} if prune else {},
        {"op": Op.ADVANCE, "slot": 1},
        *[{}] * (epochs_after - 2),
        {"op": Op.FOSSILIZE, "slot": 1},
        {},
        {},
    ]
    states = [env.reset()]
    env.population.helper[:] = helper
    for heads in plan[: env.max_epochs]:
        states.append(act(env, states[-1], **heads))
    return states, env


@pytest.mark.parametrize("delay", [2, 40])
def test_credit_of_a_helper_that_was_pruned(delay):
    states, _ = scaffolded(delay)
    metrics = [state["metrics"] for state in states]
    peak = max(m["interaction"][0, 1, 0].item() for m in metrics)
    assert peak > 0.1
    credits = [m["pending_hindsight_credit"][0].tolist() for m in metrics]
    expected = min(0.1 * peak, 0.2)
    assert credits[-3] == pytest.approx([expected, 0.0, 0.0], rel=1e-4)
    assert not any(any(credit) for credit in (*credits[:-3], *credits[-2:]))
    assert metrics[-3]["hindsight_delay"][0].tolist() == [delay, 0, 0]


def test_a_helper_that_lives_has_no_delay():
    states, _ = scaffolded(10, prune=False)
    metrics = states[-3]["metrics"]
    assert metrics["pending_hindsight_credit"][0, 0] > 0
    assert metrics["hindsight_delay"][0].tolist() == [0, 0, 0]


def test_the_peak_outlives_the_helper_but_not_the_seed_that_was_helped():
    _, env = scaffolded(20)
    slots = env.state.slots
    assert slots.peak[0, 1, 0] > 0
    slots.empty(torch.tensor([[False, True, False]]), Stage.PRUNED)
    assert not slots.peak[0, 1].any()
    assert slots.peak[0, 0, 1] == 0  # cleared with the helper: its own row


def test_peaks_are_kept_by_row_and_start_over_at_a_reset():
    _, env = scaffolded(20)
    env.reset()
    assert not env.state.slots.peak.any()
    assert (env.state.slots.helper_gone == -1).all()
    assert not env.state.pending_hindsight_credit.any()


@pytest.mark.parametrize("time_limit", ["terminate", "truncate"])
def test_credit_of_the_last_step_is_paid_in_it(time_limit):
    """All that is earned is paid, whenever the helped seed is fossilized."""
    states, _ = scaffolded(10)
    earned = states[-3]["metrics", "pending_hindsight_credit"].sum()
    env = MorphogenesisEnv(
        "scaffold", num_envs=1, seed=0, max_epochs=len(states) - 3, time_limit=time_limit
    )
    replayed = scaffolded(10, env=env)[0][-1]
    assert replayed["done"].all()
    assert earned > 0
    assert replayed["reward_terms", "hindsight"].item() == pytest.approx(earned.item())
    assert not replayed["metrics", "pending_hindsight_credit"].any()
    assert not replayed["metrics", "hindsight_delay"].any()


class PlainCredit:
    """Peaks and credit of one row, from what its metrics show.

    Args:
        answers: over which an accuracy is counted; None where it is exact.
    """

    def __init__(self, answers: int | None) -> None:
        self.answers = answers
        self.peak: dict[tuple[int, int], float] = {}
        self.left: dict[tuple[int, int], int] = {}

    def noise(self, metrics: dict, i: int, j: int) -> float:
        """Standard error of an interaction; the accuracies follow from what is shown."""
        if self.answers is None:
            return 0.0
        whole = metrics["val_accuracy"][0]
        alone = [whole - metrics["contribution"][slot] for slot in (i, j)]
        shares = [whole, *alone, metrics["interaction"][i][j] - whole + sum(alone)]
        return sum(p * (100 - p) / self.answers for p in shares) ** 0.5

    def step(self, epoch: int, before: list[int], metrics: dict) -> dict[int, tuple[float, int]]:
        """Credit and delay by slot, after a step from these stages."""
        stage, contribution = metrics["stage"], metrics["contribution"]
        for pair in list(self.peak):
            helped, helper = pair
            if stage[helped] == Stage.PRUNED and before[helped] != Stage.PRUNED:
                del self.peak[pair]
            elif stage[helper] == Stage.PRUNED and pair not in self.left:
                self.left[pair] = epoch
        for helped in range(3):
            for helper in range(3):
                found = metrics["interaction"][helped][helper]
                if found <= 2 * self.noise(metrics, helped, helper):
                    continue
                if found > max(self.peak.get((helped, helper), 0.0), 1e-4):
                    self.peak[helped, helper] = found
                    self.left.pop((helped, helper), None)
        credit = {}
        for slot in range(3):
            new = stage[slot] == Stage.FOSSILIZED and before[slot] != Stage.FOSSILIZED
            if new and contribution[slot] > 0:
                earned = {j: 0.1 * p for (i, j), p in self.peak.items() if i == slot}
                scale = min(1.0, 0.2 / max(sum(earned.values()), 1e-9))
                for helper, points in earned.items():
                    since = self.left.get((slot, helper))
                    credit[helper] = (points * scale, 0 if since is None else epoch - since)
        return credit


@pytest.mark.parametrize("task", ["scaffold", "digits"])
def test_credit_follows_from_what_the_metrics_show(task):
    """Through long random play, on formulas and on real hosts."""
    env = (
        MorphogenesisEnv("scaffold", num_envs=120, seed=0)
        if task == "scaffold"
        else small_env(num_envs=96, max_epochs=60, validation_size=500, batches_per_epoch=5)
    )
    generator = torch.Generator().manual_seed(1)
    rows = [PlainCredit(env.validation_size) for _ in range(env.num_envs)]
    states, credits = [env.reset()], 0
    for epoch in range(env.max_epochs):
        states.append(act(env, states[-1], **legal_action(states[-1], generator)))
        for i, row in enumerate(rows):
            before = states[-2]["metrics", "stage"][i].tolist()
            metrics = {k: v[i].tolist() for k, v in states[-1]["metrics"].items()}
            wanted = row.step(epoch, before, metrics)
            if epoch + 1 == env.max_epochs:  # paid at once
                wanted = {}
            for slot in range(3):
                credit, delay = wanted.get(slot, (0.0, 0))
                found = metrics["pending_hindsight_credit"][slot]
                assert found == pytest.approx(credit, abs=1e-5), (epoch, i, slot)
                assert metrics["hindsight_delay"][slot] == delay, (epoch, i, slot)
                credits += credit > 0
    assert credits >= 3
