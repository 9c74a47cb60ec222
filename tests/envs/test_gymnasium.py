"""The world as Gymnasium sees it, held against the world itself."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import GymEnv

from envs import MorphogenesisEnv
from envs.actions import HEADS, Op
from envs.adapters.gymnasium import GymnasiumEnv, GymnasiumVectorEnv

ID = "esper_rl/Morphogenesis-v0"
SMALL = {"validation_size": 40, "minibatch_size": 8, "batches_per_epoch": 1, "max_epochs": 4}
SHOWN = ("observation", "blueprint_indices", "last_action_success", "last_action_op")


def actions(count: int, rows: int, sizes: list[int], seed: int = 0) -> np.ndarray:
    """Random ones, ``[count, rows, 8]``, that plant a lot."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, sizes, (count, rows, len(sizes)))
    drawn[..., 0] = np.where(generator.random((count, rows)) < 0.5, Op.GERMINATE, drawn[..., 0])
    return drawn


def native_step(world: MorphogenesisEnv, action: np.ndarray) -> TensorDictBase:
    heads = torch.from_numpy(action).unbind(1)
    chosen = TensorDict({"action": dict(zip(HEADS, heads, strict=True))}, world.batch_size)
    return world.step(chosen)["next"]


def assert_same(observation: dict, info: dict, shown: TensorDictBase) -> None:
    """Observation and infos are what the world showed, to the last bit."""
    for name in SHOWN:
        theirs = shown[name].squeeze(1) if name == "last_action_success" else shown[name]
        assert np.array_equal(observation[name], theirs.numpy()), name
    for name, value in shown["metrics"].items():
        assert np.array_equal(info["metrics"][name], value.numpy()), name


def vector(autoreset_mode: str = "NextStep", rows: int = 3, **changes: object):
    return gymnasium.make_vec(
        ID, num_envs=rows, autoreset_mode=autoreset_mode, **{**SMALL, **changes}
    )


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- found, checked, carried about -----------------------------------------------------------------


@pytest.mark.parametrize("task", ["scaffold", "digits"])
def test_gymnasiums_own_checks_find_nothing(task, no_warnings):
    small = SMALL if task == "digits" else {"max_epochs": 4}
    check_env(gymnasium.make(ID, task=task, **small).unwrapped)
    env = gymnasium.make(ID, task=task, **small)  # with its passive checks
    env.reset(seed=0)
    over = False
    while not over:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        over = terminated or truncated
    env.close()


def test_gymnasium_finds_it_in_a_program_that_does_not_import_it():
    code = (
        "import gymnasium\n"
        f"env = gymnasium.make('envs:{ID}', task='scaffold')\n"
        "print(env.reset(seed=0)[0]['observation'].shape)\n"
        f"print(gymnasium.make_vec('{ID}', num_envs=2, task='scaffold').num_envs)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(112,)", "2"]


def test_a_spec_makes_the_same_environment_again():
    env = gymnasium.make(ID, task="scaffold", max_epochs=7)
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.spec.kwargs == env.spec.kwargs
    assert np.array_equal(
        env.reset(seed=3)[0]["observation"], again.reset(seed=3)[0]["observation"]
    )
    assert vector().spec.id == ID


@pytest.mark.parametrize("kind", [GymnasiumEnv, GymnasiumVectorEnv])
def test_a_pickled_environment_goes_on(kind):
    env = kind("digits", **SMALL, **({} if kind is GymnasiumEnv else {"num_envs": 2}))
    env.reset(seed=0)
    env.action_space.seed(0)
    env.step(env.action_space.sample())
    twin = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    (mine, *_), (theirs, *_) = env.step(action), twin.step(action)
    for name in SHOWN:
        assert np.array_equal(mine[name], theirs[name])


# -- the same numbers -----------------------------------------------------------------------------


def test_one_network_is_the_worlds():
    env, world = gymnasium.make(ID, **SMALL), MorphogenesisEnv(num_envs=1, **SMALL)
    sizes = env.action_space.nvec.tolist()
    assert sizes == [world.head_sizes[head] for head in HEADS]
    for episode, seed in enumerate((5, None)):  # the second one goes on from the first
        if seed is not None:
            world.set_seed(seed)
        observation, info = env.reset(seed=seed)
        shown = world.reset()
        for action in actions(SMALL["max_epochs"], 1, sizes, seed=episode):
            assert_same(
                {k: np.asarray(v)[None] for k, v in observation.items()},
                {"metrics": {k: v[None] for k, v in info["metrics"].items()}},
                shown,
            )
            observation, reward, terminated, truncated, info = env.step(action[0])
            shown = native_step(world, action)
            assert reward == shown["reward"].item()
            assert (terminated, truncated) == (shown["terminated"].item(), False)
        assert terminated


def test_a_vector_environment_is_the_world_and_its_first_row_the_single_one():
    envs, world = vector(), MorphogenesisEnv(num_envs=3, **SMALL)
    single = gymnasium.make(ID, **SMALL)
    observation, info = envs.reset(seed=2)
    first, _ = single.reset(seed=2)
    world.set_seed(2)
    shown = world.reset()
    for action in actions(SMALL["max_epochs"], 3, envs.single_action_space.nvec.tolist()):
        assert_same(observation, info, shown)
        for name in SHOWN:
            assert np.array_equal(observation[name][0], first[name])
        observation, rewards, terminated, truncated, info = envs.step(action)
        first, *_ = single.step(action[0])
        shown = native_step(world, action)
        assert np.array_equal(rewards, shown["reward"].squeeze(1).numpy())
    assert terminated.all()
    assert not truncated.any()
    assert envs.observation_space.contains(observation)


def test_torchrls_wrapper_gives_the_same_numbers():
    wrapped = GymEnv(ID, categorical_action_encoding=True, **SMALL)
    world = MorphogenesisEnv(num_envs=1, **SMALL)
    wrapped.set_seed(4)  # resets, so the next reset begins a second episode
    world.set_seed(4)
    world.reset()
    mine, theirs = wrapped.reset(), world.reset()
    for action in actions(SMALL["max_epochs"], 1, [world.head_sizes[head] for head in HEADS]):
        assert mine["observation"].equal(theirs["observation"][0])
        mine = wrapped.step(mine.set("action", torch.from_numpy(action[0])))["next"]
        theirs = native_step(world, action)
        assert mine["reward"].item() == theirs["reward"].item()
        assert mine["done"].item() == theirs["done"].item()


# -- episodes in a batch --------------------------------------------------------------------------


def play(envs: GymnasiumVectorEnv, steps: int) -> list[tuple]:
    envs.reset(seed=0)
    sizes = envs.single_action_space.nvec.tolist()
    return [envs.step(action) for action in actions(8, envs.num_envs, sizes)[:steps]]


def test_the_next_step_resets_what_is_over():
    *_, before, after, later = play(vector(), 6)
    assert before[2].all()
    assert (after[4]["metrics"]["epoch"] == 0).all()
    assert not after[1].any()
    assert not after[2].any()
    assert (later[4]["metrics"]["epoch"] == 1).all()


def test_the_same_step_resets_what_is_over_and_gives_the_last():
    ended, now = play(vector(), 5)[-2:]
    observation, rewards, terminated, _, info = play(vector("SameStep"), 4)[-1]
    assert terminated.all()
    assert np.array_equal(rewards, ended[1])
    for name in SHOWN:
        assert np.array_equal(observation[name], now[0][name])
        assert all(
            np.array_equal(info["final_obs"][row][name], ended[0][name][row]) for row in range(3)
        )
    assert np.array_equal(
        info["final_info"]["metrics"]["val_loss"], ended[4]["metrics"]["val_loss"]
    )
    assert info["_final_obs"].all()
    assert info["_final_info"].all()


def test_nothing_is_reset_where_that_is_disabled():
    envs = vector("Disabled")
    observation, *_ = play(envs, 4)[-1]
    with pytest.raises(ResetNeeded, match="row 0 must be reset"):
        envs.step(envs.action_space.sample())
    mask = np.array([True, False, True])
    fresh, info = envs.reset(options={"reset_mask": mask})
    assert info["metrics"]["epoch"].ravel().tolist() == [0, 4, 0]
    assert np.array_equal(fresh["observation"][1], observation["observation"][1])
    with pytest.raises(ResetNeeded, match="row 1 must be reset"):
        envs.step(envs.action_space.sample())


def test_a_seed_counts_for_the_rows_that_are_reset_with_it():
    """And for the others from their own next reset on."""
    envs, fresh = vector("Disabled"), vector("Disabled")
    before, _ = envs.reset(seed=0)
    wanted, _ = fresh.reset(seed=5)
    seeded, _ = envs.reset(seed=5, options={"reset_mask": np.array([False, True, False])})
    then, _ = envs.reset(options={"reset_mask": np.array([True, False, False])})
    expected = (wanted, wanted, before)
    for name in SHOWN:
        assert np.array_equal(seeded[name][[0, 2]], before[name][[0, 2]]), name
        for row, source in enumerate(expected):
            assert np.array_equal(then[name][row], source[name][row]), (name, row)
    assert not np.array_equal(wanted["observation"], before["observation"])


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_rows_that_end_apart_are_reset_apart(mode):
    """Row 1 begins a second episode two steps after the others began their first one."""
    envs = vector(mode)
    play(envs, 2)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    epochs, ends = [], []
    for _ in range(5):
        *_, terminated, _, info = envs.step(envs.action_space.sample())
        epochs.append(info["metrics"]["epoch"].ravel().tolist())
        ends.append(terminated.tolist())
    others = [3, 4, 0, 1, 2] if mode == "NextStep" else [3, 0, 1, 2, 3]
    own = [1, 2, 3, 4, 0] if mode == "NextStep" else [1, 2, 3, 0, 1]
    assert epochs == [[a, b, a] for a, b in zip(others, own, strict=True)]
    assert [end[0] for end in ends] == [False, True, False, False, False]
    assert [end[1] for end in ends] == [False, False, False, True, False]


def test_episodes_can_be_truncated():
    *_, truncated, _ = play(vector(time_limit="truncate"), 4)[-1]
    assert truncated.all()


# -- wrappers -------------------------------------------------------------------------------------


def test_statistics_and_time_limits_work():
    env = RecordEpisodeStatistics(TimeLimit(gymnasium.make(ID, **SMALL), 3))
    env.reset(seed=0)
    rewards = []
    for _ in range(3):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
    assert (terminated, truncated) == (False, True)
    assert info["episode"]["r"] == pytest.approx(sum(rewards))
    steps = play(RecordVectorStatistics(vector()), 4)
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps))
    assert (steps[-1][4]["episode"]["l"] == 4).all()


# -- masks ----------------------------------------------------------------------------------------


def test_masks_are_the_worlds_with_a_slot_where_an_op_beside_wait_has_it():
    envs, world = vector(), MorphogenesisEnv(num_envs=3, **SMALL)
    sizes = envs.single_action_space.nvec.tolist()
    _, info = envs.reset(seed=2)
    world.set_seed(2)
    shown = world.reset()
    for action in actions(4, 3, sizes):
        parts = dict(
            zip(HEADS, np.split(info["action_mask"], np.cumsum(sizes)[:-1], 1), strict=True)
        )
        masks = shown["action_mask"]
        for head in set(HEADS) - {"slot"}:
            assert np.array_equal(parts[head], masks[head].numpy())
        for row in range(3):
            acting = [op for op in Op if op != Op.WAIT and masks["op"][row, op]]
            union = [any(masks["slot"][row, op, slot] for op in acting) for slot in range(3)]
            assert parts["slot"][row].tolist() == (union if acting else [True] * 3)
        assert np.array_equal(info["slot_mask"], masks["slot"].numpy())
        assert np.array_equal(envs.unwrapped.action_masks(), info["action_mask"])
        *_, info = envs.step(action)
        shown = native_step(world, action)
    single = gymnasium.make(ID, **SMALL)
    _, info = single.reset(seed=2)
    assert np.array_equal(single.get_wrapper_attr("action_masks")(), info["action_mask"])
    assert info["action_mask"].shape == (sum(sizes),)


def test_the_slot_part_of_a_mask_leaves_out_slots_where_nothing_can_be_done():
    """A seed that fades out at slot 0 leaves nothing legal there but WAIT."""
    single = gymnasium.make(ID, task="scaffold", num_slots=2, max_epochs=40)
    _, info = single.reset(seed=0)
    heads = {head: slice(*place) for head, place in _places(single.action_space.nvec).items()}
    offered = int(info["action_mask"][heads["blueprint"]].argmax())
    plan = [
        [Op.GERMINATE, 0, offered, 0, 0, 2, 0, 0],
        *[[Op.ADVANCE, 0, 0, 0, 0, 0, 0, 0]] * 2,
        *[[Op.WAIT, 0, 0, 0, 0, 0, 0, 0]] * 3,
        [Op.PRUNE, 0, 0, 0, 0, 0, 3, 0],
    ]
    for action in plan:
        *_, info = single.step(np.array(action))
    assert info["action_mask"][heads["slot"]].tolist() == [False, True]


def test_all_slots_are_legal_where_only_waiting_is():
    single = gymnasium.make(ID, task="scaffold", num_slots=1, max_epochs=40)
    _, info = single.reset(seed=0)
    heads = {head: slice(*place) for head, place in _places(single.action_space.nvec).items()}
    offered = int(info["action_mask"][heads["blueprint"]].argmax())
    single.step(np.array([Op.GERMINATE, 0, offered, 0, 0, 0, 0, 0]))
    *_, info = single.step(np.array([Op.PRUNE, *[0] * 7]))
    assert info["action_mask"][heads["op"]].tolist() == [True, *[False] * 5]
    assert info["action_mask"][heads["slot"]].tolist() == [True]


def _places(sizes: np.ndarray) -> dict[str, tuple[int, int]]:
    ends = np.cumsum(sizes).tolist()
    return {head: (end - size, end) for head, end, size in zip(HEADS, ends, sizes, strict=True)}


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(8), "must be integers"),
        (np.zeros(7, int), r"of shape \[1, 7\]"),
        ("wait", "must be integers"),
        (np.full(8, 9), "'op' must be 0 to 5, got 9"),
        (np.array([0, 0, -1, 0, 0, 0, 0, 0]), "'blueprint' must be 0 to 12, got -1"),
    ],
)
def test_a_bad_action_is_refused_and_changes_nothing(action, message):
    env = GymnasiumEnv(**SMALL)
    env.reset(seed=0)
    twin = pickle.loads(pickle.dumps(env))
    with pytest.raises(InvalidAction, match=message):
        env.step(action)
    wait = np.zeros(8, int)
    assert np.array_equal(env.step(wait)[0]["observation"], twin.step(wait)[0]["observation"])


def test_steps_outside_an_episode_are_refused():
    for env in (GymnasiumEnv(**SMALL), GymnasiumVectorEnv(num_envs=2, **SMALL)):
        with pytest.raises(ResetNeeded, match="must be reset"):
            env.step(env.action_space.sample())
        with pytest.raises(ResetNeeded, match="must be reset"):
            env.action_masks()
    env = GymnasiumEnv(**SMALL)
    env.reset()
    for _ in range(4):
        env.step(np.zeros(8, int))
    with pytest.raises(ResetNeeded, match="it is over"):
        env.step(np.zeros(8, int))


def test_bad_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"task must be one of .*digits"):
        gymnasium.make(ID, task="weather")
    for option, says in (("colour", "colour"), ("num_envs", r"must be left out .*make_vec")):
        with pytest.raises(TypeError, match=says):
            gymnasium.make(ID, **{option: 3})
    with pytest.raises(ValueError, match="autoreset_mode must be one of 'NextStep'"):
        vector("Never")
    with pytest.raises(ValueError, match="render_mode must be one of None"):
        GymnasiumVectorEnv(render_mode="smell")
    envs = vector()
    with pytest.raises(ValueError, match=r"options must be among \['reset_mask'\], got \['mask'\]"):
        envs.reset(options={"mask": np.ones(3, bool)})
    for mask, error in (
        (np.ones(2, bool), ValueError),
        (np.zeros(3, bool), ValueError),
        (np.ones(3), TypeError),
    ):
        with pytest.raises(error, match="reset_mask"):
            envs.reset(options={"reset_mask": mask})
    with pytest.raises(gymnasium.error.Error, match="Seed must be a python integer"):
        envs.reset(seed=[1, 2, 3])
