"""The environment in its surroundings: seeds, devices, processes, modes of torch."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import SerialEnv, check_env_specs

from benchmarks.invariants import differences
from envs import ArrayTask, ModuleHost, MorphogenesisEnv, RewardConfig, module_seed
from envs.actions import BLUEPRINTS, Op
from examples.own_network import ResNet
from tests.support.environments import act, random_states, small_env
from tests.support.populations import matrices

ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)
needs_accelerator = pytest.mark.skipif(ACCELERATOR is None, reason="needs a GPU")
GERMINATE = {"op": Op.GERMINATE, "blueprint": BLUEPRINTS.index("conv_light")}


# -- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["digits", "digits_mixed", "digits_varied", "pydoc", "scaffold"])
@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_pickled_environment_goes_on_alike(task, how):
    sizes = {} if task == "scaffold" else {"batches_per_epoch": 1, "validation_size": 20}
    env = MorphogenesisEnv(task, num_envs=2, seed=0, **sizes)
    state = act(env, env.reset(), **GERMINATE)
    if how == "pickle":
        twin = pickle.loads(pickle.dumps(env))
    else:
        file = io.BytesIO()
        torch.save(env, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    for _ in range(3):
        mine, theirs = act(env, state, op=Op.ADVANCE), act(twin, state, op=Op.ADVANCE)
        assert differences(mine, theirs) == []
        state = mine


def test_a_network_of_ones_own_pickles_with_its_factory():
    task = ArrayTask(
        name="own",
        host=ModuleHost(
            ResNet,
            ["stem"],
            torch.zeros(1, 1, 8, 8),
            blueprints={"conv": module_seed(partial(nn.Conv2d, 16, kernel_size=1))},
        ),
        train=(torch.rand(40, 1, 8, 8), torch.arange(40) % 10),
        validation=20,
    )
    env = MorphogenesisEnv(task, num_envs=2, num_slots=1, seed=0, batches_per_epoch=1)
    state = env.reset()
    twin = pickle.loads(pickle.dumps(env))
    assert differences(act(env, state), act(twin, state)) == []


# -- seeds --------------------------------------------------------------------------------------


def test_worlds_without_a_seed_differ():
    losses = [small_env(seed=None).reset()["metrics", "val_loss"] for _ in range(2)]
    assert (losses[0] != losses[1]).any()
    both = SerialEnv(2, lambda: small_env(seed=None)).reset()["metrics", "val_loss"]
    assert (both[0] != both[1]).any()


def test_a_world_whose_seed_is_set_to_none_differs_from_before():
    env = small_env()
    before = env.reset()["metrics", "val_loss"]
    env.set_seed(None)
    assert (env.reset()["metrics", "val_loss"] != before).any()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("seed", "error"), [(2**63, ValueError), (-5, ValueError), (1.5, TypeError), ("3", TypeError)]
)
def test_a_bad_seed_is_refused_and_changes_nothing(seed, error, static):
    env, twin = small_env(), small_env()
    with pytest.raises(error, match=r"seed must be an integer from 0 to .*, got"):
        env.set_seed(seed, static_seed=static)
    assert differences(env.reset(), twin.reset()) == []


def test_numpys_integers_are_integers():
    sizes = {"num_envs": np.int64(2), "num_slots": np.int32(2), "max_epochs": np.int16(4)}
    env = MorphogenesisEnv(seed=np.int64(3), batches_per_epoch=np.int8(1), **sizes)
    env.set_seed(np.int64(5))
    check_env_specs(env)
    assert type(env.num_envs) is int


# -- arguments ------------------------------------------------------------------------------------


def test_no_device_is_the_cpu():
    assert small_env(device=None).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["abacus", "cuda:99", 3.5])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match="device must be one of PyTorch's on this machine"):
        small_env(device=device)


def test_unknown_arguments_of_reset_are_refused():
    with pytest.raises(TypeError, match=r"reset must have no other arguments, got \['sed'\]"):
        small_env().reset(sed=3)


@pytest.mark.parametrize("mask", [torch.ones(3, 1), torch.ones(3, 1, dtype=torch.int64)])
def test_a_reset_mask_of_another_dtype_is_refused(mask):
    env = small_env()
    state = env.reset()
    with pytest.raises(TypeError, match="'_reset' must be bool"):
        env._reset(state.set("_reset", mask))


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match=r"gamma must be a number, got 'x'"):
        RewardConfig(gamma="x")


def test_an_environment_says_what_it_is():
    shown = repr(small_env())
    assert shown == (
        "MorphogenesisEnv(task='digits', num_envs=3, num_slots=3, max_epochs=8, device='cpu')"
    )


# -- before, between and after episodes ----------------------------------------------------------


def test_a_step_before_any_reset_is_an_error():
    env = small_env()
    state = small_env().reset()
    with pytest.raises(RuntimeError, match="row 0 must be reset before it is stepped"):
        act(env, state)


def test_a_step_past_the_end_is_an_error_that_names_the_row():
    env = small_env(max_epochs=2)
    state = act(env, act(env, env.reset()))
    assert state["done"].all()
    state.set("_reset", torch.tensor([[True], [False], [True]]))
    env.reset(state)
    with pytest.raises(RuntimeError, match="row 1 must be reset"):
        act(env, state)
    assert env.state.epoch.tolist() == [0, 2, 0]


@pytest.mark.parametrize("task", ["digits", "scaffold"])
def test_rows_that_are_not_to_step_stay_as_they_are(task):
    sizes = {"batches_per_epoch": 2, "minibatch_size": 16} if task == "digits" else {}
    env, twin = (MorphogenesisEnv(task, num_envs=3, seed=0, **sizes) for _ in range(2))
    state, other = env.reset(), twin.reset()
    for heads in (GERMINATE, {"op": Op.ADVANCE}, {"op": Op.ADVANCE}):
        state, other = act(env, state, **heads), act(twin, other, **heads)
    resting = state.clone().set("_step", torch.tensor([[True], [False], [True]]))
    after, whole = act(env, resting, op=Op.PRUNE), act(twin, other, op=Op.PRUNE)
    assert differences(after, whole, [0, 2]) == []
    unlike = differences(after.exclude("reward", "terminated"), state, [1])
    assert unlike == []
    assert after["reward"][1] == 0
    if task == "digits":  # and its network goes on where it stood
        for mine, theirs in zip(matrices(env.population), matrices(twin.population), strict=True):
            assert mine[[0, 2]].equal(theirs[[0, 2]])
    state, other = act(env, after), act(twin, whole)
    assert state["metrics", "epoch"].tolist() == [[5], [4], [5]]
    assert differences(state, other, [0, 2]) == []


def test_a_rollout_until_all_are_done():
    env = small_env(max_epochs=4)
    rollout = env.rollout(9, break_when_all_done=True, break_when_any_done=False)
    assert rollout.shape == (3, 4)


# -- modes of torch -------------------------------------------------------------------------------


MODES: dict[str, Callable[[], AbstractContextManager]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "nothing": nullcontext,
}


def grown(env: MorphogenesisEnv) -> list[TensorDictBase]:
    """Every stage, an action of every kind, and a partial reset."""
    states = random_states(env, 3)
    states.append(act(env, states[-1], **GERMINATE))
    for op in (Op.ADVANCE, Op.ADVANCE, Op.WAIT):
        states.append(act(env, states[-1], op=op, slot=0))
    mask = torch.arange(env.num_envs)[:, None] == 1
    states.append(env.reset(states[-1].clone().set("_reset", mask)))
    return states


@pytest.mark.parametrize("task", ["digits", "scaffold"])
@pytest.mark.parametrize("mode", MODES)
def test_modes_change_nothing(mode, task):
    sizes = (
        {}
        if task == "digits"
        else dict.fromkeys(("batches_per_epoch", "minibatch_size", "validation_size"))
    )
    expected = grown(small_env(task=task, **sizes))
    with MODES[mode]():
        got = grown(small_env(task=task, **sizes))
    for mine, theirs in zip(got, expected, strict=True):
        assert differences(mine, theirs) == []


def test_a_float64_default_changes_nothing():
    """In a process of its own: the default is the whole process's."""
    code = (
        "import torch\n"
        "from tests.envs import test_morphogenesis_surroundings as t\n"
        "from tests.support.environments import small_env\n"
        "for task, sizes in (('digits', {}), ('scaffold', dict.fromkeys(\n"
        "        ('batches_per_epoch', 'minibatch_size', 'validation_size')))):\n"
        "    expected = t.grown(small_env(task=task, **sizes))\n"
        "    torch.set_default_dtype(torch.float64)\n"
        "    got = t.grown(small_env(task=task, **sizes))\n"
        "    torch.set_default_dtype(torch.float32)\n"
        "    for a, b in zip(got, expected, strict=True):\n"
        "        keys = [k for k in a.keys(True, True) if not a[k].equal(b[k])]\n"
        "        assert keys == [], keys\n"
        "        assert all(a[k].dtype == b[k].dtype for k in a.keys(True, True))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- devices and processes ------------------------------------------------------------------------


def test_state_and_networks_move_to_another_device():
    """Specs can't be moved to the one other device that every machine has."""
    env = small_env()
    env.reset()
    population, state = env.population, env.state.to(torch.device("meta"))
    population.to(torch.device("meta"))
    tensors = [*matrices(population), population.offered, population.data.validation_inputs()]
    tensors += [population.data.train_targets(torch.zeros(1, 1, dtype=torch.int64, device="meta"))]
    tensors += [state.epoch, state.slots.alpha, state.history.losses, *state.terms.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    with pytest.raises(ValueError, match="device must be one of PyTorch's"):
        env.to("abacus")


@needs_accelerator
@pytest.mark.parametrize("task", ["digits", "scaffold"])
def test_an_environment_goes_on_on_another_device(task):
    env = MorphogenesisEnv(task, num_envs=2, seed=0)
    state = act(env, env.reset(), **GERMINATE)
    assert env.to(ACCELERATOR) is env
    state = act(env, state.to(ACCELERATOR))
    assert {value.device.type for value in state.values(True, True)} == {ACCELERATOR.type}


@needs_accelerator
@pytest.mark.parametrize("task", ["digits", "digits_mixed", "digits_varied", "pydoc"])
def test_an_accelerator_trains_what_the_cpu_trains(task):
    shown = []
    for device in ("cpu", ACCELERATOR):
        env = small_env(task=task, num_envs=7, seed=0, device=device)
        offered = env.population.offered.nonzero().squeeze(1).tolist()
        blueprints = [offered[row % len(offered)] for row in range(env.num_envs)]
        state = env.reset()
        for op in (Op.GERMINATE, Op.ADVANCE, Op.ADVANCE, Op.WAIT, Op.FOSSILIZE):
            state = act(env, state, op=op, blueprint=blueprints)
        shown.append(state.cpu())
    assert torch.equal(shown[0]["action_mask", "slot"], shown[1]["action_mask", "slot"])
    for key in ("observation", ("metrics", "val_loss")):
        torch.testing.assert_close(shown[0][key], shown[1][key], rtol=1e-2, atol=2e-2)


def test_formulas_move_to_another_device():
    population = MorphogenesisEnv("scaffold", num_envs=2).population
    population.to(torch.device("meta"))
    tensors = [value for value in vars(population).values() if isinstance(value, torch.Tensor)]
    assert tensors
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def step_in_child(env: MorphogenesisEnv, state: TensorDictBase, queue: object) -> None:
    queue.put(act(env, state)["reward"].tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_a_threaded_step_goes_on():
    code = (
        "import multiprocessing, torch\n"
        "from tests.envs.test_morphogenesis_surroundings import step_in_child\n"
        "from tests.support.environments import act, small_env\n"
        "torch.set_num_threads(2)\n"
        "env = small_env(num_envs=4)\n"
        "state = act(env, env.reset())\n"
        "context = multiprocessing.get_context('fork')\n"
        "queue = context.Queue()\n"
        "child = context.Process(target=step_in_child, args=(env, state, queue), daemon=True)\n"
        "child.start()\n"
        "theirs = queue.get(timeout=60)\n"
        "assert theirs == act(env, state)['reward'].tolist()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
