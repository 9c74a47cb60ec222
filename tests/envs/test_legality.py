"""Which ops are legal where, what the masks show, and actions that are not well-formed."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from envs.actions import (
    BLUEPRINTS,
    HEADS,
    AlphaMode,
    Op,
    Stage,
    head_sizes,
)
from envs.lifecycle import (
    action_masks,
    apply_action,
    legal_slots,
)
from envs.step_inputs import check_action
from tests.support.slots import (
    CONV,
    FAST,
    OFFERED,
    OTHER,
    act,
    differing,
    legal,
    make,
    seed,
)

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


def test_strict_gate_2_is_about_the_rows_own_host():
    """Not about the mean over all rows, which would let the first one fail, the second pass."""
    slots = make(2, 1, stage=Stage.TRAINING, blueprint=CONV, clock=1, gradient_norm=0.5)
    here = legal_slots(slots, torch.tensor([1.0, 100.0]), strict=True)
    assert here[:, Op.ADVANCE, 0].tolist() == [True, False]


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
    with pytest.raises(
        ValueError, match=f"action must have the heads .*, got none called '{head}'"
    ):
        check_action(action, 2, head_sizes(3))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
@pytest.mark.parametrize("head", HEADS)
def test_wrong_dtype(head, dtype):
    action = well_formed()
    action[head] = action[head].to(dtype)
    with pytest.raises(TypeError, match=f"'{head}' must be int64, got {dtype}"):
        check_action(action, 2, head_sizes(3))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1)])
@pytest.mark.parametrize("head", HEADS)
def test_wrong_shape(head, shape):
    action = well_formed()
    action[head] = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"'{head}' must be of shape \[2\], .* got \["):
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
    message = rf"'{head}' must be 0 to {SIZES[head] - 1}, got {index} in row {row}"
    with pytest.raises(ValueError, match=message):
        check_action(action, 2, head_sizes(3))
