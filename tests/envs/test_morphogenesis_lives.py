"""A seed's life through the environment."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.invariants import action
from envs.actions import Op, Stage
from envs.registration import make_task
from tests.support.environments import (
    CONV_HEAVY,
    CONV_LIGHT,
    GATED,
    GROW,
    HOLDING,
    MULTIPLY,
    act,
    column,
    play,
    small_env,
    watch_training,
)
from tests.support.populations import seed_velocities


def test_what_is_planted_in_a_step_shows_clock_one_in_its_observation():
    states = play(small_env(), [{}, GROW[0], {}])
    clock = column("slot0_epochs_in_stage_norm")
    shown = [(state["observation"][:, clock] * 50).round().tolist() for state in states]
    assert shown == [[0] * 3, [0] * 3, [1] * 3, [2] * 3]
    assert (states[2]["metrics", "stage"][:, 0] == Stage.GERMINATED).all()


def test_a_whole_life_as_early_as_the_masks_allow():
    env = small_env(num_envs=2, max_epochs=12)
    state = env.reset()
    slot = 1
    wanted = [Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.ADVANCE, Op.FOSSILIZE]
    seen = []
    for _ in range(9):
        op = Op.WAIT
        if wanted and state["action_mask", "slot"][:, wanted[0], slot].all():
            op = wanted.pop(0)
        state = act(env, state, op=op, slot=slot, blueprint=CONV_HEAVY, tempo=0, alpha_target=1)
        assert state["last_action_success"].all()
        stage = Stage(state["metrics", "stage"][0, slot].item())
        seen.append((op, stage, round(state["metrics", "alpha"][0, slot].item(), 4)))
        assert (state["blueprint_indices"][:, slot] == CONV_HEAVY).all()
        assert (state["metrics", "seed_params"] > 0).all()
    assert seen == [
        (Op.GERMINATE, Stage.GERMINATED, 0),
        (Op.ADVANCE, Stage.TRAINING, 0),
        (Op.ADVANCE, Stage.BLENDING, 0.2333),
        (Op.WAIT, Stage.BLENDING, 0.4667),
        (Op.WAIT, Stage.BLENDING, 0.7),
        (Op.ADVANCE, Stage.HOLDING, 0.7),
        (Op.FOSSILIZE, Stage.FOSSILIZED, 0.7),
        (Op.WAIT, Stage.FOSSILIZED, 0.7),
        (Op.WAIT, Stage.FOSSILIZED, 0.7),
    ]
    assert state["action_mask", "slot"][:, :, slot].sum(1).tolist() == [1, 1]  # WAIT alone


def test_seed_params_count_the_modules_and_their_gates():
    env = small_env(num_envs=2, max_epochs=14)
    plain, gated = (
        play(env, [{**GROW[0], "style": style, "slot": 1}])[-1]["metrics", "seed_params"]
        for style in (0, GATED)
    )
    assert (gated - plain == 16 + 1).all()  # a weight a channel of slot 1, and a bias
    assert not play(env, [GROW[0], {"op": Op.PRUNE}])[-1]["metrics", "seed_params"].any()


@pytest.mark.parametrize("alpha_speed", [0, 1])
def test_pruning_passes_through_the_cool_down(alpha_speed):
    env = small_env(num_envs=2, max_epochs=30)
    prune = {"op": Op.PRUNE, "alpha_speed": alpha_speed}
    states = play(env, [*GROW, {}, {}, prune, *[{}] * 12])
    stages = [state["metrics", "stage"][0, 0].item() for state in states[6:]]
    fading = [Stage.BLENDING] * (2 if alpha_speed else 0)
    cooling = [Stage.PRUNED, *[Stage.EMBARGOED] * 5, Stage.RESETTING]
    dormant = [Stage.DORMANT] * (13 - len(fading) - len(cooling))
    assert stages == [*fading, *cooling, *dormant]
    for state in states[6 + len(fading) :]:
        assert (state["blueprint_indices"] == -1).all()
        assert not state["metrics", "alpha"].any()
        assert not state["action_mask", "op"][:, [Op.PRUNE, Op.FOSSILIZE, Op.ADVANCE]].any()
    for state in states[6 : 6 + len(fading)]:
        assert not state["action_mask", "slot"][:, 1:, 0].any()


def test_instant_retarget_sets_alpha_in_the_same_step():
    env = small_env(num_envs=2, max_epochs=12)
    aim = {"op": Op.SET_ALPHA_TARGET, "alpha_target": 0, "alpha_speed": 0, "style": MULTIPLY}
    state = play(env, [*GROW, {}, {}, aim])[-1]
    assert state["last_action_success"].all()
    assert (state["metrics", "alpha"][:, 0] == 0.5).all()
    assert (state["observation"][:, column("slot0_alpha_mode_norm")] == 0).all()
    assert (state["observation"][:, column("slot0_alpha_velocity")] == -0.5).all()
    assert (state["observation"][:, column("slot0_alpha_algorithm_norm")] == 0.5).all()
    assert (state["metrics", "stage"][:, 0] == Stage.BLENDING).all()


@pytest.mark.parametrize("gates", ["permissive", "strict", "hidden"])
@pytest.mark.parametrize("contribution", [0.99, 1.0])
def test_gate_five(gates, contribution):
    # Strict and hidden gates also ask for the gradient at gate 2: see that it is healthy.
    env = small_env(num_envs=2, max_epochs=12, gates=gates)
    state = env.reset()
    for heads in HOLDING:
        env.state.host_gradient_norm = torch.zeros(2)
        state = act(env, state, **heads)
        assert state["last_action_success"].all()
    env.state.slots.contribution = torch.full((2, 3), contribution)
    masked = env.observe()["action_mask", "slot"][:, Op.FOSSILIZE, 0]
    state = act(env, state, op=Op.FOSSILIZE)
    passes = gates == "permissive" or contribution >= 1.0
    assert masked.tolist() == [passes or gates == "hidden"] * 2
    assert state["last_action_success"].squeeze(1).tolist() == [passes] * 2
    stage = Stage.FOSSILIZED if passes else Stage.HOLDING
    assert (state["metrics", "stage"][:, 0] == stage).all()
    executed = Op.FOSSILIZE if passes else Op.WAIT
    assert (state["metrics", "executed_op"] == executed).all()
    assert (state["last_action_op"] == Op.FOSSILIZE).all()


@pytest.mark.parametrize("gates", ["permissive", "strict", "hidden"])
@pytest.mark.parametrize("ratio", [0.09, 0.11])
def test_gate_two(gates, ratio):
    env = small_env(num_envs=2, gates=gates)
    state = play(env, GROW[:2])[-1]
    env.state.host_gradient_norm = torch.ones(2)
    env.state.slots.gradient_norm = torch.full((2, 3), ratio)
    masked = env.observe()["action_mask", "slot"][:, Op.ADVANCE, 0]
    state = act(env, state, op=Op.ADVANCE)
    passes = gates == "permissive" or ratio > 0.10
    assert masked.tolist() == [passes or gates == "hidden"] * 2
    assert state["last_action_success"].squeeze(1).tolist() == [passes] * 2
    stage = Stage.BLENDING if passes else Stage.TRAINING
    assert (state["metrics", "stage"][:, 0] == stage).all()


def test_fossils_learn_at_the_rate_of_the_host():
    task = replace(make_task("digits"), host_lr=0.25, seed_lr=0.5)
    env = small_env(task=task, num_envs=2, max_epochs=12)
    given = watch_training(env)
    play(env, [*HOLDING, {"op": Op.FOSSILIZE}, {**GROW[0], "slot": 1}])
    live, fossil = given[-3][0].seed_lr, given[-1][0].seed_lr
    assert live.tolist() == [[0.5, 0.5, 0.5]] * 2
    assert fossil.tolist() == [[0.25, 0.5, 0.5]] * 2


def test_a_seed_is_planted_without_a_trace_of_its_predecessor():
    env = small_env(num_envs=2, max_epochs=20)
    state = play(env, [*GROW[:2], {"op": Op.PRUNE}, *[{}] * 8])[-1]
    for left_over in (env.population.seed_params[0], seed_velocities(env.population)[0]):
        left_over.fill_(7)
    state = act(env, state, **GROW[0])  # which doesn't train before it is advanced
    assert (state["blueprint_indices"][:, 0] == CONV_LIGHT).all()
    assert not seed_velocities(env.population)[0].any()
    used = (8 + 1) + (8 * 8 * 9 + 2 * 8)  # gate; kernel and norm
    assert (env.population.seed_params[0][:, :used] != 7).all()


@pytest.mark.parametrize(("before", "learned"), [(0, 0.0), (GATED, 7.0)])
def test_a_gate_is_fresh_when_the_algorithm_becomes_gate(before, learned):
    # Seeds that never learn: what a gate holds is what it was given.
    env = small_env(task=replace(make_task("digits"), seed_lr=0.0), num_envs=2, max_epochs=12)
    state = play(env, [{**GROW[0], "style": before}, *GROW[1:], {}, {}])[-1]
    gate = slice(8 + 1)  # a weight a channel of slot 0, and a bias
    env.population.seed_params[0][:, gate] = 7.0
    state = act(env, state, op=Op.SET_ALPHA_TARGET, style=GATED)
    assert state["last_action_success"].all()
    assert (env.population.seed_params[0][:, gate] == learned).all()


def test_fossils_cannot_be_pruned():
    state = play(env := small_env(max_epochs=12), [*HOLDING, {"op": Op.FOSSILIZE}])[-1]
    assert state["last_action_success"].all()
    alpha = state["metrics", "alpha"]
    state = env.step(state.clone().set("action", action(3, op=Op.PRUNE)))["next"]
    assert not state["last_action_success"].any()
    assert state["metrics", "alpha"].equal(alpha)
