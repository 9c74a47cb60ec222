"""Policies as plain modules and as files: the same actions as the actor's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import Compose, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from esper_rl import PolicyConfig, cli
from esper_rl.export import export_policy
from esper_rl.policy import ActorCritic
from esper_rl.policy.serving import StepModule
from tests.support.fake_world import FakeWorld
from tests.support.policies import build

KINDS = {
    "lstm": PolicyConfig(hidden_size=16),
    "two layers": PolicyConfig(hidden_size=16, lstm_layers=2),
    "no memory": PolicyConfig(hidden_size=16, lstm_layers=0),
    "gru": PolicyConfig(hidden_size=16, lstm_layers=0, gru_layers=2),
    "all of it": PolicyConfig(
        hidden_size=16, lstm_layers=2, attention_span=3, action_feedback=False
    ),
}


def greedy_rollout(ac: ActorCritic, world: FakeWorld, steps: int) -> TensorDictBase:
    env = TransformedEnv(world, Compose(*ac.transforms()))
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        return env.rollout(steps, ac.actor, break_when_any_done=False)


def shown(step: StepModule, data: TensorDictBase) -> tuple:
    """What the module reads of steps, but for its state."""
    indices = [data[key] for key in step.index_keys]
    return data["observation"], indices, [data["action_mask", head] for head in step.heads]


@pytest.mark.parametrize("by_op", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_steps_are_the_actors(name: str, by_op: bool) -> None:
    world = FakeWorld(num_envs=6, by_op=by_op)
    ac = build(KINDS[name], world)
    batch, step = greedy_rollout(ac, world, steps=9), ac.step_module()
    state, fresh = step.initial_state(6), step.initial_state(6)
    for t in range(9):
        begins = batch["is_init"][:, t]
        state = [
            torch.where(begins.view(-1, *[1] * (old.dim() - 1)), new, old)
            for old, new in zip(state, fresh, strict=True)
        ]
        actions, log_probs, state = step(*shown(step, batch[:, t]), state)
        for i, head in enumerate(ac.heads):
            assert actions[:, i].equal(batch["action", head][:, t])
            wanted = batch["action", f"{head}_log_prob"][:, t]
            torch.testing.assert_close(log_probs[:, i], wanted, rtol=1e-4, atol=1e-5)


def test_draws_have_the_probabilities_of_the_heads() -> None:
    world = FakeWorld(num_envs=1)
    ac = build(KINDS["lstm"], world)
    step = ac.step_module(greedy=False)
    one = greedy_rollout(ac, world, steps=1)[:, 0]
    many = one.expand(20_000)
    torch.manual_seed(0)
    with torch.no_grad():
        actions, log_probs, _ = step(*shown(step, many), step.initial_state(20_000))
    for i in range(len(ac.heads)):
        for choice in actions[:, i].unique():
            taken = actions[:, i] == choice
            if i == 0:
                share = taken.float().mean().item()
                assert share == pytest.approx(log_probs[taken, i].exp().mean().item(), abs=0.015)
    legal = one["action_mask", "op"][0][actions[:, 0].unique()]
    assert legal.all()


@pytest.mark.parametrize("greedy", [True, False])
def test_it_compiles_in_full(greedy: bool) -> None:
    world = FakeWorld(num_envs=3)
    ac = build(KINDS["all of it"], world)
    step = ac.step_module(greedy=greedy)
    data = greedy_rollout(ac, world, steps=1)[:, 0]
    arguments = (*shown(step, data), step.initial_state(3))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    mine = compiled(*arguments)
    torch.manual_seed(0)
    theirs = step(*arguments)
    if greedy:
        assert mine[0].equal(theirs[0])
    for a, b in zip(mine[2], theirs[2], strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.runs import TINY

    folder = tmp_path_factory.mktemp("runs") / "run"
    words = [*TINY, f"run_dir={folder}", "eval_episodes=0", "--quiet"]
    assert cli.main(["train", *words]) == 0
    return folder


ALONE = """
import sys, torch
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("tensordict", "torchrl", "esper_rl", "envs"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
program = torch.export.load("policy.pt2").module()
arguments, wanted = torch.load("example.pt")
for mine, theirs in zip(program(*arguments)[:2], wanted, strict=True):
    torch.testing.assert_close(mine, theirs)
"""


def example(step: StepModule, rows: int = 5) -> tuple:
    """Arguments for so many rows."""
    data = FakeWorld(num_envs=rows, seed=3).reset()
    return (*shown(step, data), step.initial_state(rows))


def test_a_program_runs_without_this_project(run: Path, tmp_path: Path) -> None:
    step = export_policy(run, tmp_path / "policy.pt2")
    arguments = example(step)
    with torch.no_grad():
        wanted = step(*arguments)[:2]
    torch.save((arguments, wanted), tmp_path / "example.pt")
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True, timeout=100)


def test_an_onnx_file_gives_the_same(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    step = export_policy(run, tmp_path / "policy.onnx")
    observation, indices, masks, state = arguments = example(step)
    with torch.no_grad():
        actions, log_probs, following = step(*arguments)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    flat = [observation, *indices, *masks, *state]
    names = [each.name for each in session.get_inputs()]
    assert names[0] == "observation"
    given = {name: each.numpy() for name, each in zip(names, flat, strict=True)}
    for mine, theirs in zip(
        session.run(None, given), [actions, log_probs, *following], strict=True
    ):
        np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)


def test_the_command_writes_what_it_is_asked_to(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "policy.pt2"
    assert cli.main(["export", str(run), "--output", str(output), "--sampled"]) == 0
    assert output.stat().st_size > 1000
    for bad, says in (
        (tmp_path / "policy.txt", "--output must end in .pt2 or .onnx"),
        (tmp_path / "nowhere" / "policy.pt2", "--output must be in a folder that exists"),
    ):
        assert cli.main(["export", str(run), "--output", str(bad)]) == 2
        assert says in capsys.readouterr().err
