"""Controls of an evaluation: other hosts' observations and actions."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from envs import MorphogenesisEnv, feature_names
from envs.actions import HEADS
from esper_rl import train
from esper_rl.cli import main
from esper_rl.config import compose_config
from esper_rl.errors import ConfigError
from esper_rl.evaluation import (
    EVALUATION_SEED,
    GREEDY,
    OPEN_LOOP,
    RANDOM,
    SAMPLED,
    Arena,
    Player,
    evaluate,
    evaluate_run,
    shuffled,
)
from esper_rl.evaluation.controls import Recorder, Replay
from esper_rl.growing.baselines import RandomPolicy
from tests.support.runs import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train(compose_config([*TINY, f"run_dir={folder}", "eval_episodes=0"]))


class Looks(torch.nn.Module):
    """A policy that notes what it is shown."""

    in_keys = out_keys = ()

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("seen", tensordict["observation"].clone())


class OnlyPolicy:
    """An arena as far as a shuffled player needs it."""

    class actor_critic:
        actor = Looks()


def seen_by(player: Player, observation: torch.Tensor) -> torch.Tensor:
    state = TensorDict({"observation": observation}, [len(observation)])
    shown = player.make(OnlyPolicy())(state)
    assert shown["observation"].equal(observation)
    return shown["seen"]


def test_named_columns_are_those_of_the_row_before():
    observation = torch.rand(4, 6, 112)
    names = feature_names(3)
    moved = [
        names.index("accuracy_norm"),
        *(i for i, n in enumerate(names) if n.endswith("_alpha")),
    ]
    assert len(moved) == 1 + 3
    seen = seen_by(shuffled(["accuracy_norm", "slot?_alpha"], 3), observation)
    for row in range(4):
        assert seen[row][..., moved].equal(observation[row - 1][..., moved])
    others = [column for column in range(112) if column not in moved]
    assert seen[..., others].equal(observation[..., others])
    assert seen_by(shuffled(["*"], 3), observation).equal(observation.roll(1, dims=0))


@pytest.mark.parametrize("patterns", [["colour"], ["accuracy_norm", "slot7_alpha"]])
def test_unknown_columns_are_refused(patterns: list[str]):
    with pytest.raises(ConfigError, match=f"got '{patterns[-1]}'"):
        shuffled(patterns, 3)


def test_actions_are_replayed_step_by_step_on_the_next_row():
    env = MorphogenesisEnv("scaffold", num_envs=3, max_epochs=5, seed=0)
    recorder = Recorder(RandomPolicy())
    mine = env.rollout(5, recorder)["action"]
    theirs = env.rollout(5, Replay(recorder.actions))["action"]
    for head in HEADS:
        assert theirs[head].equal(mine[head].roll(1, dims=0))
    assert not theirs["op"].equal(mine["op"])


def test_a_policy_that_looks_at_nothing_loses_nothing_by_it():
    """The same actions on every row: whose they are makes no difference."""
    env = MorphogenesisEnv("scaffold", num_envs=3, max_epochs=20, seed=0)

    def same(state):
        state = RandomPolicy()(state)
        return state.set("action", state["action"][:1].expand(3).clone())

    same.in_keys = same.out_keys = []
    recorder = Recorder(same)
    earned = evaluate(recorder, env, 3).returns
    env.set_seed(0)
    assert evaluate(Replay(recorder.actions), env, 3).returns.equal(earned)


def test_controls_play_the_episodes_of_the_others(run: Path):
    """By hand: the greedy policy's actions, a row further, on the same hosts."""
    arena = Arena(run, 3)
    recorder = Recorder(arena.enter(GREEDY))
    evaluate(recorder, arena.world, 3, "greedy")
    arena.world.set_seed(EVALUATION_SEED)
    expected = evaluate(Replay(recorder.actions), arena.world, 3).returns
    assert Arena(run, 3).play(OPEN_LOOP, gamma=1.0).returns.equal(expected)


def test_a_shuffled_policy_judges_what_another_row_shows(run: Path):
    """By its values in the first step, which are the greedy policy's of the row before."""
    judged = []
    arena = Arena(run, 3)
    for player in (GREEDY, shuffled(["*"], 3)):
        policy = arena.enter(player)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            judged.append(policy(arena.world.reset())["baseline"])
    assert judged[1].allclose(judged[0].roll(1, dims=0))
    assert not judged[1].allclose(judged[0])


def test_the_table_and_the_file_show_controls(run: Path, capsys: pytest.CaptureFixture[str]):
    words = ["evaluate", str(run), "--episodes", "2", "--open-loop"]
    words += ["--shuffle", "accuracy_norm,loss_norm", "--shuffle", "slot*"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    names = ["greedy, actions of another host"]
    names += ["greedy, shuffled: accuracy_norm loss_norm", "greedy, shuffled: slot*"]
    assert all(name in printed for name in names)
    saved = json.loads((run / "evaluation.json").read_text())
    for name in names:
        greedy, control = (saved["policies"][n]["returns"]["mean"] for n in ("greedy", name))
        drop = saved["drop_in_return"][name.removeprefix("greedy, ")]["mean"]
        assert drop == pytest.approx(greedy - control, abs=1e-5)


def test_bad_controls_are_refused_before_anything_is_played(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", str(run), "--shuffle", "colour"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "'slot*_alpha', got 'colour'" in err


def test_players_find_the_same_episodes_in_an_arena_whoever_played_before(run: Path):
    """As in one that was opened for them alone."""
    arena = Arena(run, 3)
    for player in (OPEN_LOOP, SAMPLED, RANDOM, GREEDY, RANDOM):
        played = arena.play(player)
        assert played.returns.equal(Arena(run, 3).play(player).returns), player.name


def test_a_run_is_opened_once(run: Path, monkeypatch: pytest.MonkeyPatch):
    """Configuration, task and world are made for all players together."""
    counts = Counter()

    def count(module: str, name: str) -> None:
        original = getattr(import_module(module), name)

        def counted(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return original(*args, **kwargs)

        for place in [m for m in sys.modules.values() if getattr(m, name, None) is original]:
            monkeypatch.setattr(place, name, counted)

    count("esper_rl.training.loading", "read_config")
    count("esper_rl.config", "make_env")
    evaluate_run(run, 2)
    assert counts == {"read_config": 1, "make_env": 1}
