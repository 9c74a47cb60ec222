"""Every feature against plain Python math, and what the history remembers."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from envs.actions import Algorithm, AlphaMode, Op, Stage
from envs.observation import (
    ACTION_FEEDBACK,
    ROW_FEATURES,
    SLOT_FEATURES,
    compute_observation,
    feature_columns,
    feature_names,
)
from envs.state import History, Slots
from tests.support.states import CPU, make_state, set_fields

LOSSES, ACCURACIES = [2.0, 1.8, 1.9, 1.2, 1.0], [10.0, 14.0, 12.0, 20.0, 26.0]


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def history(losses: list[float], accuracies: list[float]) -> History:
    """One row whose first entry is the validation at reset."""
    past = History.starting(column(losses[0]), column(accuracies[0]))
    for loss, accuracy in zip(losses[1:], accuracies[1:], strict=True):
        past = past.recorded(column(loss), column(accuracy))
    return past


def make(num_slots: int = 1, **values) -> Slots:
    """One row of slots that hold a seed in HOLDING, but for what is named."""
    slots = Slots.dormant(1, num_slots, CPU)
    set_fields(slots, {"stage": Stage.HOLDING, "blueprint": 1, **values})
    return slots


MAX_EPOCHS, BUDGET = 50, 1000


def features(past: History | None = None, slots: Slots | None = None, **row) -> dict[str, float]:
    """The observation of one row, by name."""
    state = make_state(slots, past or history([1.0], [10.0]), **row)
    seen = compute_observation(state, max_epochs=MAX_EPOCHS, parameter_budget=BUDGET)
    names = feature_names(state.slots.stage.shape[1])
    assert seen.shape == (1, len(names))
    assert seen.dtype == torch.float32
    return dict(zip(names, seen[0].tolist(), strict=True))


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_slots", [1, 3, 5])
def test_feature_names(num_slots):
    names = feature_names(num_slots)
    assert len(names) == len(set(names)) == 25 + 29 * num_slots
    assert names[:25] == tuple(ROW_FEATURES)
    assert names[25:54] == tuple(f"slot0_{name}" for name in SLOT_FEATURES)


@pytest.mark.parametrize("num_slots", [3, 5])
def test_columns_are_found_by_name(num_slots):
    names = feature_names(num_slots)
    assert feature_columns(*names, num_slots=num_slots) == list(range(len(names)))
    assert feature_columns(*ACTION_FEEDBACK) == list(range(18, 25))
    assert feature_columns("slot2_alpha", "epoch_progress") == [25 + 2 * 29 + 11, 0]


@pytest.mark.parametrize("name", ["slot3_alpha", "accuracy"])
def test_an_unknown_feature_is_refused_with_a_near_one(name):
    near = "slot2_alpha" if name.startswith("slot") else "accuracy_norm"
    with pytest.raises(ValueError, match=f"got '{name}', near '{near}'"):
        feature_columns(name)


def test_order_of_the_features():
    assert " ".join(ROW_FEATURES) == (
        "epoch_progress loss_norm loss_delta_norm accuracy_norm accuracy_delta_norm plateau_norm "
        "host_stabilized loss_trend loss_volatility accuracy_trend accuracy_volatility "
        "best_accuracy_norm best_loss_norm params_utilization slot_utilization "
        "num_training_norm num_blending_norm num_holding_norm last_action_success "
        "last_action_op_wait last_action_op_germinate last_action_op_set_alpha_target "
        "last_action_op_prune last_action_op_fossilize last_action_op_advance"
    )
    assert " ".join(SLOT_FEATURES) == (
        "is_active stage_unknown stage_dormant stage_germinated stage_training stage_blending "
        "stage_holding stage_fossilized stage_pruned stage_embargoed stage_resetting alpha "
        "alpha_target alpha_mode_norm alpha_velocity time_to_target_norm alpha_algorithm_norm "
        "contribution_norm contribution_velocity_norm epochs_in_stage_norm gradient_norm_norm "
        "gradient_health has_vanishing has_exploding interaction_sum_norm boost_received_norm "
        "upstream_alpha_norm downstream_alpha_norm counterfactual_fresh"
    )


# --- base features ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("loss_norm", math.log(2) / math.log(11)),
        ("loss_delta_norm", -0.2 / 2),
        ("accuracy_norm", 0.26),
        ("accuracy_delta_norm", 0.6),
        ("plateau_norm", 0.0),
        ("host_stabilized", 0.0),
        ("loss_trend", (1.0 - 2.0) / 4 / 2),
        ("loss_volatility", math.log(1 + statistics.pstdev(LOSSES)) / math.log(3)),
        ("accuracy_trend", (26.0 - 10.0) / 4 / 10),
        ("accuracy_volatility", statistics.pstdev(ACCURACIES) / 30),
        ("best_accuracy_norm", 0.26),
        ("best_loss_norm", math.log(2) / math.log(11)),
    ],
)
def test_base_feature(name, want):
    assert features(history(LOSSES, ACCURACIES))[name] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "losses", "accuracies", "want"),
    [
        ("loss_norm", [1e6], [0.0], 1.5),
        ("best_loss_norm", [1e6], [0.0], 1.5),
        ("loss_delta_norm", [9.0, 1.0], [0.0, 0.0], -1.0),
        ("loss_delta_norm", [1.0, 9.0], [0.0, 0.0], 1.0),
        ("accuracy_delta_norm", [1.0, 1.0], [0.0, 50.0], 1.0),
        ("accuracy_delta_norm", [1.0, 1.0], [50.0, 0.0], -1.0),
        ("loss_trend", [1.0, 99.0], [0.0, 0.0], 1.0),
        ("loss_trend", [99.0, 1.0], [0.0, 0.0], -1.0),
        ("accuracy_trend", [1.0] * 2, [0.0, 100.0], 1.0),
        ("accuracy_volatility", [1.0] * 3, [0.0, 0.0, 100.0], 1.0),
        ("loss_volatility", [0.0, 1e4], [0.0] * 2, 1.5),
    ],
)
def test_base_feature_is_clamped(name, losses, accuracies, want):
    assert features(history(losses, accuracies))[name] == want


def test_best_values_are_kept():
    seen = features(history([2.0, 1.0, 3.0], [10.0, 40.0, 20.0]))
    assert seen["best_accuracy_norm"] == pytest.approx(0.4)
    assert seen["best_loss_norm"] == pytest.approx(math.log(2) / math.log(11))


def test_missing_history_counts_as_no_change():
    seen = features(history([2.0], [30.0]))
    for name in ("loss_delta_norm", "accuracy_delta_norm", "loss_trend", "accuracy_trend"):
        assert seen[name] == 0
    assert seen["loss_volatility"] == seen["accuracy_volatility"] == seen["plateau_norm"] == 0
    # One change among four, the others nothing.
    seen = features(history([2.0, 1.0], [30.0, 34.0]))
    assert seen["loss_trend"] == pytest.approx(-1 / 4 / 2)
    assert seen["accuracy_trend"] == pytest.approx(4 / 4 / 10)
    assert seen["accuracy_volatility"] == pytest.approx(statistics.pstdev([30] * 4 + [34]) / 30)


def test_only_the_last_five_epochs_are_looked_at():
    old = history([50.0, 7.0, *LOSSES], [90.0, 0.0, *ACCURACIES])
    new = history(LOSSES, ACCURACIES)
    assert torch.equal(old.losses, new.losses)
    assert torch.equal(old.accuracies, new.accuracies)
    for name in ("loss_trend", "loss_volatility", "accuracy_trend", "accuracy_volatility"):
        assert features(old)[name] == features(new)[name]


@pytest.mark.parametrize(("epoch", "want"), [(0, 0.0), (18, 0.36), (50, 1.0)])
def test_epoch_progress(epoch, want):
    assert features(epoch=epoch)["epoch_progress"] == pytest.approx(want)


@pytest.mark.parametrize(
    ("params", "want"),
    [([0, 0], 0), ([90, 9], math.log(100) / math.log(1001)), ([0, 1000], 1), ([10**5, 0], 1)],
)
def test_params_utilization(params, want):
    seen = features(slots=make(2), seed_params=[params])
    assert seen["params_utilization"] == pytest.approx(want)


def test_slot_counts():
    slots = make(4, stage=[[Stage.TRAINING, Stage.BLENDING, Stage.BLENDING, Stage.PRUNED]])
    slots.blueprint = torch.tensor([[1, 2, 3, -1]])
    seen = features(slots=slots)
    assert seen["slot_utilization"] == 0.75
    assert seen["num_training_norm"] == 0.25
    assert seen["num_blending_norm"] == 0.5
    assert seen["num_holding_norm"] == 0
    assert features(slots=make(2, stage=[[Stage.HOLDING, 6]]))["num_holding_norm"] == 0.5


@pytest.mark.parametrize("success", [False, True])
@pytest.mark.parametrize("op", Op)
def test_last_action(op, success):
    seen = list(features(chosen_op=int(op), success=success).values())
    assert seen[18] == success
    assert seen[19:25] == [float(each == op) for each in Op]


# --- history ---------------------------------------------------------------------------------


def test_plateau_measures_from_the_last_notable_rise():
    past = history([1.0], [10.0])
    seen = []
    # Small rises add up: 10.4 is no rise over 10, 10.6 is one, and 11.1 is none over 10.6.
    for accuracy in [10.4, 10.6, 11.0, 11.1, 5.0, 11.2, 11.3]:
        past = past.recorded(column(1.0), column(accuracy))
        seen.append(past.plateau_epochs.item())
    assert seen == [1, 0, 1, 2, 3, 0, 1]
    assert features(past)["plateau_norm"] == pytest.approx(1 / 20)


def test_plateau_is_exactly_more_than_half_a_point():
    assert history([1.0] * 2, [10.0, 10.5]).plateau_epochs.item() == 1


def test_plateau_is_full_after_20_epochs():
    assert features(history([1.0] * 20, [1.0] * 20))["plateau_norm"] == pytest.approx(0.95)
    assert features(history([1.0] * 40, [1.0] * 40))["plateau_norm"] == 1


@pytest.mark.parametrize(
    ("losses", "want"),
    [
        ([1.0, 1.0, 1.0], 0),  # two epochs
        ([1.0, 1.0, 1.0, 1.0], 1),
        ([1.0, 0.98, 0.96, 0.94], 1),  # about 2 % each
        ([1.0, 0.96, 0.92, 0.88], 0),  # over 4 % each
        ([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], 0),  # broken off
        ([1.0, 2.0, 3.0, 4.0], 1),  # getting worse is no improvement
        ([1.0, 1.0, 1.0, 1.0, 0.5, 0.2], 1),  # latched
    ],
)
def test_host_stabilized(losses, want):
    assert features(history(losses, [0.0] * len(losses)))["host_stabilized"] == want


def test_recording_leaves_the_old_history_alone():
    past = history([2.0], [10.0])
    before = past.losses.clone(), past.accuracies.clone()
    past.recorded(column(1.0), column(90.0))
    assert torch.equal(past.losses, before[0])
    assert torch.equal(past.accuracies, before[1])


# --- slot features ---------------------------------------------------------------------------


def test_dormant_slot_is_zeros():
    # Whatever lies about in its fields.
    slots = make(stage=Stage.DORMANT, blueprint=-1, clock=9, ramp_target=1.0)
    slots.gradient_norm[:] = math.nan
    assert list(features(slots=slots).values())[25:] == [0.0] * 29


@pytest.mark.parametrize("stage", [Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING])
def test_cool_down_shows_stage_and_clock_only(stage):
    slots = make(stage=stage, blueprint=-1, clock=3)
    seen = {k: v for k, v in list(features(slots=slots).items())[25:] if v != 0}
    assert seen == {
        "slot0_is_active": 1,
        f"slot0_stage_{stage.name.lower()}": 1,
        "slot0_epochs_in_stage_norm": pytest.approx(3 / 50),
    }


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage != Stage.DORMANT])
def test_stage_one_hot(stage):
    seen = list(features(slots=make(stage=stage)).values())[25:]
    assert seen[0] == 1
    assert seen[1:11] == [float(each == stage) for each in range(10)]


@pytest.mark.parametrize(
    ("name", "field", "value", "want"),
    [
        ("alpha", "alpha", 0.7, 0.7),
        ("alpha_target", "ramp_target", 0.5, 0.5),
        ("alpha_mode_norm", "alpha_mode", AlphaMode.HOLD, 0),
        ("alpha_mode_norm", "alpha_mode", AlphaMode.UP, 0.5),
        ("alpha_mode_norm", "alpha_mode", AlphaMode.DOWN, 1),
        ("alpha_velocity", "alpha_velocity", -0.25, -0.25),
        ("alpha_velocity", "alpha_velocity", 2.0, 1.0),
        ("alpha_velocity", "alpha_velocity", -2.0, -1.0),
        ("alpha_algorithm_norm", "algorithm", Algorithm.ADD, 0),
        ("alpha_algorithm_norm", "algorithm", Algorithm.MULTIPLY, 0.5),
        ("alpha_algorithm_norm", "algorithm", Algorithm.GATE, 1),
        ("contribution_norm", "contribution", 3.0, 0.3),
        ("contribution_norm", "contribution", 40.0, 1),
        ("contribution_norm", "contribution", -40.0, -1),
        ("contribution_velocity_norm", "contribution_change", -4.0, -0.4),
        ("contribution_velocity_norm", "contribution_change", 25.0, 1),
        ("contribution_velocity_norm", "contribution_change", -25.0, -1),
        ("epochs_in_stage_norm", "clock", 7, 0.14),
        ("epochs_in_stage_norm", "clock", 50, 1),
        ("epochs_in_stage_norm", "clock", 120, 1),
        ("gradient_norm_norm", "gradient_norm", 2.5, 0.25),
        ("gradient_norm_norm", "gradient_norm", 99.0, 1),
        ("gradient_norm_norm", "gradient_norm", math.inf, 1),
        ("has_vanishing", "gradient_norm", 0.0, 1),
        ("has_vanishing", "gradient_norm", 9e-5, 1),
        ("has_vanishing", "gradient_norm", 1.1e-4, 0),
        ("has_exploding", "gradient_norm", 10.0, 0),
        ("has_exploding", "gradient_norm", 10.1, 1),
        ("has_exploding", "gradient_norm", math.inf, 1),
        ("has_exploding", "gradient_norm", math.nan, 1),
        ("has_vanishing", "gradient_norm", math.nan, 0),
        ("counterfactual_fresh", "contribution_age", -1, 0),
        ("counterfactual_fresh", "contribution_age", 0, 1),
        ("counterfactual_fresh", "contribution_age", 3, 0.512),
        ("interaction_sum_norm", "alpha", 1.0, 0),
        ("boost_received_norm", "alpha", 1.0, 0),
    ],
)
def test_slot_feature(name, field, value, want):
    seen = features(slots=make(**{field: value}))
    assert seen[f"slot0_{name}"] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("mode", [AlphaMode.UP, AlphaMode.DOWN])
@pytest.mark.parametrize(("done", "epochs"), [(0, 8), (1, 3), (4, 5)])
def test_time_to_target(done, epochs, mode):
    slots = make(alpha_mode=mode, ramp_epochs=epochs, ramp_done=done)
    want = (epochs - done) / 8
    assert features(slots=slots)["slot0_time_to_target_norm"] == pytest.approx(want)


@pytest.mark.parametrize("stage", [Stage.GERMINATED, Stage.TRAINING, Stage.HOLDING])
def test_no_time_to_target_without_a_ramp(stage):
    # Before blending, the ramp that is to come is known but doesn't run.
    slots = make(stage=stage, ramp_epochs=8, ramp_done=0)
    assert features(slots=slots)["slot0_time_to_target_norm"] == 0


@pytest.mark.parametrize(
    "norm", [0.0, 1e-9, 1e-6, 3e-5, 1e-4, 1e-3, 0.5, 10.0, 200.0, 1e4, 1e6, math.inf, math.nan]
)
def test_gradient_health(norm):
    if not math.isfinite(norm) or norm == 0:
        want = 0.0
    else:
        off = max(0, math.log10(1e-3 / norm), math.log10(norm / 10))
        want = min(max(1 - off / 3, 0), 1)
    got = features(slots=make(gradient_norm=norm))["slot0_gradient_health"]
    assert got == pytest.approx(want, abs=1e-5)


def test_alpha_of_the_neighbours():
    alphas = [0.5, 0.7, 0.0, 1.0, 1.0, 0.5]
    seen = features(slots=make(6, alpha=[alphas]))
    for slot in range(6):
        upstream, downstream = sum(alphas[:slot]), sum(alphas[slot + 1 :])
        assert seen[f"slot{slot}_upstream_alpha_norm"] == pytest.approx(
            min(upstream, 3) / 3, abs=1e-6
        )
        assert seen[f"slot{slot}_downstream_alpha_norm"] == pytest.approx(
            min(downstream, 3) / 3, abs=1e-6
        )


def test_slots_lie_one_after_another():
    seen = list(features(slots=make(3, alpha=[[0.1, 0.2, 0.3]])).values())
    assert [seen[25 + 29 * slot + 11] for slot in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_everything_finite_and_in_range_for_extreme_values():
    extremes = [0.0, -1e30, 1e30, math.inf, math.nan]
    reals = ("gradient_norm", "contribution", "contribution_change", "alpha_velocity")
    for extreme in extremes:
        gradient = abs(extreme)
        values = {name: extreme for name in reals if math.isfinite(extreme)}
        slots = make(**{**values, "gradient_norm": gradient, "clock": 10**6})
        for feature in features(slots=slots).values():
            assert -1 <= feature <= 1.5
