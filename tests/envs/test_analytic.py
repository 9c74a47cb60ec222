"""Hosts that are formulas, against the same formulas written for one row in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.envs.utils import check_env_specs

from envs import MorphogenesisEnv
from envs.actions import BLUEPRINTS, Algorithm, Op, Stage
from envs.attribution import contributions
from envs.populations.base import SlotInputs
from envs.populations.formula import FormulaPopulation, SeedCurve
from envs.registration import make_task
from envs.tasks.scaffold import CURVES, PLACES
from tests.support.environments import act, differences, legal_action

CPU = torch.device("cpu")
MIXED = (Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
FINISHED = (Stage.HOLDING, Stage.FOSSILIZED)


class PlainRow:
    """One row, seed by seed."""

    def __init__(self, num_slots: int) -> None:
        self.age = 0
        self.learned = [0.0] * num_slots

    def helper(self, seeds: list[tuple], slot: int) -> float:
        earlier = [alpha * CURVES[name].help for _, name, alpha in seeds[:slot] if name]
        return max(earlier, default=0.0)

    def train(self, seeds: list[tuple]) -> list[float]:
        """Δτ of every slot; ``seeds`` are (stage, name or None, α)."""
        self.age += 1
        steps = []
        for slot, (stage, name, alpha) in enumerate(seeds):
            if stage == Stage.GERMINATED:
                self.learned[slot] = 0.0
            speed = {Stage.TRAINING: 0.1, **dict.fromkeys(MIXED, alpha)}.get(stage, 0.0)
            rate = 1.0 if stage == Stage.FOSSILIZED else 0.75
            helper = self.helper(seeds, slot)
            ripe = name is not None and self.learned[slot] >= 0.75 * CURVES[name].epochs
            if stage in FINISHED or (stage in MIXED and ripe):
                speed *= 1 - helper / 2
            elif not ripe:
                speed *= 1 + 2 * helper
            steps.append(rate * speed)
            self.learned[slot] += rate * speed
        return steps

    def accuracy(self, seeds: list[tuple]) -> float:
        best = 0.0
        for slot, (stage, name, alpha) in enumerate(seeds):
            if stage not in MIXED:
                continue
            curve, helper = CURVES[name], self.helper(seeds, slot)
            gives = alpha * PLACES[slot] * curve.peak
            gives *= min(self.learned[slot] / curve.epochs, 1) ** 2
            if stage in FINISHED or self.learned[slot] >= 0.75 * curve.epochs:
                gives *= 1 - 0.15 * helper
            else:
                gives *= 1 + helper / 4
            best = max(best, gives)
        return 10 + 5 * (1 - math.exp(-self.age / 15)) + best


def seeds_of(state, row: int) -> list[tuple]:
    stages = state["metrics", "stage"][row].tolist()
    blueprints = state["blueprint_indices"][row].tolist()
    alphas = state["metrics", "alpha"][row].tolist()
    names = [BLUEPRINTS[index] if index >= 0 else None for index in blueprints]
    return list(zip(stages, names, alphas, strict=True))


@pytest.mark.parametrize("gates", ["permissive", "strict"])
def test_environment_follows_the_formulas(gates):
    """Accuracy, loss, contributions and gradient norms of long random play."""
    env = MorphogenesisEnv("scaffold", num_envs=24, gates=gates)
    generator = torch.Generator().manual_seed(3)
    rows = [PlainRow(3) for _ in range(env.num_envs)]
    state, seen = env.reset(), set()
    for _ in range(env.max_epochs):
        state = act(env, state, **legal_action(state, generator))
        assert state["last_action_success"].all()  # what the masks allow never fails
        metrics = state["metrics"]
        for i, row in enumerate(rows):
            seeds = seeds_of(state, i)
            steps = row.train(seeds)
            accuracy = row.accuracy(seeds)
            without = [
                row.accuracy([(g, n, 0.0 if j == s else a) for j, (g, n, a) in enumerate(seeds)])
                for s in range(3)
            ]
            assert metrics["val_accuracy"][i].item() == pytest.approx(accuracy, abs=1e-3)
            loss = math.log(10) * (100 - accuracy) / 90
            assert metrics["val_loss"][i].item() == pytest.approx(loss, abs=1e-4)
            assert metrics["gradient_norm"][i].tolist() == pytest.approx(steps, abs=1e-4)
            for s, (stage, *_) in enumerate(seeds):
                if stage in MIXED:
                    contribution = metrics["contribution"][i, s].item()
                    assert contribution == pytest.approx(accuracy - without[s], abs=2e-3)
            seen |= {stage for stage, *_ in seeds}
    assert seen == set(Stage) - {Stage.UNKNOWN}


def growth(
    stage: list[Stage], names: list[str], alpha: list[float], seed_lr: float = 0.75
) -> SlotInputs:
    shape = (1, len(stage))
    return SlotInputs(
        torch.tensor([stage]),
        torch.tensor([[BLUEPRINTS.index(name) for name in names]]),
        torch.zeros(shape, dtype=torch.int64),
        torch.tensor([alpha]),
        torch.ones(1),
        torch.full(shape, seed_lr),
    )


def hosts() -> FormulaPopulation:
    return make_task("scaffold").make_population(1, 3, CPU)


KEYS, ROW = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def accuracy(population: FormulaPopulation, now: SlotInputs) -> float:
    return population.validate(now, ROW, ablate=False).accuracy.item()


seeds = st.lists(
    st.tuples(
        st.sampled_from([Stage.TRAINING, *MIXED]), st.sampled_from(list(CURVES)), st.floats(0, 1)
    ),
    min_size=3,
    max_size=3,
)


@given(seeds=seeds, epochs=st.integers(0, 60), seed_lr=st.floats(0, 50))
def test_accuracy_stays_within_what_the_curves_allow(seeds, epochs, seed_lr):
    stages, names, alphas = zip(*seeds, strict=True)
    alphas = [0.0 if s == Stage.TRAINING else a for s, a in zip(stages, alphas, strict=True)]
    population, now = hosts(), growth(list(stages), list(names), alphas, seed_lr)
    for _ in range(epochs):
        _, step = population.train_epoch(now, KEYS, ROW)
        assert (step >= 0).all()
    validation = population.validate(now, ROW, ablate=True)
    most = 15 + 1.25 * max(CURVES[name].peak * p for name, p in zip(names, PLACES, strict=True))
    assert 10 - 1e-4 <= validation.accuracy.item() <= most + 1e-3
    unmixed = torch.tensor([alphas]) == 0
    assert not contributions(validation.lost, 3)[unmixed].any()


@given(alpha=st.floats(0.05, 1), helper_alpha=st.floats(0.05, 1), epochs=st.integers(1, 100))
def test_helper_and_blending_seed_have_a_positive_interaction_until_it_is_ripe(
    alpha, helper_alpha, epochs
):
    stages, names = [Stage.HOLDING, Stage.BLENDING, Stage.HOLDING], ["norm", "conv_heavy", "norm"]
    population, now, learned = hosts(), growth(stages, names, [helper_alpha, alpha, 0.0]), 0.0
    for _ in range(epochs):
        learned += population.train_epoch(now, KEYS, ROW)[1][0, 1].item()
    unripe = learned < 0.75 * CURVES["conv_heavy"].epochs - 0.01
    both, first, second, none = (
        accuracy(population, growth(stages, names, [a, b, 0.0]))
        for a, b in ((helper_alpha, alpha), (helper_alpha, 0), (0, alpha), (0, 0))
    )
    interaction = both - first - second + none
    if unripe and both > none + 0.01:
        assert interaction > 0
    stages[1] = Stage.FOSSILIZED
    finished = accuracy(population, growth(stages, names, [helper_alpha, alpha, 0.0]))
    alone = accuracy(population, growth(stages, names, [0.0, alpha, 0.0]))
    assert finished <= alone
    assert finished < alone or alone - none < 0.01


def test_a_helper_speeds_up_training_and_blending_and_slows_what_is_finished():
    steps = {}
    for stage in (Stage.TRAINING, *MIXED):
        for helper in (0.0, 1.0):
            alpha = 0.0 if stage == Stage.TRAINING else 1.0
            now = growth(
                [Stage.HOLDING, stage, stage], ["norm"] + ["conv_heavy"] * 2, [helper, alpha, alpha]
            )
            steps[stage, helper] = hosts().train_epoch(now, KEYS, ROW)[1][0, 1:].tolist()
    assert steps[Stage.TRAINING, 0.0] == pytest.approx([0.075, 0.075])
    assert steps[Stage.BLENDING, 0.0] == [0.75, 0.75]
    assert steps[Stage.TRAINING, 1.0] == pytest.approx([0.225, 0.225])
    assert steps[Stage.BLENDING, 1.0] == [2.25, 2.25]
    for stage in FINISHED:
        assert steps[stage, 0.0] == [0.75, 0.75]
        assert steps[stage, 1.0] == [0.375, 0.375]


def test_replanting_and_resetting_forget():
    env = MorphogenesisEnv("scaffold", num_envs=2)
    first = env.reset()
    heavy = {"blueprint": BLUEPRINTS.index("conv_heavy"), "alpha_target": 2}
    plan = [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, *[Op.WAIT] * 5, Op.PRUNE, *[Op.WAIT] * 7]
    runs = []
    for _ in range(2):
        state = None
        for _ in range(2):
            state = env.reset() if state is None else state
            seen = []
            for op in plan:
                state = act(env, state, op=int(op), **heavy)
                seen.append(state["metrics", "gradient_norm"].clone())
            runs.append(torch.stack(seen))
    assert all(run.equal(runs[0]) for run in runs)  # the second planting learns from 0, too
    assert runs[0].max() == 0.75
    again = env.reset()
    assert not differences(first, again)


def test_rows_do_not_depend_on_each_other_or_on_their_number():
    generator = torch.Generator().manual_seed(0)
    many = MorphogenesisEnv("scaffold", num_envs=12, seed=1)
    one = MorphogenesisEnv("scaffold", num_envs=1, seed=5)  # nothing is random: no seed matters
    state, alone = many.reset(), one.reset()
    for _ in range(80):
        action = legal_action(state, generator)
        state = act(many, state, **action)
        alone = act(one, alone, **{head: index[7] for head, index in action.items()})
        for key in alone.keys(True, True):
            torch.testing.assert_close(state[key][7:8], alone[key], rtol=1e-5, atol=1e-5)


def test_count_of_parameters_includes_the_gate():
    population = hosts()
    blueprint = torch.tensor([[-1, BLUEPRINTS.index("norm"), BLUEPRINTS.index("conv_heavy")]])
    for algorithm, gate in ((Algorithm.ADD, 0), (Algorithm.MULTIPLY, 0), (Algorithm.GATE, 20)):
        count = population.count_seed_params(blueprint, torch.full((1, 3), int(algorithm)))
        norm, heavy = CURVES["norm"].params, CURVES["conv_heavy"].params
        assert count.tolist() == [[0, norm + gate, heavy + gate]]


def test_curves_and_places_of_ones_own():
    curves = {"mlp": SeedCurve(peak=20.0, epochs=2.0, help=0.0, params=7)}
    population = FormulaPopulation(curves, [0.5], 10, 1, CPU)
    assert population.offered.nonzero().tolist() == [[BLUEPRINTS.index("mlp")]]
    now = growth([Stage.FOSSILIZED], ["mlp"], [1.0], seed_lr=1.0)
    gained = []
    for _ in range(3):
        population.train_epoch(now, KEYS, ROW)
        gained.append(
            accuracy(population, now)
            - accuracy(population, growth([Stage.DORMANT], ["mlp"], [0.0]))
        )
    assert gained == pytest.approx([2.5, 10, 10], abs=1e-4)


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_specs(num_slots):
    check_env_specs(MorphogenesisEnv("scaffold", num_envs=3, num_slots=num_slots, max_epochs=5))
