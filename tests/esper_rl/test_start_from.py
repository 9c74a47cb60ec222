"""Runs that begin with the policy of another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from torch import nn

from envs import LoopTask, register_task
from envs.actions import Op
from esper_rl import Callback, train
from esper_rl.cli import main
from esper_rl.config import TrainConfig
from esper_rl.evaluation import SAMPLED, Arena
from esper_rl.runs import CheckpointError
from tests.support.runs import weights

Configure = Callable[..., TrainConfig]
SLOW = "ppo.lr=1e-30"
"""A learning rate that changes no weight but a zero, and that by nothing."""


@pytest.fixture
def start(tiny_config: Configure, tmp_path: Path) -> Path:
    return train(tiny_config(f"run_dir={tmp_path / 'start'}", "seed=3"))


def test_a_run_begins_with_the_policy_of_another_task(start: Path, tiny_config: Configure) -> None:
    run = train(tiny_config(SLOW, "task=digits_full", f"start_from={start}"))
    torch.testing.assert_close(weights(run), weights(start), rtol=0, atol=1e-20)


def test_that_policy_collects_from_the_first_step_on(
    tiny_config: Configure, tmp_path: Path
) -> None:
    always_wait = "policy.initial_logits.op=[20,0,0,0,0,0]"
    waits = train(tiny_config(SLOW, always_wait, f"run_dir={tmp_path / 'waits'}"))
    steps = []

    class Ops(Callback):
        def on_rollout(self, batch: TensorDictBase) -> None:
            steps.append(batch["action", "op"].clone())

    train(tiny_config("workers=2", "total_steps=20", f"start_from={waits}"), [Ops()])
    assert (torch.cat(steps) == Op.WAIT).all()


def test_what_it_cannot_begin_with_leaves_no_folder(start: Path, tiny_config: Configure) -> None:
    config = tiny_config(f"start_from={start}", "policy=v1")
    with pytest.raises(CheckpointError, match=r"V2 .* which doesn't fit this V1"):
        train(config)
    assert not Path(config.run_dir or "").exists()


def test_the_command_says_that_there_is_no_such_run(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *tiny_overrides, f"start_from={tmp_path / 'nowhere'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("esper-rl: ")
    assert "nowhere" in line
    assert not (tmp_path / "run").exists()


def two_slots() -> LoopTask:
    """Hosts with fewer slots than the policy was trained with."""
    x, y = torch.randn(24, 1, 4, 4), torch.arange(24) % 2

    def make_network() -> nn.Module:
        parts = [nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 2)]
        return nn.Sequential(*parts)

    def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    def validate(network: nn.Module) -> tuple[float, float]:
        return 1.0, 100 * float((network(x).argmax(1) == y).double().mean())

    slots = ["0", "1"]
    return LoopTask(make_network, train_epoch, validate, slots=slots, example=x[:1], max_epochs=5)


NO_SIZES = [f"env.{n}=null" for n in ("batches_per_epoch", "minibatch_size", "validation_size")]


def test_a_policy_serves_hosts_with_fewer_slots(start: Path, tiny_config: Configure) -> None:
    register_task("two_slots_for_a_test", two_slots)
    other = ["task=two_slots_for_a_test", *NO_SIZES]
    run = train(tiny_config(SLOW, *other, f"start_from={start}"))
    torch.testing.assert_close(weights(run), weights(start), rtol=0, atol=1e-20)
    arena = Arena(start, 2, settings=other)
    assert (arena.world.num_slots, arena.world.task.num_slots) == (3, 2)
    assert arena.play(SAMPLED).returns.isfinite().all()
