"""Evaluation: its numbers against a rollout by hand, its table and file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from envs import MorphogenesisEnv
from envs.actions import Stage
from esper_rl import train
from esper_rl.evaluation import Evaluation, evaluate, evaluate_run
from esper_rl.growing.baselines import FixedSchedulePolicy, RandomPolicy, WaitPolicy
from esper_rl.report.tables import format_evaluations
from esper_rl.training.config import TrainConfig

EPOCHS = 8


def make_env(rows: int = 5) -> MorphogenesisEnv:
    return MorphogenesisEnv(
        num_envs=rows,
        max_epochs=EPOCHS,
        batches_per_epoch=1,
        minibatch_size=8,
        validation_size=20,
        seed=3,
    )


@pytest.mark.parametrize("policy", [WaitPolicy(), RandomPolicy(), FixedSchedulePolicy()])
def test_numbers_are_those_of_a_rollout(policy: torch.nn.Module) -> None:
    torch.manual_seed(0)
    measured = evaluate(policy, make_env(), episodes=5)
    torch.manual_seed(0)
    rollout = make_env().rollout(EPOCHS, policy)["next"]
    last = rollout[:, -1]
    torch.testing.assert_close(measured.returns, rollout["reward"].sum((1, 2)))
    torch.testing.assert_close(measured.final_accuracy, last["metrics", "val_accuracy"][:, 0])
    torch.testing.assert_close(measured.seed_params, last["metrics", "seed_params"][:, 0])
    fossils = (last["metrics", "stage"] == Stage.FOSSILIZED).sum(1).float()
    torch.testing.assert_close(measured.fossilized, fossils)


def test_a_row_that_ends_early_counts_its_first_episode_only() -> None:
    class EndsEarly(MorphogenesisEnv):
        """Row 0 ends after 3 epochs, in each of its episodes."""

        def _step(self, tensordict):  # type: ignore[no-untyped-def]
            outcome = super()._step(tensordict)
            over = outcome["metrics", "epoch"][0] == 3
            for key in ("done", "terminated"):
                outcome[key] = outcome[key].clone()
                outcome[key][0] |= over
            return outcome

    env = EndsEarly(
        num_envs=2, max_epochs=EPOCHS, batches_per_epoch=1, minibatch_size=8, validation_size=20
    )
    env.set_seed(0)
    measured = evaluate(WaitPolicy(), env, episodes=2)
    env.set_seed(0)
    rollout = env.rollout(EPOCHS, WaitPolicy(), break_when_any_done=False)["next"]
    torch.testing.assert_close(measured.returns[0], rollout["reward"][0, :3].sum())
    torch.testing.assert_close(measured.returns[1], rollout["reward"][1].sum())
    assert measured.final_accuracy[0] == rollout["metrics", "val_accuracy"][0, 2, 0]


def test_summary_is_mean_and_confidence_interval() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    summary = Evaluation(values, values * 10, values, values).summary()
    spread = math.sqrt((4 + 1 + 0 + 9) / 3)
    assert summary["returns"]["mean"] == 3
    assert summary["returns"]["ci95"] == pytest.approx(1.96 * spread / 2)
    assert summary["final_accuracy"]["mean"] == 30


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"episodes": 4}, "episodes must be .*, got 4"),
        ({"episodes": 5, "mode": "best"}, "mode must be .*, got 'best'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        evaluate(WaitPolicy(), make_env(), **arguments)


def test_a_run_is_shown_beside_the_baselines(
    tiny_config: Callable[..., TrainConfig],
) -> None:
    run = train(tiny_config())
    results = evaluate_run(run, episodes=3)
    assert list(results) == ["greedy", "sampled", "wait", "random", "fixed-schedule"]

    saved = json.loads((run / "evaluation.json").read_text())
    assert saved["episodes"] == 3
    assert saved["policies"]["wait"] == results["wait"].summary()

    lines = format_evaluations(
        {n: e.summary() for n, e in results.items()}, episodes=3
    ).splitlines()
    assert [line.split()[0] for line in lines[2:7]] == list(results)
    assert len({len(line) for line in lines[:7]}) == 1
    wait = results["wait"].summary()["final_accuracy"]
    assert f"{wait['mean']:.1f} ± {wait['ci95']:.1f}" in lines[4]


def test_an_evaluation_repeats_itself(tiny_config: Callable[..., TrainConfig]) -> None:
    run = train(tiny_config())
    first, second = evaluate_run(run, episodes=3), evaluate_run(run, episodes=3)
    for name in first:
        assert torch.equal(first[name].returns, second[name].returns), name


def test_processes_play_the_same_episodes(tiny_config: Callable[..., TrainConfig]) -> None:
    run = train(tiny_config())
    alone = evaluate_run(run, episodes=3)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("workers: 1", "workers: 2"))
    together = evaluate_run(run, episodes=3)
    assert list(alone) == list(together)
    for name in alone:
        assert torch.equal(alone[name].returns, together[name].returns), name


def test_greedy_and_sampled_are_different_policies(
    tiny_config: Callable[..., TrainConfig],
) -> None:
    results = evaluate_run(train(tiny_config()), episodes=3)
    assert not torch.equal(results["greedy"].returns, results["sampled"].returns)


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="esper-rl train"):
        evaluate_run(tmp_path)
