"""Every term of the reward by hand, and what the terms can't be used for."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch

from envs.actions import Op, Stage
from envs.lifecycle import Applied
from envs.reward import REWARD_TERMS, RewardConfig, Transition
from envs.state import History, Slots
from tests.support.environments import act, small_env
from tests.support.states import CPU, make_state, set_fields

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


HOST_SIZE = 1000


def transition(config: RewardConfig, **changes) -> Transition:
    """One row in which nothing happens at 50 %, but for what is named.

    ``NAME_before`` and ``NAME`` are of the state around the step; ``accuracy`` in percent,
    ``params_share`` what the seeds' α-weighted parameters are of the host's.
    """
    states = []
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
            },
        )
        accuracy = torch.tensor(of("accuracy", [50.0]))
        states.append(make_state(slots, History.starting(torch.ones(1), accuracy)))
    before, after = states
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
    applied = Applied(torch.tensor([True]), germinated=nowhere, gated=nowhere, **done)
    return Transition(before, after, applied, config, HOST_SIZE)


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


TERM_OF = {"fossilize_cost": "fossilize", "prune_limit": "prune", "bonus": "terminal"}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_of_zero_drops_out(name):
    """In a step in which every term but those of no op pays something."""
    everything = {
        "accuracy_before": [20.0],
        "accuracy": [60.0],
        "stage_before": [[Stage.HOLDING, Stage.TRAINING]],
        "stage": [[Stage.FOSSILIZED, Stage.BLENDING]],
        "alpha_before": [[0.5, 0.2]],
        "fossilized": [[True, False]],
        "pruned": [[False, True]],
        "contribution_before": [[5.0, -3.0]],
        "contribution": [[-5.0 if name == "fossilize_cost" else 5.0, 2.0]],
        "last_epoch": [True],
        "params_share": [0.3],
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
    both = Transition(before, after, Applied(**applied), CONFIG, HOST_SIZE)
    for formula in REWARD_TERMS.values():
        assert formula(both).tolist() == [formula(one).item(), formula(two).item()]


# --- through the environment -----------------------------------------------------------------

HOST_PARAMETERS = (8 + 16) + (8 * 16 + 32) + (16 * 32 + 64) + (32 * 10 + 10)
"""Of ``digits``: convolutions without bias, norms, classifier."""

A, W = Op.ADVANCE, Op.WAIT
G, T, P, F = Op.GERMINATE, Op.SET_ALPHA_TARGET, Op.PRUNE, Op.FOSSILIZE
LIVES = [
    [G, A, A, W, W, A, F, W, W, W],  # fossilized
    [G, A, A, W, W, P, W, W, W, W],  # pruned while it holds still in BLENDING
    [G, A, A, W, W, A, P, W, W, W],  # the same from HOLDING
    [G, P, W, W, W, W, W, W, G, W],  # too early, then refused in the cool-down
    [G, A, A, W, W, T, W, W, W, A],  # re-aimed
    [F, W, A, T, P, W, W, G, G, W],  # refused, planted late
]


def hand_computed(op: Op, old: dict, new: dict, gamma: float, last: bool) -> dict[str, float]:
    """All terms of one row with one slot, from the metrics before and after the step."""
    accuracy, contribution = new["val_accuracy"] / 100, new["contribution"]
    potential = [POTENTIAL.get(Stage(each["stage"]), 0) for each in (old, new)]
    share = new["alpha"] * new["seed_params"] / HOST_PARAMETERS
    bonus = 0.25 * (new["stage"] == Stage.FOSSILIZED and contribution >= 1)
    return {
        "progress": 5 * (gamma * accuracy - old["val_accuracy"] / 100),
        "stage": 0.1 * (gamma * potential[1] - potential[0]),
        "rent": -0.03 * math.log(1 + share),
        "shock": -0.02 * (new["alpha"] - old["alpha"]) ** 2,
        "intervention": -{G: 0.02, T: 0.005, P: 0.005, F: 0.01}.get(op, 0),
        "fossilize": (op == F) * (0.5 * contribution / 100 - 0.05 * (contribution <= 0)),
        "prune": (op == P) * 0.4 * min(max(-old["contribution"] / 100, -0.2), 0.2),
        "terminal": last * (4 * accuracy + bonus),
    }


@pytest.mark.parametrize("alpha_speed", [0, 1])
@pytest.mark.parametrize("time_limit", ["terminate", "truncate"])
def test_terms_follow_from_what_the_environment_shows(time_limit, alpha_speed):
    length = len(LIVES[0])
    env = small_env(
        num_envs=len(LIVES),
        num_slots=1,
        max_epochs=length,
        reward=CONFIG,
        time_limit=time_limit,
        validation_size=100,
        minibatch_size=32,
        batches_per_epoch=5,
    )
    states = [env.reset()]
    for ops in zip(*LIVES, strict=True):
        # The target matters to GERMINATE and to the SET_ALPHA_TARGET that aims elsewhere.
        target = 0 if T in ops else 2
        heads = {"blueprint": 7, "style": 0, "alpha_target": target, "alpha_speed": alpha_speed}
        states.append(act(env, states[-1], op=[int(op) for op in ops], **heads))

    paid = set()
    for t, (before, after) in enumerate(pairwise(states)):
        last = t == length - 1
        gamma = 0 if last and time_limit == "terminate" else GAMMA
        for row, life in enumerate(LIVES):
            old, new = (
                {name: value.item() for name, value in each["metrics"][row].items()}
                for each in (before, after)
            )
            op = Op(new["executed_op"])
            assert (op == life[t]) == after["last_action_success"][row].item()
            want = hand_computed(op, old, new, gamma, last)
            got = {name: after["reward_terms", name][row].item() for name in REWARD_TERMS}
            assert got == pytest.approx(want, abs=1e-5), (row, t)
            assert after["reward"][row].item() == pytest.approx(sum(want.values()), abs=1e-5)
            paid |= {name for name in got if got[name] != 0}
    assert paid == set(REWARD_TERMS)  # the case leaves none out
