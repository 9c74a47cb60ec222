"""Every term of the reward by hand, and what the terms can't be used for."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from envs.actions import Op, Stage
from envs.reward import REWARD_TERMS, Outcome, RewardConfig, reward_terms

GAMMA = 0.995
SLOTS = 2
# The default weights are calibrated; these are the tests' own, each a different number.
CONFIG = RewardConfig(
    gamma=GAMMA,
    progress=5.0,
    stage=0.1,
    rent=0.03,
    shock=0.02,
    fossilize=0.5,
    fossilize_cost=0.05,
    prune=0.4,
    prune_limit=0.2,
    terminal=4.0,
    bonus=0.25,
)
POTENTIAL = {
    Stage.GERMINATED: 1.0,
    Stage.TRAINING: 2.0,
    Stage.BLENDING: 3.5,
    Stage.HOLDING: 5.5,
    Stage.FOSSILIZED: 6.0,
}


def outcome(**changes) -> Outcome:
    """One row in which nothing happens at 50 %, but for what is named."""
    still = {
        "accuracy_before": [50.0],
        "accuracy": [50.0],
        "stage_before": [[Stage.DORMANT] * SLOTS],
        "stage": [[Stage.DORMANT] * SLOTS],
        "alpha_before": [[0.0] * SLOTS],
        "alpha": [[0.0] * SLOTS],
        "params_share": [0.0],
        "op": [Op.WAIT],
        "fossilized": [[False] * SLOTS],
        "pruned": [[False] * SLOTS],
        "contribution_before": [[0.0] * SLOTS],
        "contribution": [[0.0] * SLOTS],
        "last_epoch": [False],
        "terminated": [False],
    }
    assert not set(changes) - set(still)
    return Outcome(**{name: torch.tensor(value) for name, value in {**still, **changes}.items()})


def term(name: str, config: RewardConfig = CONFIG, **changes) -> float:
    terms = reward_terms(outcome(**changes), config)
    assert terms[name].shape == (1,)
    return terms[name].item()


def test_every_term_is_there_for_every_row():
    terms = reward_terms(outcome(), RewardConfig())
    assert tuple(terms) == REWARD_TERMS
    assert all(each.shape == (1,) and each.dtype == torch.float32 for each in terms.values())


@pytest.mark.parametrize(("before", "after"), [(20.0, 60.0), (60.0, 20.0), (40.0, 40.0)])
def test_progress(before, after):
    got = term("progress", accuracy_before=[before], accuracy=[after])
    assert got == pytest.approx(5 * (GAMMA * after / 100 - before / 100), abs=1e-6)


def test_progress_at_termination():
    got = term("progress", accuracy_before=[20.0], accuracy=[60.0], terminated=[True])
    assert got == pytest.approx(-5 * 0.2)


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("after", Stage)
@pytest.mark.parametrize("before", Stage)
def test_stage(before, after, terminated):
    got = term(
        "stage",
        stage_before=[[before, Stage.HOLDING]],
        stage=[[after, Stage.HOLDING]],
        terminated=[terminated],
    )
    later = 0 if terminated else POTENTIAL.get(after, 0) + 5.5
    want = 0.1 * (GAMMA * later - POTENTIAL.get(before, 0) - 5.5)
    assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 8.0])
def test_rent(share):
    assert term("rent", params_share=[share]) == pytest.approx(-0.03 * math.log(1 + share))


def test_shock():
    got = term("shock", alpha_before=[[0.0, 0.7]], alpha=[[0.5, 0.4]])
    assert got == pytest.approx(-0.02 * (0.25 + 0.09))


@pytest.mark.parametrize(
    ("op", "cost"),
    [
        (Op.WAIT, 0),
        (Op.GERMINATE, 0.02),
        (Op.SET_ALPHA_TARGET, 0.005),
        (Op.PRUNE, 0.005),
        (Op.FOSSILIZE, 0.01),
        (Op.ADVANCE, 0),
    ],
)
def test_intervention(op, cost):
    assert term("intervention", op=[op]) == pytest.approx(-cost)


@pytest.mark.parametrize(
    ("contribution", "want"), [(20.0, 0.1), (0.0, -0.05), (-10.0, -0.05 - 0.05), (1.0, 0.005)]
)
def test_fossilize(contribution, want):
    heads = {"contribution": [[contribution, 30.0]]}
    assert term("fossilize", fossilized=[[True, False]], **heads) == pytest.approx(want)
    assert term("fossilize", **heads) == 0


@pytest.mark.parametrize(
    ("contribution", "want"),
    [(-10.0, 0.04), (10.0, -0.04), (0.0, 0.0), (-90.0, 0.08), (90.0, -0.08)],
)
def test_prune(contribution, want):
    heads = {"contribution_before": [[contribution, 5.0]]}
    assert term("prune", pruned=[[True, False]], **heads) == pytest.approx(want)
    assert term("prune", **heads) == 0


@pytest.mark.parametrize("contribution", [-0.1, -1.0, -20.0, -25.0, -100.0])
def test_planting_to_prune_never_pays(contribution):
    config = RewardConfig()
    case = {"pruned": [[True, False]], "contribution_before": [[contribution, 0.0]]}
    gain = term("prune", config, **case)
    costs = sum(term("intervention", config, op=[op]) for op in (Op.GERMINATE, Op.PRUNE))
    assert gain > 0
    assert gain + costs < 0


@pytest.mark.parametrize(
    ("contributions", "fossils", "bonuses"),
    [
        ([1.0, 5.0], [True, True], 2),
        ([0.99, 5.0], [True, True], 1),
        ([5.0, 5.0], [False, True], 1),
        ([-5.0, 0.0], [True, True], 0),
        ([5.0, 5.0], [False, False], 0),
    ],
)
def test_terminal(contributions, fossils, bonuses):
    stage = [[Stage.FOSSILIZED if fossil else Stage.HOLDING for fossil in fossils]]
    case = {"stage": stage, "contribution": [contributions], "accuracy": [64.0]}
    got = term("terminal", last_epoch=[True], **case)
    assert got == pytest.approx(4 * 0.64 + 0.25 * bonuses)
    assert term("terminal", **case) == 0


@pytest.mark.parametrize("terminated", [False, True])
@pytest.mark.parametrize("name", ["progress", "stage"])
def test_potentials_telescope(name, terminated):
    generator = torch.Generator().manual_seed(0)
    length = 30
    accuracies = (100 * torch.rand(length + 1, generator=generator)).tolist()
    stages = torch.randint(1, 10, (length + 1, SLOTS), generator=generator).tolist()

    def potential(t: int) -> float:
        if name == "progress":
            return 5 * accuracies[t] / 100
        return 0.1 * sum(POTENTIAL.get(Stage(stage), 0) for stage in stages[t])

    total = 0.0
    for t in range(length):
        total += GAMMA**t * term(
            name,
            accuracy_before=[accuracies[t]],
            accuracy=[accuracies[t + 1]],
            stage_before=[stages[t]],
            stage=[stages[t + 1]],
            terminated=[terminated and t == length - 1],
        )
    end = 0 if terminated else GAMMA**length * potential(length)
    assert total == pytest.approx(end - potential(0), abs=1e-5)


def test_gamma_is_the_configs():
    config = RewardConfig(gamma=0.9, progress=5.0)
    assert term("progress", config) == pytest.approx(5 * 0.5 * (0.9 - 1))


WEIGHTS = [each.name for each in fields(RewardConfig) if each.name not in ("gamma", "intervention")]


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.01, math.nan])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match=rf"gamma must lie in \(0, 1\], got {gamma}"):
        RewardConfig(gamma=gamma)


def test_gamma_of_one():
    assert RewardConfig(gamma=1.0).gamma == 1


@pytest.mark.parametrize("name", WEIGHTS)
def test_negative_weight(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got -0.1"):
        RewardConfig(**{name: -0.1})


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_of_zero_drops_out(name):
    assert getattr(RewardConfig(**{name: 0.0}), name) == 0


def test_rows_are_apart():
    one = outcome(accuracy=[60.0], op=[Op.PRUNE], pruned=[[True, False]])
    two = outcome(accuracy=[30.0], terminated=[True], last_epoch=[True])
    both = Outcome(
        **{
            each.name: torch.cat([getattr(one, each.name), getattr(two, each.name)])
            for each in fields(Outcome)
        }
    )
    together = reward_terms(both, CONFIG)
    for row, alone in enumerate([one, two]):
        for name, want in reward_terms(alone, CONFIG).items():
            assert together[name][row] == want[0]
