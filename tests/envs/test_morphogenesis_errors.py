"""Bad arguments and actions: refused with a message that helps, and without a trace."""

from __future__ import annotations

import pytest
import torch

from benchmarks.invariants import action, differences
from envs import feature_names
from envs.actions import BLUEPRINTS, HEADS, Op, head_sizes
from envs.observation import ACTION_FEEDBACK, feature_columns
from tests.support.environments import act, small_env

COUNTS = (
    "num_envs",
    "num_slots",
    "max_epochs",
    "batches_per_epoch",
    "minibatch_size",
    "validation_size",
    "counterfactual_every",
)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1, -64])
def test_counts_below_one(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*1.*got {value}$"):
        small_env(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, 1.0, 2.5, "3", [2]], ids=repr)
def test_counts_that_are_no_integers(name, value):
    with pytest.raises(TypeError) as error:
        small_env(**{name: value})
    assert f"{name} must be an integer" in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("name", ["num_envs", "num_slots", "counterfactual_every"])
def test_counts_that_are_none(name):
    with pytest.raises(TypeError, match=f"{name} must be an integer .*, got None"):
        small_env(**{name: None})


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("validation_size", 501, 500),
        ("minibatch_size", 1298, 1297),
        ("batches_per_epoch", 163, 162),  # of 8 images each
    ],
)
def test_counts_above_what_the_task_has(name, value, most):
    with pytest.raises(ValueError, match=rf"{name} must be .* from 1 to {most}.*got {value}$"):
        small_env(**{name: value})


def test_as_many_minibatches_as_the_data_has_are_allowed():
    env = small_env(num_envs=1, minibatch_size=648, batches_per_epoch=2)
    assert act(env, env.reset())["reward"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("task", "mnist", ["digits", "digits_full"]),
        ("gates", "loose", ["permissive", "strict", "hidden"]),
        ("time_limit", "end", ["terminate", "truncate"]),
    ],
)
def test_unknown_choices(name, value, allowed):
    with pytest.raises(ValueError, match=repr(value)) as error:
        small_env(**{name: value})
    assert name in str(error.value)
    assert all(choice in str(error.value) for choice in allowed)


@pytest.mark.parametrize(
    ("name", "value", "error_type"),
    [
        ("seed", -1, ValueError),
        ("seed", 2**63, ValueError),
        ("seed", 1.5, TypeError),
        ("reward", "shaped", TypeError),
    ],
)
def test_a_seed_or_reward_that_is_none(name, value, error_type):
    with pytest.raises(error_type, match=f"{name} must be .* got {value!r}"):
        small_env(**{name: value})


def one_head(head, index):
    """WAIT everywhere, with the head's index replaced; WAIT ignores all heads but the op."""
    return action(2).set(head, index)


OUT_OF_RANGE = [
    pytest.param(one_head(head, torch.tensor([0, value])), ValueError, head, id=f"{head}={value}")
    for head, size in head_sizes(3).items()
    for value in (-1, size)
]
MISSING = [pytest.param(action(2).exclude(h), ValueError, h, id=f"no {h}") for h in HEADS]
WRONG_DTYPE = [
    pytest.param(one_head(h, torch.zeros(2, dtype=d)), TypeError, h, id=f"{h} {d}")
    for h, d in [("op", torch.int32), ("slot", torch.float32), ("alpha_curve", torch.bool)]
]
WRONG_SHAPE = [
    pytest.param(one_head(h, torch.zeros(2, 1, dtype=torch.int64)), ValueError, h, id=f"{h} [2,1]")
    for h in ("op", "blueprint", "tempo")
]
MALFORMED = OUT_OF_RANGE + MISSING + WRONG_DTYPE + WRONG_SHAPE


@pytest.fixture(scope="module")
def env():
    return small_env(num_envs=2, max_epochs=12)


@pytest.fixture(scope="module")
def twin():
    return small_env(num_envs=2, max_epochs=12)


@pytest.mark.parametrize(("bad", "error_type", "head"), MALFORMED)
def test_a_malformed_action_is_an_error_and_leaves_no_trace(env, twin, bad, error_type, head):
    env.set_seed(3)
    twin.set_seed(3)
    states = env.reset(), twin.reset()
    planted = {"op": Op.GERMINATE, "slot": 1, "blueprint": 1}
    state, untouched = (act(e, s, **planted) for e, s in zip((env, twin), states, strict=True))
    with pytest.raises(error_type, match=f"'{head}'"):
        env.step(state.clone().set("action", bad.clone()))
    advance = {"op": Op.ADVANCE, "slot": 1}
    assert differences(act(env, state, **advance), act(twin, untouched, **advance)) == []


@pytest.mark.parametrize("bad", [torch.zeros(2, dtype=torch.int64), None])
def test_an_action_without_heads_is_an_error(env, bad):
    state = env.reset()
    state = state.exclude("action") if bad is None else state.set("action", bad)
    with pytest.raises(TypeError, match="action must be a TensorDict with the heads op, slot"):
        env.step(state)


@pytest.mark.parametrize("head", HEADS)
def test_range_errors_name_row_value_and_range(head):
    env = small_env(num_envs=3)
    size = head_sizes(3)[head]
    message = rf"'{head}' must be 0 to {size - 1}, got {size + 4} in row 1"
    with pytest.raises(ValueError, match=message):
        act(env, env.reset(), **{head: [0, size + 4, 0]})


def test_dtype_and_shape_errors_name_what_is_needed():
    env = small_env(num_envs=2)
    state = env.reset()
    with pytest.raises(TypeError, match=r"'slot' must be int64, got torch.float32"):
        env.step(state.clone().set("action", one_head("slot", torch.zeros(2))))
    long = one_head("slot", torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"'slot' must be of shape \[2\], .*, got \[2, 3\]"):
        env.step(state.clone().set("action", long))


CONV_LIGHT = BLUEPRINTS.index("conv_light")
GERMINATE = {"op": Op.GERMINATE, "blueprint": CONV_LIGHT}
BLENDED = [GERMINATE, *[{"op": Op.ADVANCE}] * 2, *[{"op": Op.WAIT}] * 2]
FOSSIL = [*BLENDED, {"op": Op.ADVANCE}, {"op": Op.FOSSILIZE}]
FADE = {"op": Op.PRUNE, "alpha_speed": 3}
ILLEGAL = [
    pytest.param([], {"op": Op.FOSSILIZE}, id="fossilize an empty slot"),
    pytest.param([], {"op": Op.ADVANCE}, id="advance an empty slot"),
    pytest.param([], {"op": Op.PRUNE, "alpha_speed": 1}, id="prune an empty slot"),
    pytest.param([], {"op": Op.SET_ALPHA_TARGET, "style": 3}, id="re-aim an empty slot"),
    pytest.param([], {"op": Op.GERMINATE, "blueprint": 0}, id="plant noop"),
    pytest.param([], {"op": Op.GERMINATE, "blueprint": 8}, id="plant what the host can't hold"),
    pytest.param([GERMINATE], {**GERMINATE, "blueprint": 3}, id="plant on a seed"),
    pytest.param(
        [GERMINATE], {"op": Op.SET_ALPHA_TARGET, "style": 3}, id="re-aim what is not mixed in"
    ),
    pytest.param(
        [GERMINATE, *[{"op": Op.ADVANCE}] * 2], {"op": Op.ADVANCE}, id="advance during the ramp"
    ),
    pytest.param(
        [GERMINATE, *[{"op": Op.ADVANCE}] * 2], {"op": Op.PRUNE}, id="prune during the ramp"
    ),
    pytest.param(BLENDED, {"op": Op.FOSSILIZE}, id="fossilize before holding"),
    pytest.param([*BLENDED, FADE], {"op": Op.PRUNE}, id="prune what is fading already"),
    pytest.param([*BLENDED, FADE], {"op": Op.SET_ALPHA_TARGET}, id="re-aim what is fading"),
    pytest.param([*BLENDED, {"op": Op.ADVANCE}], {"op": Op.ADVANCE}, id="advance from holding"),
    pytest.param(FOSSIL, {"op": Op.PRUNE}, id="prune a fossil"),
    pytest.param(FOSSIL, {"op": Op.SET_ALPHA_TARGET, "style": 1}, id="re-aim a fossil"),
    pytest.param([GERMINATE, {"op": Op.PRUNE}], GERMINATE, id="plant in the cool-down"),
]


@pytest.mark.parametrize(("before", "illegal"), ILLEGAL)
def test_an_illegal_action_is_refused_and_runs_as_wait(env, twin, before, illegal):
    env.set_seed(4)
    twin.set_seed(4)
    state, waiting = env.reset(), twin.reset()
    for heads in before:
        state, waiting = act(env, state, **heads), act(twin, waiting, **heads)
        assert state["last_action_success"].all()
    state, waiting = act(env, state, **illegal), act(twin, waiting, op=Op.WAIT)
    assert not state["last_action_success"].any()
    assert (state["last_action_op"] == illegal["op"]).all()
    assert (state["metrics", "executed_op"] == Op.WAIT).all()
    assert set(differences(state, waiting)) == {
        "observation",  # shows the op chosen and that it failed
        "last_action_success",
        "last_action_op",
    }
    others = [name for name in feature_names() if name not in ACTION_FEEDBACK]
    same = feature_columns(*others)
    assert state["observation"][:, same].equal(waiting["observation"][:, same])
    # and nothing is left of it afterwards
    state, waiting = act(env, state), act(twin, waiting)
    assert differences(state, waiting) == []


def test_only_the_row_of_an_illegal_action_is_refused():
    env = small_env(num_envs=3)
    state = act(env, env.reset(), op=[Op.GERMINATE, Op.PRUNE, Op.WAIT], blueprint=CONV_LIGHT)
    assert state["last_action_success"].squeeze(1).tolist() == [True, False, True]
    assert (state["blueprint_indices"] == CONV_LIGHT).nonzero().tolist() == [[0, 0]]
