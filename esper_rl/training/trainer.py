"""The training loop."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torchrl.checkpoint import GlobalRNGState

from envs import MorphogenesisEnv
from envs.actions import CAUSAL_RELEVANCE
from esper_rl.config import TrainConfig, dump_config, make_env, pin_world
from esper_rl.errors import check_integer, config_errors
from esper_rl.growing.monitors import (
    EXPLODED,
    cell_metrics,
    credit_metrics,
    feedback_metrics,
    find_warnings,
    named_by_op,
    rollout_metrics,
)
from esper_rl.policy import make_actor_critic
from esper_rl.ppo import PPO
from esper_rl.processes import require_guard
from esper_rl.runs import Checkpoint, CheckpointError, ResumePoints, RunFolder, has_points
from esper_rl.runs.metrics import keep_rows
from esper_rl.runs.provenance import note_provenance
from esper_rl.training.callbacks import Callback, MetricsFile, Warnings, make_progress
from esper_rl.training.collection import (
    RolloutCollector,
    cluster_of,
    collection_seconds,
    has_lost_workers,
    make_collector,
    updates_behind,
)
from esper_rl.training.compiling import remove_broken_libraries
from esper_rl.training.loading import load_policy, read_config, save_policy
from esper_rl.training.loggers import make_loggers
from esper_rl.training.worker_processes import WorkerLostError

_LOGGER = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the run folder holds the policy as it was then.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(f"interrupted; the policy so far is in {run}")
        self.run = run


def train(config: TrainConfig, callbacks: Sequence[Callback] = (), *, quiet: bool = False) -> Path:
    """Train a policy with PPO.

    Args:
        config: what to train, where and for how long.
        callbacks: what else shall happen, beside metrics on disk, warnings, loggers and progress.
        quiet: show no progress.

    Returns:
        The run folder, with ``config.yaml``, ``provenance.jsonl`` (versions, commit, machine),
        ``metrics.csv`` (one line an iteration), ``checkpoint.pt`` and ``learning_curve.png``. See
        :func:`esper_rl.load_policy`. What :func:`resume` needs is in ``resume/``.

    Raises:
        ConfigError: when the world refuses a value; when workers are to be started from a script
            without ``if __name__ == "__main__":``.
        FileExistsError: when ``config.run_dir`` exists.
        FileNotFoundError: when ``config.start_from`` isn't a run.
        CheckpointError: when the policy of that run can't be loaded, or doesn't fit this one.
        FloatingPointError: when a loss or gradient isn't finite.
        WorkerLostError: when a process that collects is gone; :func:`resume` goes on.
        TrainingInterrupted: on Ctrl-C, after the picture has been written. Whatever ends a run,
            the checkpoint holds the policy of the last iteration that was over.

    Examples:
        >>> run = train(TrainConfig(total_steps=1600, run_dir="runs/first"))  # doctest: +SKIP
    """

    if config.threads is None:  # sums are rounded differently with more: a run keeps its number
        config = replace(config, threads=torch.get_num_threads())
    config = pin_world(config)

    def make_folder() -> RunFolder:
        return RunFolder.create(config.run_dir, config.env.task, dump_config(config))

    with _computing_with(config.threads):
        return _run(config, make_folder, callbacks, quiet=quiet)


def resume(
    run: str | Path,
    callbacks: Sequence[Callback] = (),
    *,
    total_steps: int | None = None,
    quiet: bool = False,
) -> Path:
    """Go on with a run that has been ended, by whatever, from the last point that it has saved.

    On CPUs it becomes bitwise what it would have been without that, but for its timings; what it
    had done after that point (``save_seconds``) is done again.

    Args:
        run: folder of the run.
        callbacks, quiet: as for :func:`train`, which also says what is returned and raised.
        total_steps: more environment steps than the run was to have. What changes over a run, such
            as the weight of entropy, goes by the new number from here on.

    Raises:
        FileNotFoundError: when there is no such run.
        BlockingIOError: when another process is training in it.
        CheckpointError: when nothing can be read of what the run has saved, or it is gone.
        ConfigError: when its configuration has been changed, or ``total_steps`` isn't more.
    """
    folder = RunFolder.open(run, begun=True)
    config = read_config(folder)
    with folder.locked():
        if not has_points(folder.resume):
            done = _steps_of_policy(folder)
            if total_steps is None and done >= config.iterations * config.rollout_steps:
                return folder.path
            if done > config.rollout_steps:  # after the first iteration there is a point
                raise CheckpointError(
                    f"{folder.resume} has no point from which the run could go on after its {done} "
                    f"steps; `esper-rl evaluate {folder.path}` plays its policy, and a new run "
                    f"begins with it by start_from={folder.path}"
                )
        if total_steps is not None:
            with config_errors():
                check_integer("total_steps", total_steps, least=config.total_steps + 1)
                config = replace(config, total_steps=total_steps)
            folder.extend(total_steps)
            if not quiet:
                print(f"{run} becomes a run of {total_steps} environment steps", file=sys.stderr)
    if has_points(folder.resume):  # they hold the policy; the run that it began with may be gone
        config = replace(config, start_from=None)
    with _computing_with(config.threads):
        return _run(config, lambda: folder, callbacks, quiet=quiet)


def _steps_of_policy(folder: RunFolder) -> int:
    """Environment steps that the run's policy has been trained for; 0 where there is none yet."""
    return Checkpoint.read(folder.checkpoint, "cpu").steps if folder.checkpoint.is_file() else 0


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    """So many threads inside, and as many as before after it: TorchRL's collectors leave more."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(
    config: TrainConfig,
    folder: Callable[[], RunFolder],
    callbacks: Sequence[Callback],
    *,
    quiet: bool,
) -> Path:
    """Train in a folder, asked for when nothing is wrong, from its latest point on."""
    if config.workers > 1:
        require_guard()
    torch.manual_seed(config.seed)

    env = make_env(config, seed=config.seed, scheduled=True)
    with config_errors("policy: "):
        actor_critic = make_actor_critic(config.policy, env, compilable=config.compile)
    if config.start_from is not None:
        other = load_policy(config.start_from, env, config.policy)
        actor_critic.network.load_state_dict(other.network.state_dict())
    truncated = config.env.time_limit == "truncate"
    ppo = PPO(
        actor_critic, CAUSAL_RELEVANCE, config.ppo, bf16=config.bf16, zero_final_value=truncated
    )
    shown = [] if quiet else [make_progress()]
    callbacks = [*make_loggers(config), MetricsFile(), Warnings(), *shown, *callbacks]
    with cluster_of(config):
        run = folder()
        if not quiet:
            print(f"training in {run.path}; the processes start", file=sys.stderr, flush=True)
        _train_in(run, config, ppo, callbacks, env)
    return run.path


def _train_in(
    run: RunFolder,
    config: TrainConfig,
    ppo: PPO,
    callbacks: Sequence[Callback],
    env: MorphogenesisEnv,
) -> None:
    """Start what collects, load the latest point, and learn from there."""
    actor_critic = ppo.actor_critic
    with _interruptions_of(run), ExitStack() as ends:  # undone in reverse order, whatever ends it
        ends.enter_context(run.locked())
        note_provenance(run.provenance, config.device)
        collector = make_collector(config, actor_critic)
        ends.callback(collector.shutdown)
        ends.enter_context(_losses_of(collector))
        points = ResumePoints(
            run.resume, run.digest, ppo=ppo, collector=collector, generators=GlobalRNGState()
        )
        done = points.load()
        if done:
            collector.reset()
            collector.update_policy_weights_()
        if keep_rows(run.metrics, done) < done:
            _LOGGER.warning("%s has lost lines; the run goes on after %d", run.metrics, done)
        if config.compile:
            remove_broken_libraries()
            actor_critic.network.compile_parts()
        for callback in callbacks:
            callback.on_start(config, run)
            ends.callback(callback.on_end)
        _learn(config, run, ppo, collector, points, done, callbacks, env)


def _learn(
    config: TrainConfig,
    run: RunFolder,
    ppo: PPO,
    collector: RolloutCollector,
    points: ResumePoints,
    done: int,
    callbacks: Sequence[Callback],
    env: MorphogenesisEnv,
) -> None:
    """Collect steps, learn from them, note what happened and save, after ``done`` iterations."""
    steps, iterations = done * config.rollout_steps, config.iterations
    rollouts, saved_at = iter(collector), perf_counter() if done else -math.inf
    save_policy(run, ppo.actor_critic, config.policy, env.topology, steps)
    for iteration in range(done, iterations):
        schedule = env.reward_schedule
        prices = schedule.prices(steps // config.env.num_envs) if schedule else {}
        begun = perf_counter()
        batch = next(rollouts)  # [N, T]
        collected = perf_counter()
        for callback in callbacks:
            callback.on_rollout(batch)

        updating = perf_counter()
        with _broken_numbers(steps):
            learned = ppo.update(batch, progress=iteration / iterations)
        collector.update_policy_weights_()
        updated = perf_counter()

        steps += batch.numel()
        env_seconds, policy_seconds = collection_seconds(batch)
        seconds = (collected - begun) + (updated - updating)
        row = {
            "steps": steps,
            **{f"price/{key}": price for key, price in prices.items()},
            **rollout_metrics(batch),
            **credit_metrics(batch),
            **cell_metrics(batch),
            **feedback_metrics(batch, ppo.actor_critic),
            **named_by_op(learned),
            "updates_behind": updates_behind(collector),
            "seconds/env": env_seconds,
            "seconds/policy": policy_seconds,
            "seconds/update": updated - updating,
            "steps_per_second": batch.numel() / seconds,
        }
        if EXPLODED.keys() & find_warnings(row).keys():
            run.keep_checkpoint()
        save_policy(run, ppo.actor_critic, config.policy, env.topology, steps)
        for callback in callbacks:
            callback.on_iteration(row)
        if iteration + 1 == iterations or perf_counter() - saved_at >= config.save_seconds:
            points.save(iteration + 1, row["return"])
            saved_at = perf_counter()


@contextmanager
def _interruptions_of(run: RunFolder) -> Iterator[None]:
    """Let what ends a run from outside say which: Ctrl-C, a lost worker, a folder moved away."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise TrainingInterrupted(run.path) from interrupt
    except WorkerLostError as error:
        raise WorkerLostError(f"{error}; `esper-rl train --resume {run.path}` goes on") from error
    except FileNotFoundError as error:
        if run.config.is_file():
            raise
        raise FileNotFoundError(
            f"{run.path}, in which the run was training, has been renamed or removed; `esper-rl "
            "train --resume` goes on with it under its new name"
        ) from error


@contextmanager
def _losses_of(collector: RolloutCollector) -> Iterator[None]:
    """Whatever fails when a worker is gone fails because of that."""
    try:
        yield
    except Exception as error:
        if has_lost_workers(collector):
            raise WorkerLostError from error
        raise


@contextmanager
def _broken_numbers(steps: int) -> Iterator[None]:
    """In a run, a batch that the loss refuses comes from a policy whose numbers are broken."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:
        raise FloatingPointError(
            f"{error}, after {steps} steps; the last good policy is in checkpoint.pt, or in "
            "checkpoint.good.pt if that is there; a smaller ppo.lr may help"
        ) from error
