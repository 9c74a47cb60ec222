"""Every term of the reward by hand, and what the terms can't be used for."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch

from envs.actions import Op, Stage
from envs.lifecycle import Applied
from envs.reward import REWARD_TERMS, RewardConfig, Transition
from envs.state import History, Slots
from tests.support.rewards import CONFIG, GAMMA, POTENTIAL
from tests.support.states import CPU, make_state, set_fields

SLOTS = 2
HOST_SIZE, BUDGET = 1000, 5000


def transition(config: RewardConfig, **changes) -> Transition:
    """One row in which nothing happens at 50 %, but for what is named.

    ``NAME_before`` and ``NAME`` are of the state around the step; ``accuracy`` in percent,
    ``params_share`` what the seeds' α-weighted parameters are of the host's.
    """
    states, rolled_back = [], changes.pop("rolled_back", [False])
    for suffix in ("_before", ""):

        def of(name: str, still: object, suffix: str = suffix) -> object:
            return changes.pop(name + suffix, still)

        slots = Slots.dormant(1, SLOTS, CPU)
        dormant = [[Stage.DORMANT] * SLOTS]
        set_fields(
            slots,
            {
                "stage": of("stage", dormant),
                "alpha": of("alpha", 0.0),
                "contribution": of("contribution", 0.0),
                "interaction": of("interaction", 0.0),
                "age": of("age", 0),
            },
        )
        accuracy = torch.tensor(of("accuracy", [50.0]))
        credit = of("credit", 0.0)
        history = History.starting(torch.ones(1), accuracy)
        set_fields(history, {"best_accuracy": of("best_accuracy", accuracy)})
        states.append(make_state(slots, history, pending_hindsight_credit=credit))
    before, after = states
    after.rolled_back = torch.tensor(rolled_back)
    if "params_share" in changes:
        after.slots.alpha = torch.tensor([[0.5, 0.0]])
        set_fields(after, {"seed_params": [[2 * HOST_SIZE * changes.pop("params_share")[0], 7.0]]})
    ends, terminated = changes.pop("last_epoch", [False]), changes.pop("terminated", [False])
    after.terminated = torch.tensor(terminated)
    after.truncated = torch.tensor(ends) & ~after.terminated
    still = {"op": [Op.WAIT], "fossilized": [[False] * SLOTS], "pruned": [[False] * SLOTS]}
    assert not set(changes) - set(still)
    done = {name: torch.tensor(value) for name, value in {**still, **changes}.items()}
    nowhere = torch.zeros(1, SLOTS, dtype=torch.bool)
    none = dict.fromkeys(("acted", "germinated", "gated"), nowhere)
    applied = Applied(torch.tensor([True]), **none, **done)
    return Transition(before, after, applied, config, HOST_SIZE, BUDGET)


def term(name: str, config: RewardConfig = CONFIG, **changes) -> float:
    value = REWARD_TERMS[name](transition(config, **changes))
    assert value.shape == (1,)
    assert value.dtype == torch.float32
    return value.item()


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_nothing_is_paid_while_nothing_happens(name):
    """But for the discount of the potentials: staying where it is costs 1 − γ of it."""
    expected = CONFIG.progress * (GAMMA - 1) * 0.5 if name == "progress" else 0.0
    assert term(name) == pytest.approx(expected, abs=1e-6)


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
    ("contribution", "want"),
    [
        (20.0, 0.1),
        (30.0, 0.15),
        (70.0, 0.15),
        (0.0, -0.05),
        (-10.0, -0.05 - 0.05),
        (1.0, 0.005),
    ],
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


@pytest.mark.parametrize(
    ("stages", "alphas", "seeds"),
    [
        ([Stage.BLENDING, Stage.HOLDING], [0.1, 0.7], 2),
        ([Stage.HOLDING, Stage.FOSSILIZED], [1.0, 1.0], 1),
        ([Stage.TRAINING, Stage.GERMINATED], [0.0, 0.0], 0),
    ],
)
def test_upkeep(stages, alphas, seeds):
    assert term("upkeep", stage=[stages], alpha=[alphas]) == pytest.approx(-0.04 * seeds)


@pytest.mark.parametrize(
    ("before", "after", "terminated", "change"),
    [
        (0.0, 4.0, False, GAMMA * 0.04),
        (4.0, 4.0, False, (GAMMA - 1) * 0.04),
        (4.0, 0.0, False, -0.04),
        (4.0, 6.0, True, -0.04),
        (-3.0, -9.0, False, 0.0),
        (10.0, 90.0, False, (GAMMA - 1) * 0.1),
    ],
)
def test_synergy(before, after, terminated, change):
    """Of each pair once; the diagonal is 0 in the environment."""
    pair = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    got = term(
        "synergy",
        interaction_before=before * pair,
        interaction=after * pair,
        terminated=[terminated],
    )
    assert got == pytest.approx(3 * change, abs=1e-6)


def test_hindsight():
    """What waits since the step before, whatever has come since."""
    assert term("hindsight", credit_before=[[0.05, 0.1]], credit=0.2) == pytest.approx(0.7 * 0.15)


@pytest.mark.parametrize("ends", ["terminated", "last_epoch"])
def test_hindsight_of_the_last_step_is_paid_in_it(ends):
    """The slots' 0.2 each beside what waits: no other step could pay it."""
    paid = term("hindsight", credit_before=[[0.05, 0.1]], credit=0.2, **{ends: [True]})
    assert paid == pytest.approx(0.7 * (0.15 + SLOTS * 0.2))


def test_outcome():
    case = {"best_accuracy": [80.0], "accuracy": [60.0], "params_share": [0.5]}
    used = (2 * 0.5 * HOST_SIZE + 7.0) / BUDGET
    assert term("outcome", **case) == 0
    assert term("outcome", last_epoch=[True], **case) == pytest.approx(0.8 - 0.6 * used)


@pytest.mark.parametrize(("age", "cost"), [(0, 0.15), (4, 0.15), (5, 0.0), (40, 0.0)])
def test_hasty_prune(age, cost):
    got = term("hasty_prune", age_before=[[age, 0]], pruned=[[True, False]])
    assert got == pytest.approx(-cost)


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


NO_WEIGHTS = ("mode", "gamma", "intervention")
WEIGHTS = [each.name for each in fields(RewardConfig) if each.name not in NO_WEIGHTS]


@pytest.mark.parametrize("gamma", [0.0, -0.5, 1.01, math.nan])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match=f"gamma must be .* above 0 and at most 1, got {gamma}"):
        RewardConfig(gamma=gamma)


def test_gamma_of_one():
    assert RewardConfig(gamma=1.0).gamma == 1


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_bad_weight(name, value):
    with pytest.raises(ValueError, match=f"weight {name} must be .* of at least 0, got {value}"):
        RewardConfig(**{name: value})


def test_bad_cost_of_an_op():
    with pytest.raises(ValueError, match=r"intervention\[PRUNE\] must be a number of at least 0"):
        RewardConfig(intervention={Op.PRUNE: -0.1})


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"reward mode must be .*shaped.*, got 'dense'"):
        RewardConfig(mode="dense")


TERM_OF = {
    "fossilize_cost": "fossilize",
    "fossilize_limit": "fossilize",
    "prune_limit": "prune",
    "bonus": "terminal",
    "size": "outcome",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_of_zero_drops_out(name):
    """In a step in which every term but those of no op pays something."""
    everything = {
        "accuracy_before": [20.0],
        "accuracy": [60.0],
        "stage_before": [[Stage.TRAINING, Stage.HOLDING]],
        "stage": [[Stage.BLENDING, Stage.FOSSILIZED]],
        "alpha_before": [[0.5, 0.2]],
        "fossilized": [[True, False]],
        "pruned": [[False, True]],
        "contribution_before": [[5.0, -3.0]],
        "contribution": [[-5.0 if name == "fossilize_cost" else 5.0, 2.0]],
        "last_epoch": [True],
        "params_share": [0.3],
        "interaction": torch.tensor([[0.0, 4.0], [4.0, 0.0]]),
        "credit_before": [[0.1, 0.0]],
        "best_accuracy": [0.0],
        "rolled_back": [True],
    }
    beside = {"fossilize_cost": "fossilize", "bonus": "terminal", "terminal": "bonus"}
    others = {beside[name]: 0.0} if name in beside else {}
    changed = TERM_OF.get(name, name)
    with_it, without = (
        term(changed, replace(CONFIG, **others, **{name: weight}), **everything)
        for weight in (0.5, 0.0)
    )
    assert with_it != 0
    assert without == pytest.approx(0.0, abs=1e-7)


def test_rows_are_apart():
    one = transition(CONFIG, accuracy=[60.0], op=[Op.PRUNE], pruned=[[True, False]])
    two = transition(CONFIG, accuracy=[30.0], terminated=[True], last_epoch=[True])
    before, after = one.before[[0, 0]], one.after[[0, 0]]
    before.replace(torch.tensor([False, True]), two.before[[0, 0]])
    after.replace(torch.tensor([False, True]), two.after[[0, 0]])
    applied = {
        name: torch.cat([value, getattr(two.applied, name)])
        for name, value in vars(one.applied).items()
    }
    both = Transition(before, after, Applied(**applied), CONFIG, HOST_SIZE, BUDGET)
    for formula in REWARD_TERMS.values():
        assert formula(both).tolist() == [formula(one).item(), formula(two).item()]
