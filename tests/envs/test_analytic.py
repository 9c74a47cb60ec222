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
from envs.credit import contributions, interactions
from envs.populations.base import SlotInputs
from envs.populations.formula import FormulaPopulation, SeedCurve
from envs.registration import make_task
from envs.tasks.scaffold import CURVES
from tests.support.environments import act, legal_action

CPU = torch.device("cpu")
MIXED = (Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)


class PlainRow:
    """One row, seed by seed; a seed is (stage, name or None, α)."""

    def __init__(self, num_slots: int, helper: str) -> None:
        self.age = 0
        self.helper = helper
        self.learned = [0.0] * num_slots

    def before(self, seeds: list[tuple], slot: int) -> tuple[float, float]:
        """α of a helper, and α of a decoy, in the slot before."""
        if slot == 0:
            return 0.0, 0.0
        stage, name, alpha = seeds[slot - 1]
        if stage not in MIXED or CURVES[name].peak > 0:
            return 0.0, 0.0
        return (alpha, 0.0) if name == self.helper else (0.0, alpha)

    def train(self, seeds: list[tuple]) -> None:
        self.age += 1
        for slot, (stage, name, _) in enumerate(seeds):
            if stage == Stage.GERMINATED:
                self.learned[slot] = 0.0
            if stage not in MIXED or CURVES[name].peak == 0:
                continue
            helper, _ = self.before(seeds, slot)
            if helper > 0 or self.learned[slot] >= CURVES[name].helped:
                self.learned[slot] += 1.0

    def accuracy(self, seeds: list[tuple], without: tuple[int, ...] = ()) -> float:
        """With the α of the slots ``without`` forced to 0."""
        forced = [(g, n, 0.0 if i in without else a) for i, (g, n, a) in enumerate(seeds)]
        best, beside = 0.0, 0.0
        for slot, (stage, name, alpha) in enumerate(forced):
            if stage not in MIXED or CURVES[name].peak == 0:
                continue
            curve, learned = CURVES[name], self.learned[slot]
            helper, decoy = self.before(forced, slot)
            really, _ = self.before(seeds, slot)
            if learned >= curve.helped:
                share = 0.8 + 0.2 * min((learned - curve.helped) / curve.alone, 1)
                best = max(best, alpha * curve.peak * share * (1 - 0.03 * (helper + decoy)))
            else:
                beside += 6 * decoy + 6 * really
                if alpha > 0:
                    beside -= 6 * (really - helper)
        return 10 + 15 * (1 - math.exp(-self.age / 15)) + best + beside


def seeds_of(state, row: int) -> list[tuple]:
    stages = state["metrics", "stage"][row].tolist()
    blueprints = state["blueprint_indices"][row].tolist()
    alphas = state["metrics", "alpha"][row].tolist()
    names = [BLUEPRINTS[index] if index >= 0 else None for index in blueprints]
    return list(zip(stages, names, alphas, strict=True))


@pytest.mark.parametrize("gates", ["permissive", "strict"])
def test_environment_follows_the_formulas(gates):
    """Accuracy, loss, contributions, interactions and gradient norms of long random play."""
    env = MorphogenesisEnv("scaffold", num_envs=24, gates=gates, seed=0)
    generator = torch.Generator().manual_seed(3)
    state, seen, interactions = env.reset(), set(), 0
    helpers = [BLUEPRINTS[index] for index in env.population.helper.tolist()]
    assert set(helpers) == {name for name, curve in CURVES.items() if curve.peak == 0}
    rows = [PlainRow(3, helper) for helper in helpers]
    for _ in range(env.max_epochs):
        state = act(env, state, **legal_action(state, generator))
        assert state["last_action_success"].all()  # what the masks allow never fails
        metrics = state["metrics"]
        for i, row in enumerate(rows):
            seeds = seeds_of(state, i)
            row.train(seeds)
            accuracy = row.accuracy(seeds)
            assert metrics["val_accuracy"][i].item() == pytest.approx(accuracy, abs=1e-3)
            loss = math.log(10) * (100 - accuracy) / 90
            assert metrics["val_loss"][i].item() == pytest.approx(loss, abs=1e-4)
            for s, (stage, *_) in enumerate(seeds):
                trains = stage == Stage.TRAINING or stage in MIXED
                assert metrics["gradient_norm"][i, s].item() == 0.5 * trains
                if stage not in MIXED:
                    continue
                contribution = metrics["contribution"][i, s].item()
                alone = row.accuracy(seeds, (s,))
                assert contribution == pytest.approx(accuracy - alone, abs=2e-3)
                for j in range(s):
                    both = (
                        accuracy - alone - row.accuracy(seeds, (j,)) + row.accuracy(seeds, (j, s))
                    )
                    found = metrics["interaction"][i, s, j].item()
                    assert found == pytest.approx(both, abs=2e-3)
                    interactions += found > 1
            seen |= {stage for stage, *_ in seeds}
    assert seen == set(Stage) - {Stage.UNKNOWN}
    assert interactions > 10


HELPERS = [name for name, curve in CURVES.items() if curve.peak == 0]
KEYS, ROW = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)


def growth(stage: list[Stage], names: list[str], alpha: list[float]) -> SlotInputs:
    shape = (1, len(stage))
    return SlotInputs(
        torch.tensor([stage]),
        torch.tensor([[BLUEPRINTS.index(name) for name in names]]),
        torch.zeros(shape, dtype=torch.int64),
        torch.tensor([alpha]),
        torch.ones(1),
        torch.ones(shape),
    )


def hosts(helper: str = HELPERS[0]) -> FormulaPopulation:
    population = make_task("scaffold").make_population(1, 3, CPU)
    population.helper[:] = BLUEPRINTS.index(helper)
    return population


def accuracy(population: FormulaPopulation, now: SlotInputs) -> float:
    return population.validate(now, ROW, ablate=False).accuracy.item()


seeds = st.lists(
    st.tuples(
        st.sampled_from([Stage.TRAINING, *MIXED]), st.sampled_from(list(CURVES)), st.floats(0, 1)
    ),
    min_size=3,
    max_size=3,
)


@given(seeds=seeds, epochs=st.integers(0, 120))
def test_accuracy_stays_within_what_the_curves_allow(seeds, epochs):
    stages, names, alphas = zip(*seeds, strict=True)
    alphas = [0.0 if s == Stage.TRAINING else a for s, a in zip(stages, alphas, strict=True)]
    population, now = hosts(), growth(list(stages), list(names), alphas)
    for _ in range(epochs):
        population.train_epoch(now, KEYS, ROW)
    validation = population.validate(now, ROW, ablate=True)
    most = 25 + max(CURVES[name].peak for name in names) + 2 * 6
    assert 10 - 1e-4 <= validation.accuracy.item() <= most + 1e-3
    unmixed = torch.tensor([alphas]) == 0
    assert not contributions(validation.lost, 3)[unmixed].any()


@pytest.mark.parametrize("stage", MIXED)
@given(alpha=st.floats(0.05, 1), beside=st.floats(0.05, 1), epochs=st.integers(0, 61))
def test_only_the_interaction_tells_a_helper_from_a_decoy(stage, alpha, beside, epochs):
    """Until the learner is ripe: same loss, accuracy, contributions and gradient norms."""
    stages = [Stage.HOLDING, stage, Stage.DORMANT]
    now = growth(stages, [HELPERS[0], "conv_heavy", "noop"], [beside, alpha, 0.0])
    found = []
    for helper in HELPERS:
        population = hosts(helper)
        norms = [population.train_epoch(now, KEYS, ROW) for _ in range(epochs)]
        found.append((population.validate(now, ROW, ablate=True), norms))
    (helped, norms), (decoyed, others) = found
    torch.testing.assert_close(helped.loss, decoyed.loss)
    torch.testing.assert_close(helped.accuracy, decoyed.accuracy)
    torch.testing.assert_close(contributions(helped.lost, 3), contributions(decoyed.lost, 3))
    assert all(a[1].equal(b[1]) for a, b in zip(norms, others, strict=True))
    together = interactions(helped.lost, 3)[0, 0, 1].item()
    assert together == pytest.approx(6 * beside, abs=1e-3)
    assert interactions(decoyed.lost, 3)[0, 0, 1] == 0


def test_a_learner_is_ripe_after_its_epochs_beside_a_helper():
    stages = [Stage.HOLDING, Stage.BLENDING, Stage.DORMANT]
    helped = growth(stages, [HELPERS[0], "conv_heavy", "noop"], [0.5, 0.7, 0.0])
    alone = growth([Stage.DORMANT, *stages[1:]], ["noop", "conv_heavy", "noop"], [0.0, 0.7, 0.0])
    population = hosts()
    curve = CURVES["conv_heavy"]
    for epoch in range(int(curve.helped) + 40):
        # The last epochs as well as some in between without it.
        now = alone if epoch % 7 == 3 or epoch > 75 else helped
        population.train_epoch(now, KEYS, ROW)
    base = accuracy(population, growth([Stage.DORMANT] * 3, ["noop"] * 3, [0.0] * 3))
    learned = sum(epoch % 7 != 3 for epoch in range(73))
    assert learned >= curve.helped
    gain = accuracy(population, alone) - base
    assert 0.8 * 0.7 * curve.peak < gain <= 0.7 * curve.peak + 1e-3
    hindered = accuracy(population, helped) - base
    assert hindered == pytest.approx(gain * (1 - 0.03 * 0.5), abs=1e-3)


def test_finishing_early_never_speeds_learning():
    epochs = {}
    for stage in MIXED:
        population = hosts()
        now = growth([Stage.HOLDING, stage, stage], [HELPERS[0], "conv_heavy", "norm"], [1.0] * 3)
        base = accuracy(population, now)
        epochs[stage] = 0
        while accuracy(population, now) < base + 20:
            population.train_epoch(now, KEYS, ROW)
            epochs[stage] += 1
    assert len(set(epochs.values())) == 1


def test_the_helper_is_drawn_anew_in_every_episode():
    env = MorphogenesisEnv("scaffold", num_envs=400, seed=0)
    env.reset()
    first = env.population.helper.clone()
    env.reset()
    second = env.population.helper
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.1)
    shares = torch.bincount(second) / 400
    assert shares[shares > 0].tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    again = MorphogenesisEnv("scaffold", num_envs=400, seed=0)
    again.reset()
    assert again.population.helper.equal(first)


def test_replanting_and_resetting_forget():
    env = MorphogenesisEnv("scaffold", num_envs=1, seed=0)
    state = env.reset()
    env.population.helper[:] = BLUEPRINTS.index(HELPERS[0])
    heavy = BLUEPRINTS.index("conv_heavy")

    def grow(slot: int, blueprint: int) -> None:
        nonlocal state
        for op in (Op.GERMINATE, Op.ADVANCE, Op.ADVANCE):
            state = act(env, state, op=int(op), slot=slot, blueprint=blueprint, alpha_target=2)

    grow(0, BLUEPRINTS.index(HELPERS[0]))
    grow(1, heavy)
    for _ in range(30):
        state = act(env, state)
    state = act(env, state, op=int(Op.PRUNE), slot=1)
    for _ in range(7):
        state = act(env, state)
    grow(1, heavy)
    for _ in range(55):
        state = act(env, state)
    assert state["metrics", "val_accuracy"].item() < 40  # it starts from nothing again
    for _ in range(10):
        state = act(env, state)
    assert state["metrics", "val_accuracy"].item() > 60
    first = env.reset()
    assert not env.population._learned.any()
    assert first["metrics", "val_accuracy"].item() == 10


def test_rows_do_not_depend_on_each_other_or_on_their_number():
    generator = torch.Generator().manual_seed(0)
    many = MorphogenesisEnv("scaffold", num_envs=12, seed=1)
    few = MorphogenesisEnv("scaffold", num_envs=8, seed=1)
    state, others = many.reset(), few.reset()
    for _ in range(80):
        action = legal_action(state, generator)
        state = act(many, state, **action)
        others = act(few, others, **{head: index[:8] for head, index in action.items()})
        for key in others.keys(True, True):
            torch.testing.assert_close(state[key][:8], others[key], rtol=1e-5, atol=1e-5)


def test_count_of_parameters_includes_the_gate():
    population, (name, *_) = hosts(), HELPERS
    blueprint = torch.tensor([[-1, BLUEPRINTS.index(name), BLUEPRINTS.index("conv_heavy")]])
    for algorithm, gate in ((Algorithm.ADD, 0), (Algorithm.MULTIPLY, 0), (Algorithm.GATE, 20)):
        count = population.count_seed_params(blueprint, torch.full((1, 3), int(algorithm)))
        small, heavy = CURVES[name].params, CURVES["conv_heavy"].params
        assert count.tolist() == [[0, small + gate, heavy + gate]]


def test_curves_of_ones_own():
    curves = {
        "mlp": SeedCurve(params=7, peak=20.0, helped=2.0, alone=4.0),
        "lora": SeedCurve(params=3),
    }
    population = FormulaPopulation(curves, 10, 1, 2, CPU)
    offered = [BLUEPRINTS[index] for index in population.offered.nonzero().flatten().tolist()]
    assert set(offered) == set(curves)
    now = growth([Stage.FOSSILIZED] * 2, ["lora", "mlp"], [1.0, 1.0])
    nothing = growth([Stage.DORMANT] * 2, ["lora", "mlp"], [0.0, 0.0])
    gained = []
    for _ in range(8):
        population.train_epoch(now, KEYS, ROW)
        gained.append(accuracy(population, now) - accuracy(population, nothing))
    ripe = [0.97 * 20 * share for share in (0.8, 0.85, 0.9, 0.95, 1.0, 1.0, 1.0)]
    assert gained == pytest.approx([6.0, *ripe], abs=1e-3)


def test_curves_without_a_helper():
    with pytest.raises(ValueError, match=r"curves must have a candidate .* among \['mlp'\]"):
        FormulaPopulation({"mlp": SeedCurve(params=7, peak=20.0)}, 10, 1, 2, CPU)


@pytest.mark.parametrize("num_slots", [1, 2, 3])
def test_specs(num_slots):
    check_env_specs(MorphogenesisEnv("scaffold", num_envs=3, num_slots=num_slots, max_epochs=5))
