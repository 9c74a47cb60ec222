"""Evaluation: its numbers against a rollout by hand, its table and file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from envs import MorphogenesisEnv
from envs.actions import Op, Stage
from envs.observation import ACTION_FEEDBACK, feature_columns
from envs.tasks import scaffold
from esper_rl import config, train
from esper_rl.config import TrainConfig, compose_config
from esper_rl.evaluation import (
    BEST_PLAN,
    EVALUATION_SEED,
    GREEDY,
    PLAYERS,
    WAIT,
    Arena,
    evaluate,
    evaluate_run,
    players_of,
)
from esper_rl.evaluation.controls import Blindfolded, blindfolded
from esper_rl.evaluation.episodes import Evaluation
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    PlanPolicy,
    RandomPolicy,
    WaitPolicy,
)
from esper_rl.growing.feedback import HIDDEN
from esper_rl.report.tables import format_evaluations
from tests.support.runs import TINY

EPOCHS = 8
NAMES = [player.name for player in PLAYERS]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Evaluation]]:
    """A run and its evaluation over three episodes."""
    run = train(compose_config([*TINY, f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}"]))
    return run, evaluate_run(run, episodes=3)


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


def test_a_run_is_shown_beside_the_baselines(played: tuple[Path, dict[str, Evaluation]]) -> None:
    run, results = played
    assert list(results) == NAMES
    assert NAMES[:2] == ["greedy", "sampled"]
    assert NAMES[-4:] == ["wait", "random", "fixed-schedule", "heuristic"]

    saved = json.loads((run / "evaluation.json").read_text())
    assert saved["episodes"] == 3
    assert saved["policies"]["wait"] == results["wait"].summary()
    drop = results["greedy"].returns - results["greedy, feedback zeroed"].returns
    saved_drop = saved["drop_in_return"]["feedback zeroed"]
    assert saved_drop["mean"] == pytest.approx(drop.mean().item())

    lines = format_evaluations(
        {n: e.summary() for n, e in results.items()}, episodes=3
    ).splitlines()
    table = lines[2 : 2 + len(NAMES)]
    assert all(line.startswith(name) for line, name in zip(table, NAMES, strict=True))
    assert len({len(line) for line in [*lines[:2], *table]}) == 1
    wait = results["wait"].summary()["final_accuracy"]
    assert f"{wait['mean']:.1f} ± {wait['ci95']:.1f}" in table[NAMES.index("wait")]


def test_a_narrow_terminal_gets_a_narrow_table(
    played: tuple[Path, dict[str, Evaluation]],
) -> None:
    """The same numbers, each policy's below its name."""
    _, results = played
    summaries = {name: evaluation.summary() for name, evaluation in results.items()}
    wide, narrow = (format_evaluations(summaries, 3, width) for width in (None, 60))
    lines = narrow.splitlines()
    assert max(map(len, lines)) <= 60
    words = [{word for word in table.split() if set(word) != {"-"}} for table in (wide, narrow)]
    assert words[0] - {"policy"} == words[1]
    for name in NAMES:
        numbers = lines[lines.index(name) + 1].split()
        (whole,) = [line for line in wide.splitlines() if line.startswith(f"{name}  ")]
        assert whole.removeprefix(name).split() == numbers


def test_returns_are_discounted_as_the_run_was(tiny_config: Callable[..., TrainConfig]) -> None:
    run = train(tiny_config("ppo.gamma=0.5"))
    arena = Arena(run, 3)
    found = {gamma: arena.play(WAIT, gamma).returns for gamma in (None, 0.5, 1.0)}
    assert found[None].equal(found[0.5])
    assert not found[None].equal(found[1.0])


def test_runs_of_different_discounts_are_played_for_the_same_returns(
    tiny_config: Callable[..., TrainConfig],
) -> None:
    arena = Arena(train(tiny_config("ppo.gamma=0.5")), 3, settings=["ppo.gamma=0.9"])
    env = config.make_env(tiny_config("ppo.gamma=0.9"), num_envs=3, seed=EVALUATION_SEED)
    expected = evaluate(WaitPolicy(), env, 3, gamma=0.9)
    torch.testing.assert_close(arena.play(WAIT).returns, expected.returns)


NO_SIZES = tuple(
    f"env.{size}=null" for size in ("batches_per_epoch", "minibatch_size", "validation_size")
)


@pytest.mark.parametrize("changes", [("env.max_epochs=10",), ("env.num_slots=1",)])
def test_a_world_that_the_best_plan_does_not_fit_is_evaluated_without_it(
    changes: tuple[str, ...], tiny_config: Callable[..., TrainConfig]
) -> None:
    run = train(tiny_config("task=scaffold", *NO_SIZES, "total_steps=20", *changes))
    assert list(evaluate_run(run, episodes=2)) == NAMES


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="max_epochs must be an integer of at least 80, got 79"):
        PlanPolicy(scaffold.BEST_PLAN, 79)
    with pytest.raises(ValueError, match="num_slots must be an integer of at least 2, got 1"):
        PlanPolicy(scaffold.BEST_PLAN, 144, num_slots=1)


def test_the_best_plan_is_shown_where_it_is_known(
    tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaffold = ("task=scaffold", *NO_SIZES, "total_steps=20")
    run = train(tiny_config(*scaffold, "env.max_epochs=null"))
    for changes in ((), ("env.max_epochs=144",)):
        assert players_of(compose_config(["task=scaffold", *changes]))[-1] is BEST_PLAN
    for changes in (("env.max_epochs=10",), ("env.max_epochs=145",), ("env.num_slots=1",)):
        assert players_of(compose_config(["task=scaffold", *changes])) == PLAYERS
    assert players_of(compose_config([])) == PLAYERS
    few = (GREEDY, *(blindfolded(name, hide) for name, hide in HIDDEN.items()))
    monkeypatch.setattr("esper_rl.evaluation.players.PLAYERS", few)  # the others take their time
    results = evaluate_run(run, episodes=16)
    assert list(results) == [*(player.name for player in few), "best plan"]
    best = results.pop("best plan").returns
    assert best.mean() > max(result.returns.mean() for result in results.values())


def test_an_evaluation_repeats_itself(played: tuple[Path, dict[str, Evaluation]]) -> None:
    run, first = played
    second = evaluate_run(run, episodes=3)
    for name in first:
        assert torch.equal(first[name].returns, second[name].returns), name


def test_processes_play_the_same_episodes(
    played: tuple[Path, dict[str, Evaluation]], tmp_path: Path
) -> None:
    run, alone = played
    output = tmp_path / "together.json"
    together = evaluate_run(run, episodes=3, settings=["workers=2"], output=output)
    assert list(alone) == list(together)
    for name in alone:
        assert torch.equal(alone[name].returns, together[name].returns), name


def test_greedy_and_sampled_are_different_policies(
    played: tuple[Path, dict[str, Evaluation]],
) -> None:
    _, results = played
    assert not torch.equal(results["greedy"].returns, results["sampled"].returns)


def test_a_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="esper-rl train"):
        evaluate_run(tmp_path)


class LeansOnFeedback(TensorDictModuleBase):
    """Plants at the first step, and goes on only where it is told that it did."""

    in_keys = ("observation",)
    out_keys = (("action", "op"),)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict["observation"]
        germinated, first = (
            observation[:, feature_columns(name)[0]]
            for name in ("last_action_op_germinate", "epoch_progress")
        )
        state = FixedSchedulePolicy(blueprint="norm")(tensordict)
        goes_on = (first == 0) | (germinated == 1)
        state["action", "op"] = state["action", "op"].where(goes_on, Op.WAIT)
        return state


def test_hidden_feedback_is_hidden_from_the_policy_alone() -> None:
    env = make_env()
    stages = {}
    for name, hide in {"shown": lambda x: x, **HIDDEN}.items():
        env.set_seed(0)
        policy, state = Blindfolded(LeansOnFeedback(), hide), env.reset()
        for _ in range(3):
            before = state["observation"].clone()
            state = policy(state)
            assert state["observation"].equal(before)
            state = env.step(state)["next"]
        stages[name] = state["metrics", "stage"][:, 0].tolist()
    assert stages["shown"] == stages["permuted"] == [Stage.TRAINING] * env.num_envs
    assert stages["zeroed"] == [Stage.GERMINATED] * env.num_envs


def test_feedback_is_hidden_column_by_column() -> None:
    observation = torch.arange(2.0 * 112).view(2, 112) + 1
    columns = feature_columns(*ACTION_FEEDBACK)
    others = [i for i in range(112) if i not in columns]
    for hide in HIDDEN.values():
        assert hide(observation)[:, others].equal(observation[:, others])
    assert not HIDDEN["zeroed"](observation)[:, columns].any()
    assert HIDDEN["permuted"](observation)[:, columns].equal(observation[[1, 0]][:, columns])
