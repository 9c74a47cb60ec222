"""Invariants that hold after any sequence of legal and illegal actions and partial resets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDictBase

from envs import MorphogenesisEnv, feature_names
from envs.actions import HEADS, Op, Stage, head_sizes
from envs.observation import ROW_FEATURES, SLOT_FEATURES
from tests.support.environments import action, small_env

NUM_ENVS, NUM_SLOTS, STEPS = 6, 3, 20

BASE = len(ROW_FEATURES)
PER_SLOT = len(SLOT_FEATURES)
MIXED = torch.tensor([Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED])
LIVE = torch.tensor([Stage.GERMINATED, Stage.TRAINING, *MIXED.tolist()])

FEW_CASES = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SEEDS = st.integers(0, 2**31)


@pytest.fixture(scope="module", params=["permissive", "strict", "hidden"])
def env(request) -> MorphogenesisEnv:
    return small_env(num_envs=NUM_ENVS, max_epochs=STEPS, gates=request.param)


def random_heads(generator: torch.Generator) -> dict[str, list[int]]:
    """Any well-formed action, legal or not."""
    return {
        head: torch.randint(size, (NUM_ENVS,), generator=generator).tolist()
        for head, size in head_sizes(NUM_SLOTS).items()
    }


def legal_heads(state: TensorDictBase, generator: torch.Generator) -> dict[str, list[int]]:
    """An action from the masks: the op first, then the slot from that op's row."""

    def draw(mask: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(mask.float(), 1, generator=generator).squeeze(1)

    mask = state["action_mask"]
    chosen = {"op": draw(mask["op"] * torch.tensor([1, 6, 3, 1, 2, 6]))}
    chosen["slot"] = draw(mask["slot"][torch.arange(NUM_ENVS), chosen["op"]])
    for head in HEADS[2:]:
        chosen[head] = draw(mask[head])
    return {head: index.tolist() for head, index in chosen.items()}


def check_state(state: TensorDictBase) -> None:
    stage, alpha = state["metrics", "stage"], state["metrics", "alpha"]
    assert ((stage >= Stage.DORMANT) & (stage <= Stage.RESETTING)).all()
    assert (torch.isin(stage, LIVE) == (state["blueprint_indices"] >= 0)).all()
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert (torch.isin(stage, MIXED) == (alpha > 0)).all()
    assert (state["metrics", "contribution"][alpha == 0] == 0).all()

    observation = state["observation"]
    assert observation.isfinite().all()
    assert ((observation >= -1) & (observation <= 1.5)).all()
    slots = observation[:, BASE:].view(NUM_ENVS, NUM_SLOTS, PER_SLOT)
    assert not slots[stage == Stage.DORMANT].any()
    assert (slots[..., 0] == (stage != Stage.DORMANT)).all()
    one_hot = slots[..., 1:11]
    assert (one_hot.sum(2) == (stage != Stage.DORMANT)).all()
    assert (one_hot.argmax(2) == stage)[stage != Stage.DORMANT].all()
    assert slots[..., 11].equal(alpha)
    cooling = ~torch.isin(stage, LIVE) & (stage != Stage.DORMANT)
    shown = [name.removeprefix("slot0_") for name in feature_names(1)[BASE:]]
    clock = shown.index("epochs_in_stage_norm")
    assert (slots[..., clock][stage != Stage.DORMANT] > 0).all()
    rest = [i for i in range(11, PER_SLOT) if i != clock]
    assert not slots[cooling][:, rest].any()


def check_masks(state: TensorDictBase) -> None:
    mask, stage = state["action_mask"], state["metrics", "stage"]
    assert mask["op"][:, Op.WAIT].all()
    assert mask["slot"][:, Op.WAIT].all()
    assert mask["op"].equal(mask["slot"].any(2))
    for head in HEADS[2:]:
        assert mask[head].any(1).all()
    legal = {op: mask["slot"][:, op] for op in Op}
    assert legal[Op.GERMINATE].equal(stage == Stage.DORMANT)
    assert (stage[legal[Op.FOSSILIZE]] == Stage.HOLDING).all()
    for op in (Op.SET_ALPHA_TARGET, Op.PRUNE, Op.ADVANCE):
        assert torch.isin(stage[legal[op]], LIVE).all()
        assert (stage[legal[op]] != Stage.FOSSILIZED).all()
    assert not mask["blueprint"][:, 0].any()  # noop


def check_transition(
    before: TensorDictBase, heads: dict[str, list[int]], after: TensorDictBase, hidden: bool
) -> None:
    op, slot = torch.tensor(heads["op"]), torch.tensor(heads["slot"])
    rows = torch.arange(NUM_ENVS)
    assert after["last_action_op"].equal(op)
    success = after["last_action_success"].squeeze(1)
    assert after["metrics", "executed_op"].equal(torch.where(success, op, Op.WAIT))
    mask = before["action_mask"]
    legal = (op == Op.WAIT) | mask["slot"][rows, op, slot]
    legal &= (op != Op.GERMINATE) | mask["blueprint"][rows, torch.tensor(heads["blueprint"])]
    if hidden:
        assert not (success & ~legal).any()
    else:
        assert success.equal(legal)

    stage, new_stage = before["metrics", "stage"], after["metrics", "stage"]
    kept = stage == Stage.FOSSILIZED
    assert (new_stage[kept] == Stage.FOSSILIZED).all()
    assert after["metrics", "alpha"][kept].equal(before["metrics", "alpha"][kept])
    assert after["blueprint_indices"][kept].equal(before["blueprint_indices"][kept])
    # Without the agent, a slot only fades out or cools down.
    acted_on = (torch.arange(NUM_SLOTS) == slot[:, None]) & (success & (op != Op.WAIT))[:, None]
    moved = (stage != new_stage) & ~acted_on
    by_itself = {(4, 7), (7, 8), (8, 9), (9, 1)}
    assert set(zip(stage[moved].tolist(), new_stage[moved].tolist(), strict=True)) <= by_itself
    # Shown by feature and metric alike.
    assert (after["observation"][:, 18] == success).all()
    assert (after["observation"][:, 19:25].argmax(1) == op).all()
    assert (after["metrics", "epoch"] == before["metrics", "epoch"] + 1).all()
    assert after["reward"].isfinite().all()
    total = sum(after["reward_terms"].values())
    torch.testing.assert_close(total, after["reward"])


def step(env: MorphogenesisEnv, state: TensorDictBase, heads: dict) -> TensorDictBase:
    after = env.step(state.clone().set("action", action(NUM_ENVS, **heads)))["next"]
    check_state(after)
    check_masks(after)
    check_transition(state, heads, after, hidden=env.gates == "hidden")
    return after


def reset_some(env: MorphogenesisEnv, state: TensorDictBase, mask: torch.Tensor) -> TensorDictBase:
    fresh = env.reset(state.clone().set("_reset", mask[:, None]))
    check_state(fresh)
    check_masks(fresh)
    assert (fresh["metrics", "epoch"][mask] == 0).all()
    assert fresh["observation"][~mask].equal(state["observation"][~mask])
    assert fresh["action_mask", "slot"][~mask].equal(state["action_mask", "slot"][~mask])
    return fresh


@FEW_CASES
@given(seed=SEEDS, nonsense=st.sampled_from([0.0, 0.2, 1.0]), resets=st.booleans())
def test_invariants_hold_after_any_sequence(env, seed, nonsense, resets):
    generator = torch.Generator().manual_seed(seed)
    env.set_seed(seed)
    state = env.reset()
    check_state(state)
    check_masks(state)
    for _ in range(STEPS):
        random = random_heads(generator)
        legal = legal_heads(state, generator)
        use = (torch.rand(NUM_ENVS, generator=generator) < nonsense).tolist()
        heads = {
            head: [r if u else m for r, m, u in zip(random[head], legal[head], use, strict=True)]
            for head in HEADS
        }
        state = step(env, state, heads)
        mask = state["done"].squeeze(1).clone()
        if resets:
            mask |= torch.rand(NUM_ENVS, generator=generator) < 0.05
        if mask.any():
            state = reset_some(env, state, mask)


@settings(FEW_CASES, max_examples=2)
@given(seed=SEEDS)
def test_a_policy_that_follows_the_masks_visits_every_stage(seed):
    """Keeps the other tests honest: legal random play reaches all of a seed's life."""
    env = small_env(num_envs=NUM_ENVS, max_epochs=40)
    generator = torch.Generator().manual_seed(seed)
    state, seen = env.reset(), set()
    for _ in range(40):
        state = step(env, state, legal_heads(state, generator))
        assert state["last_action_success"].all()
        seen |= set(state["metrics", "stage"].flatten().tolist())
    assert seen == set(range(Stage.DORMANT, Stage.RESETTING + 1))


@FEW_CASES
@given(steps=st.integers(0, 16), seed=SEEDS)
def test_every_op_is_refused_exactly_where_its_mask_is_false(steps, seed):
    """One op a row, in the same slot, from states that legal play reaches."""
    env = small_env(num_envs=NUM_ENVS, max_epochs=40)
    generator = torch.Generator().manual_seed(seed)
    state = env.reset()
    for _ in range(steps):
        state = step(env, state, legal_heads(state, generator))
    for slot in range(NUM_SLOTS):
        ops = torch.randperm(len(Op), generator=generator).tolist()
        state = step(env, state, {"op": ops, "slot": [slot] * 6, "blueprint": [1] * 6})
