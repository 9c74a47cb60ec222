"""A seed's life: every transition, clock and ramp against a table or a formula of its own."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from envs.actions import (
    Algorithm,
    AlphaCurve,
    AlphaMode,
    Op,
    Stage,
    Style,
)
from envs.lifecycle import (
    advance_alpha,
    advance_clocks,
    alpha_curve,
)
from tests.support.slots import (
    CONV,
    FAST,
    FULL,
    HALF,
    INSTANT,
    LIVE,
    MEDIUM,
    MIXED,
    SEVENTY,
    SLOW,
    act,
    differing,
    legal,
    make,
    seed,
    value,
)

# --- transitions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "op", "after"),
    [
        (Stage.DORMANT, Op.GERMINATE, Stage.GERMINATED),
        (Stage.GERMINATED, Op.ADVANCE, Stage.TRAINING),
        (Stage.TRAINING, Op.ADVANCE, Stage.BLENDING),
        (Stage.BLENDING, Op.ADVANCE, Stage.HOLDING),
        (Stage.HOLDING, Op.FOSSILIZE, Stage.FOSSILIZED),
        (Stage.GERMINATED, Op.PRUNE, Stage.PRUNED),
        (Stage.TRAINING, Op.PRUNE, Stage.PRUNED),
        (Stage.BLENDING, Op.PRUNE, Stage.PRUNED),
        (Stage.HOLDING, Op.PRUNE, Stage.PRUNED),
    ],
)
def test_transition(before, op, after):
    slots = seed(before)
    alpha = value(slots, "alpha")
    applied = act(slots, op, alpha_speed=INSTANT)
    assert applied.success.all()
    assert value(slots, "stage") == after
    assert value(slots, "clock") == 0
    assert value(slots, "blueprint") == (CONV if after in LIVE else -1)
    assert value(slots, "alpha") == (0.0 if after == Stage.PRUNED else alpha)
    assert applied.germinated.item() == (op == Op.GERMINATE)
    assert applied.fossilized.item() == (op == Op.FOSSILIZE)
    assert applied.pruned.item() == (op == Op.PRUNE)


@pytest.mark.parametrize("speed", range(4))
@pytest.mark.parametrize("stage", [Stage.GERMINATED, Stage.TRAINING])
def test_prune_before_blending_is_immediate(stage, speed):
    slots = seed(stage)
    act(slots, Op.PRUNE, alpha_speed=speed)
    assert not differing(make(stage=Stage.PRUNED), slots)


@pytest.mark.parametrize("mode", AlphaMode)
@pytest.mark.parametrize("speed", range(4))
def test_fossilized_is_never_pruned(mode, speed):
    slots = seed(Stage.FOSSILIZED, alpha_mode=mode)
    old = copy.copy(slots)
    assert not act(slots, Op.PRUNE, alpha_speed=speed).success.any()
    assert not differing(old, slots)


def test_cool_down_is_seen_1_5_1_times():
    slots = seed(Stage.HOLDING)
    act(slots, Op.PRUNE, alpha_speed=INSTANT)
    seen = []
    for _ in range(9):
        advance_clocks(slots)
        seen.append((Stage(value(slots, "stage")).name, value(slots, "clock")))
    embargoed = [("EMBARGOED", clock) for clock in range(1, 6)]
    dormant = ("DORMANT", 0)
    assert seen == [("PRUNED", 1), *embargoed, ("RESETTING", 1), dormant, dormant]
    assert not differing(make(), slots)


@pytest.mark.parametrize("stage", LIVE)
def test_clock_of_a_live_seed(stage):
    slots = seed(stage, clock=7)
    advance_clocks(slots)
    assert (value(slots, "stage"), value(slots, "clock")) == (stage, 8)


def test_whole_life():
    slots = make()
    seen = []
    for op in [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT, Op.WAIT, Op.ADVANCE, Op.FOSSILIZE]:
        assert act(slots, op, alpha_target=HALF, tempo=0).success.all()
        advance_alpha(slots)
        advance_clocks(slots)
        seen.append((Stage(value(slots, "stage")).name, round(value(slots, "alpha"), 4)))
    assert seen == [
        ("GERMINATED", 0.0),
        ("TRAINING", 0.0),
        ("BLENDING", 0.1667),
        ("BLENDING", 0.3333),
        ("BLENDING", 0.5),
        ("HOLDING", 0.5),
        ("FOSSILIZED", 0.5),
    ]


# --- α ---------------------------------------------------------------------------------------


def independent_curve(curve: AlphaCurve, t: float) -> float:
    if curve == AlphaCurve.LINEAR:
        return t
    if curve == AlphaCurve.COSINE:
        return (1 - math.cos(math.pi * t)) / 2
    steepness = {2: 6, 3: 12, 4: 24}[int(curve)]

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-steepness * (x - 0.5)))

    return (logistic(t) - logistic(0)) / (logistic(1) - logistic(0))


@pytest.mark.parametrize("curve", AlphaCurve)
def test_alpha_curve(curve):
    t = torch.linspace(0, 1, 25)
    got = alpha_curve(torch.full((25,), int(curve)), t).tolist()
    want = [independent_curve(curve, x) for x in t.tolist()]
    assert got == pytest.approx(want, abs=2e-6)
    assert got == sorted(got)
    assert (got[0], got[-1]) == pytest.approx((0, 1), abs=1e-6)


@pytest.mark.parametrize("style", Style)
@pytest.mark.parametrize("target", [HALF, SEVENTY, FULL])
@pytest.mark.parametrize("tempo", [0, 1, 2])
def test_first_ramp(tempo, target, style):
    slots = make()
    act(slots, Op.GERMINATE, tempo=tempo, alpha_target=target, style=style)
    slots.stage = torch.full_like(slots.stage, Stage.TRAINING)
    slots.clock = torch.ones_like(slots.clock)
    # What is chosen while advancing has no say.
    act(slots, Op.ADVANCE, tempo=(tempo + 1) % 3, alpha_target=(target + 1) % 3, alpha_curve=1)
    assert value(slots, "alpha") == 0
    epochs, goal = (3, 5, 8)[tempo], torch.tensor((0.5, 0.7, 1.0)[target]).item()
    curve = AlphaCurve.SIGMOID if style == Style.SIGMOID_ADD else AlphaCurve.LINEAR
    for epoch in range(1, epochs):
        advance_alpha(slots)
        want = goal * independent_curve(curve, epoch / epochs)
        assert value(slots, "alpha") == pytest.approx(want, abs=2e-6)
        assert value(slots, "alpha") > 0
        assert value(slots, "alpha_mode") == AlphaMode.UP
    advance_alpha(slots)
    assert value(slots, "alpha") == goal
    assert value(slots, "alpha_mode") == AlphaMode.HOLD
    held = copy.copy(slots)
    advance_alpha(slots)
    assert not differing(held, slots)


@pytest.mark.parametrize("curve", AlphaCurve)
@pytest.mark.parametrize(("speed", "epochs"), [(FAST, 3), (MEDIUM, 5), (SLOW, 8)])
@pytest.mark.parametrize("stage", MIXED)
@pytest.mark.parametrize(
    ("start", "target", "goal", "mode"),
    [(0.5, FULL, 1.0, AlphaMode.UP), (1.0, HALF, 0.5, AlphaMode.DOWN)],
)
def test_re_aim(start, target, goal, mode, stage, speed, epochs, curve):
    slots = seed(stage, alpha=start, clock=4)
    act(slots, Op.SET_ALPHA_TARGET, alpha_target=target, alpha_speed=speed, alpha_curve=curve)
    assert (value(slots, "stage"), value(slots, "clock")) == (stage, 4)
    for epoch in range(1, epochs):
        assert value(slots, "alpha_mode") == mode
        assert legal(slots)[0].any(1).nonzero().flatten().tolist() == [Op.WAIT]
        advance_alpha(slots)
        want = start + (goal - start) * independent_curve(curve, epoch / epochs)
        assert value(slots, "alpha") == pytest.approx(want, abs=2e-6)
    advance_alpha(slots)
    assert value(slots, "alpha") == goal
    assert (value(slots, "alpha_mode"), value(slots, "stage")) == (AlphaMode.HOLD, stage)


@pytest.mark.parametrize("stage", MIXED)
def test_instant(stage):
    slots = seed(stage, alpha=0.5)
    assert act(slots, Op.SET_ALPHA_TARGET, alpha_target=FULL, alpha_speed=INSTANT).success.all()
    assert value(slots, "alpha") == 1.0
    assert (value(slots, "alpha_mode"), value(slots, "stage")) == (AlphaMode.HOLD, stage)
    advance_alpha(slots)
    assert value(slots, "alpha") == 1.0


@pytest.mark.parametrize("speed", range(4))
@pytest.mark.parametrize("stage", MIXED)
def test_aiming_at_the_alpha_that_holds(stage, speed):
    slots = seed(stage, alpha=0.7)
    old = copy.copy(slots)
    heads = {"alpha_target": SEVENTY, "alpha_speed": speed, "style": Style.LINEAR_MULTIPLY}
    assert act(slots, Op.SET_ALPHA_TARGET, **heads).success.all()
    advance_alpha(slots)
    assert differing(old, slots) == {"algorithm"}


@pytest.mark.parametrize("curve", AlphaCurve)
@pytest.mark.parametrize(("speed", "epochs"), [(FAST, 3), (MEDIUM, 5), (SLOW, 8)])
@pytest.mark.parametrize("stage", MIXED)
def test_prune_with_a_ramp(stage, speed, epochs, curve):
    slots = seed(stage)
    applied = act(slots, Op.PRUNE, alpha_speed=speed, alpha_curve=curve)
    assert applied.pruned.all()
    assert value(slots, "clock") == (0 if stage == Stage.HOLDING else 2)  # a stage is entered
    start = value(slots, "alpha")
    for epoch in range(1, epochs):
        assert (value(slots, "stage"), value(slots, "blueprint")) == (Stage.BLENDING, CONV)
        assert value(slots, "alpha_mode") == AlphaMode.DOWN
        assert legal(slots)[0].any(1).nonzero().flatten().tolist() == [Op.WAIT]
        advance_alpha(slots)
        want = start * (1 - independent_curve(curve, epoch / epochs))
        assert value(slots, "alpha") == pytest.approx(want, abs=2e-6)
        assert value(slots, "alpha") > 0
    advance_alpha(slots)
    assert not differing(make(stage=Stage.PRUNED), slots)


# --- styles ----------------------------------------------------------------------------------

ALGORITHMS = {
    Style.LINEAR_ADD: Algorithm.ADD,
    Style.LINEAR_MULTIPLY: Algorithm.MULTIPLY,
    Style.SIGMOID_ADD: Algorithm.ADD,
    Style.GATED_GATE: Algorithm.GATE,
}


@pytest.mark.parametrize("style", Style)
def test_style_at_germination(style):
    slots = make(algorithm=Algorithm.GATE)
    applied = act(slots, Op.GERMINATE, style=style)
    assert value(slots, "algorithm") == ALGORITHMS[style]
    assert applied.gated.item() == (style == Style.GATED_GATE)


@pytest.mark.parametrize("before", Algorithm)
@pytest.mark.parametrize("style", Style)
def test_style_when_re_aiming(style, before):
    slots = seed(Stage.HOLDING, algorithm=before)
    applied = act(slots, Op.SET_ALPHA_TARGET, style=style)
    assert value(slots, "algorithm") == ALGORITHMS[style]
    assert applied.gated.item() == (style == Style.GATED_GATE and before != Algorithm.GATE)


@pytest.mark.parametrize("stage", [stage for stage in LIVE if stage != Stage.FOSSILIZED])
@pytest.mark.parametrize("op", [Op.WAIT, Op.PRUNE, Op.ADVANCE, Op.FOSSILIZE])
def test_other_ops_set_no_style(op, stage):
    slots = seed(stage)
    applied = act(slots, op, style=Style.GATED_GATE, alpha_speed=FAST)
    assert value(slots, "algorithm") == Algorithm.ADD
    assert not applied.gated.any()
