"""A run keeps the numbers of its world; another task brings its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from envs import RewardConfig, Task, make_task, register_task
from envs.registration import registered_only
from esper_rl import resume, train
from esper_rl.config import (
    TrainConfig,
    compose_config,
    dump_config,
    in_another_world,
    load_config,
    make_env,
    pin_world,
    unpin_world,
)
from esper_rl.runs import RunFolder
from esper_rl.runs.digest import sign
from esper_rl.training.loading import all_settings, read_config
from tests.support.runs import read_metrics

Configure = Callable[..., TrainConfig]


def priced(rent: float, epochs: int) -> Task:
    task = make_task("scaffold")
    return replace(task, name="mine", max_epochs=epochs, reward=RewardConfig(rent=rent))


NO_SIZES = ("env.batches_per_epoch=null", "env.minibatch_size=null", "env.validation_size=null")


def test_a_run_goes_on_under_its_own_numbers_when_its_task_gets_others(
    tiny_config: Configure,
) -> None:
    with registered_only({"mine": lambda: priced(rent=0.25, epochs=6)}):
        options = ("task=mine", *NO_SIZES, "env.max_epochs=null", "steps_per_iteration=24")
        run = train(tiny_config(*options, "total_steps=24"))
    text = (run / "config.yaml").read_text()
    assert "max_epochs: 6" in text
    assert "rent: 0.25" in text
    with registered_only({"mine": lambda: priced(rent=9.0, epochs=50)}):
        env = make_env(read_config(RunFolder.open(run)), seed=0)
        assert (env.max_epochs, env.reward_config.rent) == (6, 0.25)
        resume(run, total_steps=48)
        assert [line["episodes"] for line in read_metrics(run)] == [4, 4]


@pytest.mark.parametrize("task", ["digits", "scaffold"])
@pytest.mark.parametrize(
    "overrides", [(), ("env.max_epochs=7", "reward.rent=0.5", "reward.intervention.PRUNE=0.1")]
)
def test_nothing_is_left_open(task: str, overrides: tuple[str, ...]) -> None:
    config = compose_config([f"task={task}", *overrides])
    pinned = pin_world(config)
    assert make_env(pinned, seed=0).reward_config == make_env(config, seed=0).reward_config
    assert all(value is not None for value in vars(pinned.reward).values())
    assert {each.name for each in fields(RewardConfig)} - set(vars(pinned.reward)) == {"gamma"}
    sizes = {name for name, value in vars(pinned.env).items() if value is None}
    assert sizes == (set() if task == "digits" else {w[4:].split("=")[0] for w in NO_SIZES})
    assert load_config(dump_config(pinned)) == pinned
    assert pin_world(pinned) == pinned


def test_another_task_brings_its_own_numbers_but_for_those_that_were_asked_for() -> None:
    config = pin_world(compose_config(["task=digits", "reward.rent=0.5", "env.minibatch_size=32"]))
    assert unpin_world(config) == compose_config(["reward.rent=0.5", "env.minibatch_size=32"])
    varied = make_task("digits_full")
    for other in (
        in_another_world(config, ["task=digits_full"]),
        compose_config(["task=digits_full"], config),
    ):
        env = make_env(other, seed=0)
        assert env.reward_config == replace(varied.reward, rent=0.5)
        assert (env.minibatch_size, env.max_epochs) == (32, varied.max_epochs)
    again = in_another_world(config, ["task=digits_full", "reward.rent=0.125"])
    assert make_env(again, seed=0).reward_config.rent == 0.125


def test_runs_that_left_numbers_to_their_task_are_read() -> None:
    config = compose_config(["task=digits"])
    text = dump_config(config)
    assert "max_epochs: null" in text
    assert load_config(text) == config
    assert make_env(load_config(text), seed=0).max_epochs == make_task("digits").max_epochs


def test_a_weight_of_the_task_is_no_weight_of_the_next() -> None:
    """Also where the task is one that a script has registered."""
    register_task("mine", lambda: priced(rent=0.25, epochs=6))
    config = pin_world(compose_config(["task=mine"]))
    other = in_another_world(config, ["task=scaffold"])
    assert make_env(other, seed=0).reward_config == make_task("scaffold").reward


def test_runs_that_left_numbers_to_their_task_are_compared_with_those_that_do_not(
    tmp_path: Path,
) -> None:
    """They are of one design; one of a version that can't be read counts as it is written."""
    for name, config in {
        "old": compose_config(["task=digits"]),
        "new": pin_world(compose_config(["task=digits", "seed=1"])),
        "other": pin_world(compose_config(["task=digits", "reward.rent=0.5"])),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(sign(dump_config(config)))
    old, new, other = (all_settings(RunFolder(tmp_path / n)) for n in ("old", "new", "other"))
    assert new["seed"] == 1
    assert old == {**new, "seed": 0}
    assert other["reward"] == {**new["reward"], "rent": 0.5}
    (tmp_path / "old" / "config.yaml").write_text(sign("seed: 3\nelsewhere: true"))
    assert all_settings(RunFolder(tmp_path / "old")) == {"seed": 3, "elsewhere": True}
