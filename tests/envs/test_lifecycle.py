"""A seed's life: legality, transitions, α ramps, cool-downs and masks on small tensors."""

from __future__ import annotations

import copy
import math
from dataclasses import fields

import pytest
import torch

from envs.actions import (
    BLUEPRINTS,
    HEADS,
    Algorithm,
    AlphaCurve,
    AlphaMode,
    Op,
    Stage,
    Style,
    head_sizes,
)
from envs.lifecycle import (
    action_masks,
    advance_alpha,
    advance_clocks,
    alpha_curve,
    apply_action,
    check_action,
    legal_slots,
)
from envs.state import Slots

CPU = torch.device("cpu")
OFFERED = torch.tensor([name != "noop" and "lora" not in name for name in BLUEPRINTS])
CONV = BLUEPRINTS.index("conv_light")
OTHER = BLUEPRINTS.index("norm")
HOST_GRADIENT = 2.0
INSTANT, FAST, MEDIUM, SLOW = range(4)
HALF, SEVENTY, FULL = range(3)
LIVE = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]
MIXED = [Stage.BLENDING, Stage.HOLDING]


def make(num_rows: int = 1, num_slots: int = 1, **values) -> Slots:
    """Slots that hold nothing but what is named, the same in every slot or broadcast."""
    slots = Slots.dormant(num_rows, num_slots, CPU)
    for name, value in values.items():
        old = getattr(slots, name)
        setattr(slots, name, torch.as_tensor(value, dtype=old.dtype).expand(old.shape).clone())
    return slots


def seed(stage: Stage, alpha: float | None = None, **values) -> Slots:
    """One slot with a healthy seed that may do all that its stage allows."""
    if alpha is None:
        alpha = 0.7 if stage in MIXED or stage == Stage.FOSSILIZED else 0.0
    defaults = {
        "clock": 2,
        "blueprint": CONV if stage in LIVE else -1,
        "alpha": alpha,
        "ramp_target": 0.7,
        "ramp_epochs": 3,
        "gradient_norm": HOST_GRADIENT,
        "contribution": 5.0,
        "contribution_age": 0,
    }
    return make(stage=stage, **{**defaults, **values})


def act(slots: Slots, op: Op, *, strict: bool = False, **heads: int):
    """Apply one action to all rows."""
    num_rows = slots.stage.shape[0]
    action = {head: torch.full((num_rows,), heads.get(head, 0)) for head in HEADS}
    action["op"] = torch.full((num_rows,), int(op))
    if "blueprint" not in heads:
        action["blueprint"] = torch.full((num_rows,), CONV)
    return apply_action(slots, action, legal(slots, strict=strict), OFFERED)


def legal(slots: Slots, *, strict: bool = False) -> torch.Tensor:
    host = torch.full((slots.stage.shape[0],), HOST_GRADIENT)
    return legal_slots(slots, host, strict=strict)


def differing(old: Slots, new: Slots) -> set[str]:
    return {
        field.name
        for field in fields(Slots)
        if not torch.equal(getattr(old, field.name), getattr(new, field.name))
    }


def value(slots: Slots, name: str):
    return getattr(slots, name).item()


# --- legality --------------------------------------------------------------------------------

# Ops besides WAIT that are legal in mode HOLD; nothing is while α moves, but before blending
# and at rest in DORMANT α's mode plays no part.
HELD = {
    "DORMANT": {"GERMINATE"},
    "GERMINATED": {"PRUNE", "ADVANCE"},
    "TRAINING": {"PRUNE", "ADVANCE"},
    "BLENDING": {"SET_ALPHA_TARGET", "PRUNE", "ADVANCE"},
    "HOLDING": {"SET_ALPHA_TARGET", "PRUNE", "FOSSILIZE"},
}
MOVES = {"BLENDING", "HOLDING"}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("mode", AlphaMode)
@pytest.mark.parametrize("stage", Stage)
def test_legality(stage, mode, strict):
    allowed = HELD.get(stage.name, set())
    if mode != AlphaMode.HOLD and stage.name in MOVES:
        allowed = set()
    got = legal(seed(stage, alpha_mode=mode), strict=strict)
    assert {op.name for op in Op if got[0, op, 0]} == allowed | {"WAIT"}


@pytest.mark.parametrize("strict", [False, True])
def test_training_needs_an_epoch(strict):
    assert not legal(seed(Stage.TRAINING, clock=0), strict=strict)[0, Op.ADVANCE, 0]
    assert legal(seed(Stage.TRAINING, clock=1), strict=strict)[0, Op.ADVANCE, 0]


def test_fossilizing_needs_alpha():
    assert not legal(seed(Stage.HOLDING, alpha=0.0))[0, Op.FOSSILIZE, 0]


@pytest.mark.parametrize(
    ("norm", "legal_then"), [(0.0, False), (0.19, False), (0.21, True), (math.nan, False)]
)
def test_strict_gate_2(norm, legal_then):
    slots = seed(Stage.TRAINING, gradient_norm=norm)
    assert legal(slots, strict=True)[0, Op.ADVANCE, 0] == legal_then
    assert legal(slots)[0, Op.ADVANCE, 0]


@pytest.mark.parametrize(
    ("contribution", "age", "legal_then"),
    [(0.99, 0, False), (1.0, 0, True), (1.0, 3, True), (9.0, -1, False), (-3.0, 0, False)],
)
def test_strict_gate_5(contribution, age, legal_then):
    slots = seed(Stage.HOLDING, contribution=contribution, contribution_age=age)
    assert legal(slots, strict=True)[0, Op.FOSSILIZE, 0] == legal_then
    assert legal(slots)[0, Op.FOSSILIZE, 0]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("mode", AlphaMode)
@pytest.mark.parametrize("stage", Stage)
def test_refused_changes_nothing_and_legal_never_fails(stage, mode, op, strict):
    # A gradient and a contribution that only the permissive gates accept.
    slots = seed(stage, alpha_mode=mode, gradient_norm=0.1, contribution=0.5)
    old = copy.copy(slots)
    is_legal = legal(slots, strict=strict)[0, op, 0].item()
    applied = act(slots, op, strict=strict, alpha_speed=FAST)
    assert applied.success.item() is is_legal
    assert applied.op.item() == (op if is_legal else Op.WAIT)
    assert bool(differing(old, slots)) == (is_legal and op != Op.WAIT)
    if not is_legal:
        for flag in ("germinated", "gated", "fossilized", "pruned"):
            assert not getattr(applied, flag).any()


@pytest.mark.parametrize("name", ["noop", "lora", "lora_large"])
def test_blueprint_that_is_not_offered_is_refused(name):
    slots = make()
    old = copy.copy(slots)
    applied = act(slots, Op.GERMINATE, blueprint=BLUEPRINTS.index(name))
    assert not applied.success.any()
    assert not applied.germinated.any()
    assert not differing(old, slots)


def test_blueprint_matters_to_no_other_op():
    assert act(seed(Stage.GERMINATED), Op.ADVANCE, blueprint=0).success.all()
    assert act(make(), Op.WAIT, blueprint=0).success.all()


def test_only_the_chosen_slot_changes():
    slots = make(2, 3)
    action = {head: torch.zeros(2, dtype=torch.int64) for head in HEADS}
    action |= {"op": torch.tensor([Op.GERMINATE] * 2), "slot": torch.tensor([2, 0])}
    action["blueprint"] = torch.tensor([CONV, OTHER])
    apply_action(slots, action, legal(slots), OFFERED)
    assert slots.blueprint.tolist() == [[-1, -1, CONV], [OTHER, -1, -1]]
    dormant, germinated = int(Stage.DORMANT), int(Stage.GERMINATED)
    assert slots.stage.tolist() == [[dormant, dormant, germinated], [germinated, dormant, dormant]]


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


# --- masks and well-formedness ---------------------------------------------------------------


def test_action_masks():
    slots = make(2, 3)
    slots.stage = torch.tensor(
        [
            [Stage.DORMANT, Stage.TRAINING, Stage.FOSSILIZED],
            [Stage.PRUNED, Stage.RESETTING, Stage.FOSSILIZED],
        ]
    )
    slots.clock = torch.ones_like(slots.clock)
    masks = action_masks(legal(slots), OFFERED)
    assert list(masks) == list(HEADS)
    for head, size in head_sizes(3).items():
        assert masks[head].shape == ((2, 6, 3) if head == "slot" else (2, size))
        assert masks[head].dtype == torch.bool
        if head not in ("op", "slot", "blueprint"):
            assert masks[head].all()
    assert masks["op"].int().tolist() == [[1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 0, 0]]
    first = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert masks["slot"].int().tolist() == [first, [[1, 1, 1], *[[0, 0, 0]] * 5]]
    assert masks["blueprint"].tolist() == [OFFERED.tolist()] * 2
    assert not masks["blueprint"][:, 0].any()


def well_formed() -> dict[str, torch.Tensor]:
    return {head: torch.zeros(2, dtype=torch.int64) for head in HEADS}


def test_well_formed_action():
    action = well_formed()
    check_action(action, 2, head_sizes(3))
    largest = {head: size - 1 for head, size in head_sizes(3).items()}
    check_action({head: torch.full((2,), largest[head]) for head in HEADS}, 2, head_sizes(3))


@pytest.mark.parametrize("head", HEADS)
def test_missing_head(head):
    action = well_formed()
    del action[head]
    with pytest.raises(ValueError, match=f"lacks the head '{head}'"):
        check_action(action, 2, head_sizes(3))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
@pytest.mark.parametrize("head", HEADS)
def test_wrong_dtype(head, dtype):
    action = well_formed()
    action[head] = action[head].to(dtype)
    with pytest.raises(TypeError, match=f"'{head}' has dtype {dtype}; int64"):
        check_action(action, 2, head_sizes(3))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
@pytest.mark.parametrize("head", HEADS)
def test_wrong_shape(head, shape):
    action = well_formed()
    action[head] = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"'{head}' has shape .*\(2,\) is needed"):
        check_action(action, 2, head_sizes(3))


SIZES = {
    "op": 6,
    "slot": 3,
    "blueprint": 13,
    "style": 4,
    "tempo": 3,
    "alpha_target": 3,
    "alpha_speed": 4,
    "alpha_curve": 5,
}


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("too", ["small", "large"])
@pytest.mark.parametrize("head", HEADS)
def test_index_out_of_range(head, too, row):
    index = -1 if too == "small" else SIZES[head]
    action = well_formed()
    action[head][row] = index
    message = rf"'{head}' is {index} in row {row}; 0 to {SIZES[head] - 1} are allowed"
    with pytest.raises(ValueError, match=message):
        check_action(action, 2, head_sizes(3))
