"""A training run of the study: train, then let its policy play fresh hosts."""

from __future__ import annotations

import math
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import Compose, Transform, TransformedEnv
from tqdm import tqdm

from benchmarks.seeds import Run
from benchmarks.study.credit import watch_credit
from benchmarks.study.settings import TUNING, Job, compose, settings
from benchmarks.study.worlds import FinalNetworks, accuracy, held_out, in_study
from envs import MorphogenesisEnv
from envs.actions import BLUEPRINTS
from esper_rl import train
from esper_rl.config import TrainConfig, make_env
from esper_rl.evaluation import (
    EVALUATION_SEED,
    GREEDY,
    OPEN_LOOP,
    SAMPLED,
    Arena,
    Mode,
    Player,
    evaluate,
    shuffled,
)
from esper_rl.evaluation.controls import blindfolded, learned
from esper_rl.evaluation.episodes import Evaluation
from esper_rl.growing.feedback import HIDDEN
from esper_rl.runs.metrics import read_columns

CHOOSING_SEED = EVALUATION_SEED + 4
"""Of the hosts that tuning runs play: others than those of the results."""

_KEPT = (
    "steps", "return", "final_accuracy", "seed_params", "explained_variance",
    "explained_variance_soft", "op_critic_loss", "op_residual_variance", "relevant_entropy",
    "relevant_normalized_entropy", "head_grad_norm", "hindsight", "op", "feedback", "cell_norm",
    "kl_approx", "clip_fraction", "grad_norm", "wait_rate", "seconds",
)  # fmt: skip
"""First parts of the names of the metrics that are kept."""


def train_and_play(job: Job) -> Run:
    """What each player of a trained policy earns, and how the training went."""
    torch.set_num_threads(1)
    config = in_study(job.config, job.task)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, run_dir=f"{folder}/run")
        start = time.perf_counter()
        run = train(config, quiet=True)
        minutes = (time.perf_counter() - start) / 60
        seed = CHOOSING_SEED if job.part == TUNING else EVALUATION_SEED
        usual = compose(job.task, (), job.seed).ppo.gamma  # returns are of one measure
        arena = Arena(
            run, settings()["hosts"][job.task], seed=seed, settings=[f"ppo.gamma={usual}"]
        )
        tested = Tested(job.task, arena.world)
        players = {name: tested.play(partial(arena.play, PLAYERS[name])) for name in job.players}
        found = {
            "lr": config.ppo.lr,
            "minutes": round(minutes, 2),
            "players": players,
            "curve": learning_curve(run),
        }
        return found | ({"credit": watch_credit(arena)} if job.task == "scaffold" else {})


class Tested:
    """Plays episodes whose networks are looked at in the end.

    Args:
        task: as the study calls it outside.
        world: that is played in; it is given a transform.
    """

    def __init__(self, task: str, world: TransformedEnv) -> None:
        base: Any = world.base_env
        test = held_out(task)
        ask = None if test is None else partial(accuracy, task=base.task, test=test)
        self.final = FinalNetworks(base, ask)
        world.append_transform(self.final)

    def play(self, play: Callable[[], Evaluation]) -> Run:
        """Means over the hosts of what is measured of an episode, and ``test_accuracy``; how many
        networks are ``grown`` in which way, and the mean epoch at which slots were ``planted``.
        """
        found, seen = play(), self.final
        means = {name: values.mean().item() for name, values in vars(found).items()}
        means["test_accuracy"] = seen.accuracy.mean().item()
        epochs = seen.planted.float().where(seen.planted >= 0, torch.nan).nanmean(0).tolist()
        return {
            **{name: _rounded(value) for name, value in means.items()},
            "grown": dict(Counter(seen.grown).most_common(5)),
            "planted": [None if math.isnan(epoch) else _rounded(epoch) for epoch in epochs],
        }


def play_hosts(
    task: str,
    config: TrainConfig,
    make: Callable[[MorphogenesisEnv], TensorDictModuleBase],
    seed: int,
    mode: Mode = "sampled",
    transforms: Sequence[Transform] = (),
) -> Run:
    """A policy on a task's study hosts.

    Args:
        task: as the study calls it outside.
        config: of a run in the study.
        make: makes the policy, of the world.
        seed: of the policy's draws.
        mode: how it takes actions.
        transforms: that it needs.
    """
    hosts = settings()["hosts"][task]
    env = make_env(config, num_envs=hosts, seed=EVALUATION_SEED)
    world = TransformedEnv(env, Compose(*transforms))
    tested = Tested(task, world)
    policy = make(env)
    torch.manual_seed(seed)
    return tested.play(partial(evaluate, policy, world, hosts, mode, config.ppo.gamma))


class Forced(TensorDictModuleBase):
    """A policy that has no choice of blueprint.

    Args:
        policy: chooses all else.
        blueprint: index of the choice.
    """

    def __init__(self, policy: TensorDictModuleBase, blueprint: int) -> None:
        super().__init__()
        self.policy, self.blueprint = policy, blueprint
        self.in_keys, self.out_keys = policy.in_keys, policy.out_keys

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        tensordict = self.policy(tensordict)
        tensordict["action", "blueprint"].fill_(self.blueprint)
        return tensordict


def forced(name: str) -> Player:
    """The greedy policy, which plants one blueprint only."""
    index = BLUEPRINTS.index(name)
    return Player(f"blueprint {name}", lambda arena: Forced(learned(arena), index), "greedy")


PLAYERS: Mapping[str, Player] = {
    "sampled": SAMPLED,
    "greedy": GREEDY,
    "replayed": OPEN_LOOP,
    "shuffled": shuffled(["*"], num_slots=3),
    "no feedback": blindfolded("feedback zeroed", HIDDEN["zeroed"]),
    **{f"blueprint {name}": forced(name) for name in BLUEPRINTS},
}
"""By name in the settings."""


def learning_curve(run: Path) -> dict[str, list[float | None]]:
    """The metrics that are kept, by name; each point is the mean of iterations in a row."""
    columns = read_columns(run / "metrics.csv")
    kept = {}
    for name, values in columns.items():
        if name.partition("/")[0] in _KEPT:
            parts = np.array_split(np.array(values), min(settings()["points"], len(values)))
            kept[name] = [_rounded(p[-1]) if name == "steps" else _mean(p) for p in parts]
    return kept


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return _rounded(fmean(known)) if len(known) else None


def _rounded(value: float) -> float:
    """Five digits: results are read by people and kept for long."""
    return float(f"{value:.5g}")


def measure_missing(
    jobs: Iterable[Job], measure: Callable[[Job], Run], at_once: int, minutes: float
) -> int:
    """Measure what isn't there yet, in processes of their own; each result is on disk at once.

    Args:
        jobs: in the order in which they are wanted.
        measure: does one.
        at_once: runs beside each other.
        minutes: after which no further run is begun.

    Returns:
        How many are missing still: those that weren't begun, and those that failed.
    """
    missing = [job for job in jobs if not job.is_measured]
    ends = time.perf_counter() + 60 * minutes
    waiting = iter(missing)
    running: dict[Future[Run], Job] = {}
    pool = ProcessPoolExecutor(at_once, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with pool, tqdm(total=len(missing), desc="runs", unit="run", smoothing=0) as bar:
        while True:
            while len(running) < at_once and time.perf_counter() < ends:
                job = next(waiting, None)
                if job is None:
                    break
                running[pool.submit(measure, job)] = job
            if not running:
                break
            done = next(as_completed(running))
            job = running.pop(done)
            bar.set_postfix_str(f"{job.task}, {job.variant}, seed {job.seed}")
            try:
                job.save(done.result())
            except BrokenProcessPool:
                raise
            except Exception as error:  # what can't be measured is said, and the others go on
                bar.write(f"{bar.postfix} failed:\n{''.join(traceback.format_exception(error))}")
            else:
                bar.update()
        return int(bar.total - bar.n)
