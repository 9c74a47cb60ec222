"""The study's settings, and the runs that follow from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.seeds import RESULTS, Run
from esper_rl.config import TrainConfig, compose_config
from esper_rl.runs.atomic_write import write_atomically

FOLDER = RESULTS / "study"
TUNING, GROWERS, MIXTURE, ADVANTAGES = "tuning", "growers", "mixture", "advantages"


@cache
def settings() -> dict[str, Any]:
    """The content of settings.yaml."""
    return yaml.safe_load((Path(__file__).parent / "settings.yaml").read_text())


@dataclass(frozen=True)
class Job:
    """A training run of the study.

    Attributes:
        part: that it belongs to.
        task, variant: what is trained.
        changes: of the task's own settings.
        seed: of the training.
        players: who plays in the end.
    """

    part: str
    task: str
    variant: str
    changes: tuple[str, ...]
    seed: int
    players: tuple[str, ...]

    @property
    def runs(self) -> dict[str, Run]:
        """What is known of the variant's runs, by training seed."""
        return read_runs(self.part, self.task, self.variant)

    @property
    def is_measured(self) -> bool:
        """Is the run's result there?"""
        return str(self.seed) in self.runs

    def save(self, run: Run) -> None:
        """Write what was measured to the file of the variant's runs, a line for each of them."""
        path = results_file(self.part, self.task, self.variant)
        path.parent.mkdir(parents=True, exist_ok=True)
        runs = self.runs | {str(self.seed): run}
        lines = (f'"{seed}": {json.dumps(runs[seed])}' for seed in sorted(runs, key=int))
        write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    @property
    def config(self) -> TrainConfig:
        """Of the run, on the task as it is called outside of the study."""
        return compose(self.task, self.changes, self.seed)


def results_file(part: str, task: str, variant: str) -> Path:
    return FOLDER / part / f"{task}, {variant}.json"


def read_runs(part: str, task: str, variant: str) -> dict[str, Run]:
    return read_results(results_file(part, task, variant))


def read_results(path: Path) -> dict[str, Any]:
    """The content of a file of results, nothing where it isn't there yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def compose(task: str, changes: tuple[str, ...], seed: int) -> TrainConfig:
    """The configuration of a run; MNIST-1D is no task of the package, and takes the defaults."""
    known = ["task=digits" if task == "mnist1d" else f"task={task}"]
    fixed = [f"seed={seed}", "workers=1", "threads=1", "eval_episodes=0", "loggers=[]"]
    rows = compose_config(known)
    half = rows.env.num_envs * (rows.episode_steps // 2)
    given = [change.replace("=half", f"={half}") for change in changes]
    return compose_config([*known, *given, *fixed])


def learning_rate(task: str, factor: float) -> str:
    return f"ppo.lr={compose(task, (), 0).ppo.lr * factor:g}"


def _among(wanted: Collection[str], tasks: Collection[str]) -> list[str]:
    return [task for task in tasks if task in wanted]


def tuning_jobs(tasks: Collection[str]) -> Iterator[Job]:
    """Runs by which each policy's learning rate is chosen on each task."""
    tuning, policies = settings()["tuning"], settings()["parts"]["policies"]["variants"]
    for task in _among(tasks, tuning["tasks"]):
        for seed in tuning["seeds"]:
            for policy in tuning["policies"]:
                for factor in tuning["lr"]:
                    changes = (*policies[policy], learning_rate(task, factor))
                    name = f"{policy} {factor:g}"
                    yield Job(TUNING, task, name, changes, seed, ("sampled", "greedy"))


def chosen_factor(task: str, policy: str) -> float:
    """The learning rate's factor that earned most on the tuning seeds, sampled and greedy together.

    Raises:
        LookupError: while a tuning run is missing.
    """
    tuning = settings()["tuning"]
    task = tuning["as_on"].get(task, task)
    earned = {}
    for factor in tuning["lr"]:
        runs = read_runs(TUNING, task, f"{policy} {factor:g}")
        if len(runs) < len(tuning["seeds"]):
            raise LookupError(f"{policy} isn't tuned on {task} yet: run the part {TUNING!r} first")
        players = [player for run in runs.values() for player in run["players"].values()]
        earned[factor] = sum(player["returns"] for player in players)
    return max(earned, key=lambda factor: earned[factor])


def tuned(task: str, policy: str) -> str:
    """The setting of a policy's learning rate on a task; LookupError as above."""
    return learning_rate(task, chosen_factor(task, policy))


def growers_of(task: str) -> list[str]:
    """Names of those that play a task."""
    content = settings()[GROWERS]
    return [*content["everywhere"], *content["also"][task]]


def grower_jobs(tasks: Collection[str]) -> Iterator[Job]:
    """What people would do instead, on every task; a search is repeated with other seeds."""
    content = settings()[GROWERS]
    for seed in range(content["seeds"]):
        for task in _among(tasks, content["also"]):
            for grower in growers_of(task):
                if seed == 0 or grower not in content["once"]:
                    changes = tuple(content["changes"].get(grower, ()))
                    yield Job(GROWERS, task, grower, changes, seed, (grower,))


def mixture_jobs(tasks: Collection[str]) -> Iterator[Job]:
    """Policies that learn from several tasks, whichever are asked for."""
    content, first = settings()[MIXTURE], settings()["first_seed"]
    changes = (tuned(content["leader"], "v2"),)
    for seed in range(first, first + content["seeds"]):
        yield Job(MIXTURE, MIXTURE, "one for all", changes, seed, ())


def advantage_jobs(tasks: Collection[str]) -> Iterator[Job]:
    """Policies whose advantages are held against the truth."""
    content, first = settings()[ADVANTAGES], settings()["first_seed"]
    seeds = content["seeds"] if "scaffold" in tasks else 0
    for seed in range(first, first + seeds):
        for variant, changes in content["variants"].items():
            changed = (*changes, tuned("scaffold", "v2"))
            yield Job(ADVANTAGES, "scaffold", variant, changed, seed, ())


def jobs_of(part: str, tasks: Collection[str]) -> Iterator[Job]:
    """The runs of a part, seed by seed, so that one that is cut short compares what it has."""
    content, first = settings()["parts"][part], settings()["first_seed"]
    for task in _among(tasks, content["seeds"]):
        seeds = range(first, first + content["seeds"][task])
        yield from _of_task(part, content, task, seeds)


def _of_task(part: str, content: dict[str, Any], task: str, seeds: range) -> Iterator[Job]:
    for seed in seeds:
        for variant, changes in content["variants"].items():
            policy = "v1" if "policy=v1" in changes else "v2"
            changed = (*changes, tuned(task, policy))
            also = content.get("also", {}).get(f"{task}, {variant}", [])
            yield Job(part, task, variant, changed, seed, (*content["players"], *also))
