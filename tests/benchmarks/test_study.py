"""The study's settings, statistics and tables, and what its episodes note."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import TransformedEnv

from benchmarks.study import page, runs
from benchmarks.study import settings as study
from benchmarks.study.credit import Watched
from benchmarks.study.growers import each_variants_own, first_convolution
from benchmarks.study.settings import (
    Job,
    advantage_jobs,
    chosen_factor,
    compose,
    grower_jobs,
    jobs_of,
    mixture_jobs,
    tuning_jobs,
)
from benchmarks.study.statistics import difference, matters, verdict
from benchmarks.study.worlds import FinalNetworks, accuracy, held_out, training_part
from benchmarks.study.worth import ahead, paid_after
from envs import ArrayTask, MorphogenesisEnv, make_task
from envs.actions import Stage
from envs.observation import feature_columns
from envs.tasks.scaffold import BEST_PLAN
from esper_rl.evaluation import EVALUATION_SEED, evaluate
from esper_rl.evaluation.schedule_search import schedule_policy
from esper_rl.report.comparison import Interval

TASKS = list(study.settings()["hosts"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(study, "FOLDER", tmp_path)
    return tmp_path


def a_run(returns: float, players: Sequence[str] = ("sampled", "greedy")) -> dict[str, Any]:
    played = {"returns": returns, "test_accuracy": 50.0, "seed_params": 10.0}
    curve = {"steps": [1.0, 2.0], "return": [0.0, returns], "explained_variance": [None, 0.5]}
    credit = {"near_best": 0.5, "helped": 1.0, "jump": None, "elsewhere": 0.1}
    return {"players": dict.fromkeys(players, played), "curve": curve, "credit": credit}


def tune(better: float) -> None:
    for job in tuning_jobs(TASKS):
        factor = float(job.variant.split()[1])
        job.save(a_run(1.0 - abs(factor - better) + 0.01 * (job.variant[1] == "2")))


def test_every_variant_is_a_run() -> None:
    for content in study.settings()["parts"].values():
        for changes in content["variants"].values():
            for task in content["seeds"]:
                assert compose(task, tuple(changes), 0).workers == 1


def test_the_learning_rate_is_the_one_that_earned_most() -> None:
    with pytest.raises(LookupError, match="'tuning' first"):
        chosen_factor("digits", "v1")
    tune(better=2.0)
    assert chosen_factor("pydoc", "v2") == 2.0
    job = next(jobs_of("policies", ["pydoc"]))
    assert job.config.ppo.lr == pytest.approx(2 * compose("pydoc", (), 0).ppo.lr)
    assert job.config.policy.hidden_size == 128  # V1 first
    (changes,) = {job.changes for job in mixture_jobs(TASKS)}
    assert changes == (f"ppo.lr={2 * compose('digits_varied', (), 0).ppo.lr:g}",)
    assert len(list(advantage_jobs(TASKS))) == 12


def test_results_are_kept_by_seed() -> None:
    first, second = (Job("policies", "digits", "v2", (), seed, ()) for seed in (101, 100))
    first.save(a_run(1.0))
    second.save(a_run(2.0))
    assert list(first.runs) == ["100", "101"]
    assert study.read_runs("policies", "digits", "v2")["101"]["curve"]["return"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("interval", "says", "counts"),
    [
        (Interval(0.2, 0.1, 0.3), "exceeds", "yes"),
        (Interval(0.02, 0.01, 0.03), "exceeds", "no"),
        (Interval(0.0, -0.04, 0.04), "matches", "no"),
        (Interval(0.0, -0.2, 0.2), "undecided", "no"),
        (Interval(-0.2, -0.3, -0.06), "fails", "yes"),
        (Interval(0.1, float("nan"), float("nan")), "", ""),
    ],
)
def test_what_counts(interval: Interval, says: str, counts: str) -> None:
    assert verdict(interval) == says
    assert matters(interval) == counts


def test_differences_are_of_interquartile_means() -> None:
    one = np.array([0.0, 1.0, 1.0, 100.0])
    assert difference(one, np.array([0.5, 0.5, 0.5, 0.5])).value == pytest.approx(0.5)


def test_tables_are_made_of_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(better=1.0)
    for number, job in enumerate(jobs_of("policies", ["scaffold"])):
        job.save(a_run(1.0 + 0.01 * number + (job.variant == "v2"), job.players))
    document = folder / "page.md"
    document.write_text("before\n<!-- table: curves -->\nbefore now\n<!-- end -->\nafter\n")
    monkeypatch.setattr(page, "PAGES", [document])
    page.write_pages()
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "before now" not in text
    rows = [line for line in text.splitlines() if "`scaffold`" in line]
    assert len(rows) == 4
    assert "exceeds" in rows[0]
    for make in page.BLOCKS.values():
        assert make().startswith("|")


@pytest.mark.parametrize(
    ("gain", "says"),
    [
        (Interval(0.1, 0.05, 0.2), "8,000 [4,000, 16,000]"),
        (Interval(0.1, -0.1, 0.2), "8,000 [4,000, never]"),
        (Interval(-0.1, -0.2, 0.2), "[4,000, never]"),
        (Interval(-0.1, -0.2, -0.05), "never"),
        (None, ""),
    ],
)
def test_a_training_has_paid_after_as_many_networks_as_its_gain_needs(
    gain: Interval | None, says: str
) -> None:
    assert paid_after(800, gain) == says


def test_a_player_that_draws_nothing_is_known_exactly() -> None:
    learned = np.array([1.0, 2.0, 2.0, 3.0])
    apart = ahead(learned, np.array([1.5]))
    assert apart.value == pytest.approx(0.5)
    assert apart.low < 0.5 < apart.high
    assert ahead(learned, np.array([1.5, 1.5])) == apart


def test_searches_are_repeated_and_others_not() -> None:
    jobs = list(grower_jobs(["digits"]))
    assert sum(job.variant == "wait" for job in jobs) == 1
    assert (
        sum(job.variant == "best schedule" for job in jobs) == study.settings()["growers"]["seeds"]
    )


def test_each_variant_gets_its_own_schedule() -> None:
    env = MorphogenesisEnv(training_part("digits_varied"), num_envs=8, seed=EVALUATION_SEED)
    policy = each_variants_own(compose("digits_varied", (), 0), 0).make(env)
    planted = env.rollout(12, policy)[:, -1]["next", "metrics", "stage"][:, 0] != Stage.DORMANT
    kernels = [first_convolution(env.network(row)).kernel_size for row in range(8)]
    assert planted.tolist() == [size == (1, 1) for size in kernels]
    assert len(set(kernels)) == 2


def test_what_is_held_out_is_no_part_of_the_task() -> None:
    task, test, whole = training_part("digits"), held_out("digits"), make_task("digits")
    assert isinstance(task, ArrayTask)
    assert isinstance(whole, ArrayTask)
    assert test is not None
    together = torch.cat((task.train.inputs, test.inputs)).flatten(1)
    assert together.shape[0] == len(whole.train.inputs)
    assert torch.equal(together.sort(0)[0], whole.train.inputs.flatten(1).sort(0)[0])
    assert torch.equal(task.validation.inputs, whole.validation.inputs)


def test_what_an_episode_has_grown_is_noted_and_tested() -> None:
    task, test = training_part("digits"), held_out("digits")
    assert isinstance(task, ArrayTask)
    assert test is not None
    env = MorphogenesisEnv(replace(task, max_epochs=12), num_envs=2, seed=0)
    networks = []

    def ask(network: torch.nn.Module) -> float:
        networks.append(network)
        return accuracy(network, task, test)

    seen = FinalNetworks(env, ask)
    world = TransformedEnv(env, seen)
    policy = schedule_policy([((1, "norm", 2),), ()], env)
    evaluate(policy, world, 2)
    assert seen.grown == ["–, norm, –", "–, –, –"]
    assert seen.planted.tolist() == [[-1, 2, -1], [-1, -1, -1]]
    right = networks[0](test.inputs).argmax(1) == test.targets
    assert seen.accuracy[0].item() == pytest.approx(100 * right.float().mean().item())


def test_a_run_that_fails_is_missing_and_the_others_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(job: Job) -> dict[str, Any]:
        if job.seed == 101:
            raise ValueError("it diverged")
        return a_run(job.seed)

    monkeypatch.setattr(runs, "ProcessPoolExecutor", lambda n, **kwargs: ThreadPoolExecutor(n))
    jobs = [Job("policies", "digits", "v1", (), seed, ()) for seed in (100, 101, 102)]
    assert runs.measure_missing(jobs, measure, at_once=2, minutes=5) == 1
    assert [job.is_measured for job in jobs] == [True, False, True]
    assert "it diverged" in capsys.readouterr().out


def test_the_value_is_watched_where_help_is_seen() -> None:
    policy = Watched(
        TensorDictModule(
            lambda observation: observation.sum(-1, keepdim=True), ["observation"], ["baseline"]
        )
    )
    for shown in (0.0, 0.5):
        step = TensorDict({"observation": torch.zeros(2, 112)}, [2])
        step["observation"][1, feature_columns(BEST_PLAN.feature)] = shown
        policy(step)
    assert torch.stack(policy.helped).tolist() == [[False, False], [False, True]]
    assert torch.stack(policy.values).tolist() == [[0.0, 0.0], [0.0, 0.5]]
