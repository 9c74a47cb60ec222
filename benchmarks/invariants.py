"""Invariants of an environment, and a player that checks them after everything it does."""

from __future__ import annotations

from collections import Counter

import torch
from tensordict import TensorDict, TensorDictBase

from envs import MorphogenesisEnv, feature_names
from envs.actions import HEADS, Op, Stage, head_sizes
from envs.governor import MOST_ROLLBACKS
from envs.observation import ROW_FEATURES, SLOT_FEATURES

BASE = len(ROW_FEATURES)
PER_SLOT = len(SLOT_FEATURES)
MIXED = torch.tensor([Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED])
LIVE = torch.tensor([Stage.GERMINATED, Stage.TRAINING, *MIXED.tolist()])
COOLING = torch.tensor([Stage.DORMANT, Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING])
FAULTS = ("nan in the host", "infinity in a seed")
"""Faults that :meth:`Player.break_rows` knows."""


def action(num_envs: int, **heads: int | list[int]) -> TensorDict:
    """An action with one choice for all rows or a list of them; heads not named are 0."""
    indices = {}
    for head in HEADS:
        index = torch.tensor(heads.get(head, 0))
        indices[head] = index.expand(num_envs).clone()
    return TensorDict(indices, batch_size=[num_envs])


def differences(a: TensorDictBase, b: TensorDictBase, rows: object = slice(None)) -> list[object]:
    """Keys whose values differ in any bit in ``rows``."""
    keys = set(a.keys(True, True)) & set(b.keys(True, True))
    assert keys
    return [k for k in keys if not a[k][rows].equal(b[k][rows])]


def random_heads(env: MorphogenesisEnv, generator: torch.Generator) -> dict[str, list[int]]:
    """Any well-formed action, legal or not."""
    return {
        head: torch.randint(size, (env.num_envs,), generator=generator).tolist()
        for head, size in head_sizes(env.num_slots).items()
    }


def legal_heads(state: TensorDictBase, generator: torch.Generator) -> dict[str, list[int]]:
    """An action from the masks: the op first, then the slot from that op's row."""

    def draw(mask: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(mask.float(), 1, generator=generator).squeeze(1)

    mask = state["action_mask"]
    chosen = {"op": draw(mask["op"] * torch.tensor([1, 6, 3, 1, 2, 6]))}
    chosen["slot"] = draw(mask["slot"][torch.arange(len(chosen["op"])), chosen["op"]])
    for head in HEADS[2:]:
        chosen[head] = draw(mask[head])
    return {head: index.tolist() for head, index in chosen.items()}


def mixed_heads(
    env: MorphogenesisEnv, state: TensorDictBase, nonsense: float, generator: torch.Generator
) -> dict[str, list[int]]:
    """A legal action of every row, but any well-formed one of a share ``nonsense`` of them."""
    random, legal = random_heads(env, generator), legal_heads(state, generator)
    use = (torch.rand(env.num_envs, generator=generator) < nonsense).tolist()
    return {
        head: [r if u else m for r, m, u in zip(random[head], masked, use, strict=True)]
        for head, masked in legal.items()
    }


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
    slots = observation[:, BASE:].view(*stage.shape, PER_SLOT)
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
    rows, num_slots = torch.arange(len(op)), before["metrics", "stage"].shape[1]
    failed = after["metrics", "rollback"].squeeze(1)
    assert after["last_action_op"].equal(op)
    success = after["last_action_success"].squeeze(1)
    assert after["metrics", "executed_op"].equal(torch.where(success, op, Op.WAIT))
    mask = before["action_mask"]
    legal = (op == Op.WAIT) | mask["slot"][rows, op, slot]
    legal &= (op != Op.GERMINATE) | mask["blueprint"][rows, torch.tensor(heads["blueprint"])]
    assert not (success & ~legal).any()
    if not hidden:
        assert success[~failed].equal(legal[~failed])

    stage, new_stage = before["metrics", "stage"], after["metrics", "stage"]
    kept = (stage == Stage.FOSSILIZED) & ~failed[:, None]
    assert (new_stage[kept] == Stage.FOSSILIZED).all()
    assert after["metrics", "alpha"][kept].equal(before["metrics", "alpha"][kept])
    assert after["blueprint_indices"][kept].equal(before["blueprint_indices"][kept])
    # Without the agent, a slot only fades out or cools down.
    acted_on = (torch.arange(num_slots) == slot[:, None]) & (success & (op != Op.WAIT))[:, None]
    moved = (stage != new_stage) & ~acted_on & ~failed[:, None]
    by_itself = {(4, 7), (7, 8), (8, 9), (9, 1)}
    assert set(zip(stage[moved].tolist(), new_stage[moved].tolist(), strict=True)) <= by_itself
    # Shown by feature and metric alike.
    assert (after["observation"][:, 18] == success).all()
    assert (after["observation"][:, 19:25].argmax(1) == op).all()
    assert (after["metrics", "epoch"] == before["metrics", "epoch"] + 1).all()
    assert after["reward"].isfinite().all()
    check_rollbacks(stage[failed], new_stage[failed])
    assert after["reward_terms", "governor"].squeeze(1).equal(-10.0 * failed)
    total = sum(after["reward_terms"].values())
    torch.testing.assert_close(total, after["reward"])


def check_rollbacks(stage: torch.Tensor, new_stage: torch.Tensor) -> None:
    """Of rows that were taken back: seeds are fossilized, as they were, or gone."""
    fossils = new_stage == Stage.FOSSILIZED
    assert (stage[fossils] == Stage.FOSSILIZED).all()
    assert torch.isin(new_stage[~fossils], COOLING).all()


class Player:
    """Plays, resets, breaks, saves and loads an environment, and checks it all the time.

    Args:
        env: what is played, on weights that only faults make fail.

    Attributes:
        env: the same, or what was loaded in its place.
        state: what it showed last.
        counts: how often what was done, by name.
    """

    def __init__(self, env: MorphogenesisEnv) -> None:
        self.env, self.state, self.counts = env, env.reset(), Counter[str]()
        self.broken = torch.zeros(env.num_envs, dtype=torch.bool)
        self.rollbacks = torch.zeros(env.num_envs, dtype=torch.int64)
        self._check()

    def _check(self) -> None:
        check_state(self.state)
        check_masks(self.state)
        assert self.env.population.params.isfinite().all() or self.broken.any()

    def step(self, heads: dict[str, list[int]]) -> None:
        """One step of all rows; those that are broken, and no others, are taken back."""
        env, before = self.env, self.state
        env_action = action(env.num_envs, **heads)
        self.state = env.step(before.clone().set("action", env_action))["next"]
        failed = self.state["metrics", "rollback"].squeeze(1)
        assert failed.equal(self.broken)
        for mine, saved in zip(env.population.weights, env.population.saved, strict=True):
            assert mine[failed].equal(saved[failed])
        assert not any(buffer[failed].any() for buffer in env.population.optimizer_state)
        self.rollbacks += failed
        over = self.state["metrics", "epoch"].squeeze(1) == env.max_epochs
        assert self.state["done"].squeeze(1).equal(over | (self.rollbacks == MOST_ROLLBACKS))
        self.broken &= False
        check_transition(before, heads, self.state, hidden=env.gates == "hidden")
        self._check()
        self.counts["steps"] += env.num_envs
        self.counts["rollbacks"] += int(failed.sum())

    def reset(self, mask: torch.Tensor) -> None:
        """Reset the rows of a bool ``[N]`` mask, and those whose episode is over."""
        mask = mask | self.state["done"].squeeze(1)
        if not mask.any():
            return
        before = self.state
        self.state = self.env.reset(before.clone().set("_reset", mask[:, None]))
        self.broken &= ~mask
        self.rollbacks *= ~mask
        self._check()
        assert (self.state["metrics", "epoch"][mask] == 0).all()
        for key in ("observation", ("action_mask", "slot")):
            assert self.state[key][~mask].equal(before[key][~mask])
        self.counts["resets"] += int(mask.sum())

    def break_rows(self, mask: torch.Tensor, fault: str) -> None:
        """Let the networks of a bool ``[N]`` mask fail in the next step; see :data:`FAULTS`."""
        population = self.env.population
        for row in mask.nonzero().squeeze(1).tolist():
            seeds = (self.env.state.slots.blueprint[row] >= 0).nonzero().squeeze(1).tolist()
            if fault == "nan in the host" or not seeds:
                population.host_params[row, 0] = torch.nan
            else:
                # The last column: the first ones are a gate's, which an action may set anew.
                population.seed_params[seeds[-1]][row, -1] = torch.inf
        self.broken |= mask
        self.counts["faults"] += int(mask.sum())

    def save_and_load(self, other: MorphogenesisEnv) -> None:
        """Go on with another environment, which shows the same; this one is ``other`` next."""
        other.load_state_dict(self.env.state_dict())
        self.env = other
        shown = other.observe()
        assert differences(shown, self.state) == []
        self.counts["loads"] += 1
