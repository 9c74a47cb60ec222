"""Growth in a loop of one's own: the same world as the environment's."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import nn

from envs import ArrayTask, GrowingNetwork, ModuleHost, MorphogenesisEnv
from envs.actions import BLUEPRINTS, HEADS, Op, Stage
from envs.batched.randomness import Stream, fold
from esper_rl import Grower
from esper_rl.growing.baselines import FixedSchedulePolicy, WaitPolicy
from tests.support.own_loop import (
    BLUEPRINTS_HERE,
    CLASSES,
    IMAGES,
    SGD,
    SLOTS,
    TRAIN,
    VALIDATION,
    OwnLoop,
    busy,
    drawn,
    host,
    weights_of,
)


def own_task(**options: object) -> ArrayTask:
    return ArrayTask(
        name="own",
        host=ModuleHost(host, SLOTS, IMAGES[:1], BLUEPRINTS_HERE),
        train=(IMAGES[TRAIN], CLASSES[TRAIN]),
        validation=(IMAGES[VALIDATION], CLASSES[VALIDATION]),
        batches_per_epoch=3,
        minibatch_size=20,
        host_lr=0.05,
        seed_lr=0.03,
        **options,
    )


class Given:
    """Plays the action that it is given, and keeps what it was shown."""

    def __init__(self) -> None:
        self.action: TensorDictBase | None = None
        self.shown: TensorDictBase | None = None

    def __call__(self, shown: TensorDictBase) -> TensorDictBase:
        self.shown = shown.clone()
        return shown.set("action", self.action)


InStep = Iterator[tuple[MorphogenesisEnv, TensorDictBase, OwnLoop]]


def in_step(seed: int, max_epochs: int = 24) -> InStep:
    """The environment and a loop with the same network, data and actions, epoch by epoch.

    Yields:
        The environment, what it shows, and the loop, before the action that both will take.
    """
    env = MorphogenesisEnv(own_task(), num_envs=1, num_slots=2, max_epochs=max_epochs, seed=seed)
    state = env.reset()
    policy = Given()
    loop = OwnLoop(
        policy, max_epochs, seed_lr=0.6, loss_limit=10.0, guessing_loss=env.task.guessing_loss
    )
    loop.network.pieces.load_state_dict(env.network(0).pieces.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(max_epochs):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        policy.action = drawn(state["action_mask"])
        if epoch == 0:
            loop.grower.begin(loop.validate)
        else:
            loop.grower.step(loop.validate)
        yield env, state, loop
        batches = env.population.data.draw(fold(env.state.key, Stream.SHUFFLE, env.state.epoch))[0]
        loop.train(batches)
        state = env.step(state.clone().set("action", policy.action))["next"]
    loop.grower.step(loop.validate)
    yield env, state, loop


def assert_same(env: MorphogenesisEnv, state: TensorDictBase, loop: OwnLoop) -> None:
    step = loop.grower.history[-1]
    assert step.epoch == int(state["metrics", "epoch"])
    assert step.loss == pytest.approx(float(state["metrics", "val_loss"]), rel=2e-4)
    assert step.score == pytest.approx(float(state["metrics", "val_accuracy"]), abs=1e-3)
    assert step.rolled_back == bool(state["metrics", "rollback"])
    assert isinstance(loop.grower.policy, Given)
    shown = loop.grower.policy.shown
    if not state["done"]:
        torch.testing.assert_close(shown["observation"], state["observation"], rtol=1e-3, atol=1e-3)
        assert shown["blueprint_indices"].equal(state["blueprint_indices"])
        for head in HEADS:
            assert shown["action_mask", head].equal(state["action_mask", head])
        for name in ("contribution", "interaction", "shapley", "gradient_norm", "alpha", "stage"):
            mine, theirs = (each["metrics", name].double() for each in (shown, state))
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-3)


def test_it_is_the_world_of_the_environment() -> None:
    seen, styles = set(), set()
    for seed in range(6):
        for env, state, loop in in_step(seed):
            assert_same(env, state, loop)
            styles |= {each.mode.name for each in loop.network.slots if hasattr(each, "mode")}
        mine = loop.network.pieces.state_dict()
        for name, theirs in env.network(0).pieces.state_dict().items():
            torch.testing.assert_close(mine[name], theirs, rtol=5e-3, atol=5e-4)
        seen |= {step.op for step in loop.grower.history}
    assert seen == set(Op)
    assert styles == {"INCUBATE", "ADD", "MULTIPLY", "GATE"}


# -- the optimizer ---------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": SGD,
    "AdamW": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5),
    "Adafactor": partial(torch.optim.Adafactor, lr=1e-3),
}


def check_optimizer(loop: OwnLoop) -> None:
    """What runs in the network is in the optimizer, with the right rate; nothing else is."""
    optimizer, grower = loop.optimizer, loop.grower
    host, *groups = optimizer.param_groups
    assert len(groups) == 2
    assert {id(p) for p in host["params"]} == {id(p) for p in loop.network.pieces.parameters()}
    stages = grower.history[-1].stages
    for slot, group in enumerate(groups):
        assert {id(p) for p in group["params"]} == {
            id(p) for p in loop.network.slots[slot].parameters()
        }
        runs = stages[slot] in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
        assert isinstance(loop.network.slots[slot], nn.Identity) != runs
        factor = 1.0 if stages[slot] is Stage.FOSSILIZED else 0.5
        if runs:
            assert group["lr"] == pytest.approx(factor * host["lr"])
            assert group["params"]
        same = {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}
        assert same == {k: host[k] for k in same}
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in optimizer.state} <= known


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_has_what_runs_and_nothing_else(name: str) -> None:
    for seed in range(3):
        loop = OwnLoop(busy(seed), 20, OPTIMIZERS[name], seed_lr=0.5, seed=seed)
        schedule = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda epoch: 0.9**epoch)
        for epoch in range(20):
            before = set(map(id, loop.optimizer.state))
            loop.epoch(epoch)
            check_optimizer(loop)
            schedule.step()
            assert before <= set(map(id, loop.optimizer.state)) or any(
                stage in (Stage.PRUNED, Stage.EMBARGOED) for stage in loop.grower.history[-1].stages
            )
        assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(
            loop.optimizer.defaults["lr"] * 0.9**20
        )


def test_schedules_that_count_groups_are_made_after_the_grower() -> None:
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], BLUEPRINTS_HERE)
    optimizer = SGD(network.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(ValueError, match="optimizer must have no learning rate schedule yet"):
        Grower(network, optimizer, WaitPolicy(), max_epochs=3)


def test_seeds_take_the_options_of_the_group_before_their_slot() -> None:
    network = GrowingNetwork(host(), SLOTS, IMAGES[:1], BLUEPRINTS_HERE)
    first, *others = network.pieces
    groups = [
        {"params": [p for piece in others for p in piece.parameters()], "weight_decay": 0.3},
        {"params": list(first.parameters()), "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    Grower(network, optimizer, WaitPolicy(), max_epochs=3)
    _, _, slot0, slot1 = optimizer.param_groups
    assert (slot0["lr"], slot0["weight_decay"]) == (0.5, 0)
    assert (slot1["lr"], slot1["weight_decay"]) == (0.1, 0.3)


# -- going back and going on -----------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, 1e30])
def test_a_failed_network_goes_back_without_its_unfinished_seeds(bad: float) -> None:
    loop = OwnLoop(FixedSchedulePolicy(slot=0, blueprint=BLUEPRINTS.index("norm")), 30, seed_lr=0.5)
    for epoch in range(9):
        loop.epoch(epoch)
    assert loop.grower.history[-1].stages[0] is Stage.FOSSILIZED
    loop.grower.policy = busy(0)
    while loop.grower.history[-1].stages[1] is not Stage.BLENDING:
        loop.epoch(len(loop.grower.history))
        assert len(loop.grower.history) < 28
    kept = {k: v.clone() for k, v in loop.grower._live._saved.items()}
    with torch.no_grad():
        for weight in loop.network.parameters():
            weight.mul_(bad)
    loop.grower.policy = WaitPolicy()
    loop.epoch(28)
    last = loop.grower.history[-1]
    assert last.rolled_back
    assert last.stages == (Stage.FOSSILIZED, Stage.EMBARGOED)
    assert not loop.optimizer.state
    assert {k: v.tolist() for k, v in weights_of(loop).items()} == {
        k: v.tolist() for k, v in kept.items()
    }
    check_optimizer_after = loop.optimizer.param_groups[2]["params"]
    assert check_optimizer_after == []
    loop.epoch(29)
    assert not loop.grower.history[-1].rolled_back
    assert math.isfinite(loop.grower.history[-1].loss)


def test_after_three_failures_nothing_more_is_grown() -> None:
    loop = OwnLoop(busy(0), 30)
    loop.epoch(0)
    for epoch in range(1, 8):
        with torch.no_grad():
            if epoch < 4:
                next(loop.network.pieces.parameters()).fill_(math.nan)
        loop.epoch(epoch)
    history = loop.grower.history
    assert [step.rolled_back for step in history] == [False, True, True, True] + [False] * 4
    assert {step.op for step in history[3:]} == {Op.WAIT}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_it_goes_on_bitwise(name: str, stop: int) -> None:
    one = OwnLoop(busy(0), 18, OPTIMIZERS[name], seed=3)
    for epoch in range(stop):
        one.epoch(epoch)
    saved = copy.deepcopy(one.grower.state_dict())
    for epoch in range(stop, 18):
        one.epoch(epoch)
    other = OwnLoop(busy(0), 18, OPTIMIZERS[name], seed=4)  # other weights
    other.grower.load_state_dict(saved)
    for epoch in range(stop, 18):
        other.epoch(epoch)
    assert one.grower.history == other.grower.history
    mine, theirs = weights_of(one), weights_of(other)
    assert mine.keys() == theirs.keys()
    assert all(mine[key].equal(theirs[key]) for key in mine)


def test_what_is_saved_can_be_written_and_read_safely(tmp_path) -> None:
    loop = OwnLoop(busy(0), 9)
    for epoch in range(6):
        loop.epoch(epoch)
    torch.save(loop.grower.state_dict(), tmp_path / "grower.pt")
    other = OwnLoop(busy(0), 9, seed=1)
    other.grower.load_state_dict(torch.load(tmp_path / "grower.pt", weights_only=True))
    assert other.grower.history == loop.grower.history


def test_a_state_of_another_loop_is_refused_and_changes_nothing() -> None:
    loop, other = OwnLoop(busy(0), 9), OwnLoop(busy(0), 8)
    with pytest.raises(ValueError, match="max_epochs=8, got one with max_epochs=9"):
        other.grower.load_state_dict(loop.grower.state_dict())
    state = loop.grower.state_dict()
    state["network"]["pieces"]["0.0.weight"] = torch.zeros(3)
    before = weights_of(loop)
    with pytest.raises(ValueError, match=r"network like this one, but '0\.0\.weight' differs"):
        loop.grower.load_state_dict(state)
    assert all(before[key].equal(value) for key, value in weights_of(loop).items())


def test_a_state_that_fits_in_part_changes_nothing() -> None:
    """Whatever of it doesn't fit, and whatever is loaded before that."""
    saved = OwnLoop(busy(0), 9, seed=1)
    for epoch in range(6):
        saved.epoch(epoch)
    state = saved.grower.state_dict()

    def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        copied = copy.deepcopy(state)
        change(copied)
        return copied

    def in_two_groups(params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        first, *others = params
        return SGD([{"params": [first]}, {"params": others}])

    loop, split = OwnLoop(busy(0), 9), OwnLoop(busy(0), 9, in_two_groups)
    for into, given in (
        (split, state),
        (loop, damaged(lambda each: each["state"].pop("key"))),
        (loop, damaged(lambda each: each["network"]["pieces"].popitem())),
    ):
        before, groups = weights_of(into), copy.deepcopy(into.optimizer.state_dict())
        with pytest.raises(ValueError, match="state"):
            into.grower.load_state_dict(given)
        assert into.grower.history == []
        assert into.optimizer.state_dict() == groups
        after = weights_of(into)
        assert all(before[key].equal(value) for key, value in after.items())
