"""The training loop."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.checkpoint import GlobalRNGState

from envs.actions import CAUSAL_RELEVANCE
from esper_rl.growing.monitors import (
    EXPLODED,
    cell_metrics,
    credit_metrics,
    feedback_metrics,
    find_warnings,
    gradient_metrics,
    rollout_metrics,
    update_metrics,
)
from esper_rl.objectives import FactoredClipPPOLoss, compute_advantages, final_value_loss
from esper_rl.policy import make_actor_critic
from esper_rl.processes import require_guard
from esper_rl.runs import ResumePoints, RunFolder, has_points
from esper_rl.runs.metrics import keep_rows
from esper_rl.runs.provenance import note_provenance
from esper_rl.training.callbacks import Callback, MetricsFile, Warnings, make_progress
from esper_rl.training.collection import collection_seconds, make_collector
from esper_rl.training.compiling import remove_broken_libraries
from esper_rl.training.composition import dump_config
from esper_rl.training.config import TrainConfig
from esper_rl.training.environment import make_env
from esper_rl.training.loading import load_policy, make_checkpoint, read_config
from esper_rl.training.loggers import make_loggers

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
        FloatingPointError: when a loss or gradient isn't finite. The step isn't taken, and the
            checkpoint holds the policy of the iteration before.
        TrainingInterrupted: on Ctrl-C, after checkpoint and picture have been written.

    Examples:
        >>> run = train(TrainConfig(total_steps=1600, run_dir="runs/first"))  # doctest: +SKIP
    """

    if config.threads is None:  # sums are rounded differently with more: a run keeps its number
        config = replace(config, threads=torch.get_num_threads())

    def make_folder() -> RunFolder:
        return RunFolder.create(config.run_dir, config.env.task, dump_config(config))

    with _computing_with(config.threads):
        return _run(config, make_folder, callbacks, quiet=quiet)


def resume(run: str | Path, callbacks: Sequence[Callback] = (), *, quiet: bool = False) -> Path:
    """Go on with a run that has been ended, by whatever, from the last point that it has saved.

    On CPUs it becomes bitwise what it would have been without that, but for its timings; what it
    had done after that point (``save_seconds``) is done again.

    Args:
        run: folder of the run.
        callbacks, quiet: as for :func:`train`, which also says what is returned and raised.

    Raises:
        FileNotFoundError: when there is no such run.
        BlockingIOError: when another process is training in it.
        CheckpointError: when nothing can be read of what the run has saved.
    """
    folder = RunFolder.open(run, begun=True)
    config = read_config(folder)
    if has_points(folder.resume):  # they hold the policy; the run that it began with may be gone
        config = replace(config, start_from=None)
    with _computing_with(config.threads):
        return _run(config, lambda: folder, callbacks, quiet=quiet)


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

    env = make_env(config, seed=config.seed)
    actor_critic = make_actor_critic(config.policy, env, compilable=config.compile)
    if config.start_from is not None:
        other = load_policy(config.start_from, env, config.policy)
        actor_critic.network.load_state_dict(other.network.state_dict())
    loss_module = FactoredClipPPOLoss(
        actor_critic.actor,
        actor_critic.critic,
        heads=actor_critic.heads,
        relevance=CAUSAL_RELEVANCE,
        **config.ppo.loss_options(),
    )
    parameters = list(actor_critic.network.parameters())
    optimizer = torch.optim.Adam(parameters, lr=config.ppo.lr)

    autocast = partial(torch.autocast, env.device.type, torch.bfloat16, enabled=config.bf16)

    advantage_options = config.ppo.advantage_options()
    loggers = make_loggers(config)
    iterations = config.iterations  # makes the task: once, not in every iteration
    run = folder()
    if not quiet:
        print(f"training in {run.path}; the processes start", file=sys.stderr, flush=True)

    def save() -> None:
        make_checkpoint(actor_critic, config.policy, env.topology, steps).write(run.checkpoint)

    def save_unless_failed(error: type[BaseException] | None, *_: object) -> None:
        if error is None or not issubclass(error, FloatingPointError):
            save()

    def update(minibatch: TensorDictBase) -> TensorDictBase:
        """One step of the optimizer; gives what the loss has written, and gradient norms."""
        with autocast():
            losses = loss_module(minibatch)
        if config.env.time_limit == "truncate":
            final_value = final_value_loss(minibatch, actor_critic)
            losses["loss_final_value"] = config.ppo.critic_coeff * final_value
        optimizer.zero_grad()
        loss = sum(term for key, term in losses.items() if key.startswith("loss_"))
        loss.backward()
        losses.update(gradient_metrics(actor_critic))
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.ppo.max_grad_norm)
        _require_finite("loss", loss, steps)
        _require_finite("gradient norm", grad_norm, steps)
        optimizer.step()
        return losses.detach().set("grad_norm", grad_norm)

    try:
        with ExitStack() as ends:  # undone in reverse order, whatever ends the run
            ends.enter_context(run.locked())
            note_provenance(run.provenance, config.device)
            collector = make_collector(config, actor_critic)
            ends.callback(collector.shutdown)
            points = ResumePoints(
                run.resume,
                network=actor_critic.network,
                optimizer=optimizer,
                collector=collector,
                generators=GlobalRNGState(),
            )
            done = points.load()
            if done:
                collector.reset()
                collector.update_policy_weights_()
            if keep_rows(run.metrics, done) < done:
                _LOGGER.warning("%s has lost lines; the run goes on after %d", run.metrics, done)
            steps = done * config.rollout_steps
            if config.compile:
                remove_broken_libraries()
                actor_critic.network.compile_parts()
            save()
            ends.push(save_unless_failed)
            shown = [] if quiet else [make_progress()]
            callbacks = [*loggers, MetricsFile(), Warnings(), *shown, *callbacks]
            for callback in callbacks:
                callback.on_start(config, run)
                ends.callback(callback.on_end)

            batches, saved_at = iter(collector), perf_counter()
            for iteration in range(done, iterations):
                start = perf_counter()
                batch = next(batches)  # [N, T]
                collect_seconds = perf_counter() - start
                env_seconds, policy_seconds = collection_seconds(batch)
                for callback in callbacks:
                    callback.on_rollout(batch)

                start = perf_counter()
                with _broken_numbers(steps):
                    batch = compute_advantages(batch, actor_critic, **advantage_options)
                    entropy_coeff = config.ppo.entropy_coeff
                    if config.ppo.anneal_entropy:
                        # Heads that few ops need get little from the advantages beside the bonus,
                        # which counts at every step: they make up their minds when it is small.
                        entropy_coeff *= (1 - iteration / iterations) ** 2
                    loss_module.entropy_coeff.fill_(entropy_coeff)
                    with torch.no_grad(), autocast():
                        before = loss_module(batch)
                    updates = []
                    for _ in range(config.ppo.epochs):
                        order = torch.randperm(config.env.num_envs)
                        for rows in order.tensor_split(config.ppo.minibatches):
                            updates.append(update(batch[rows]))
                collector.update_policy_weights_()
                update_seconds = perf_counter() - start

                steps += batch.numel()
                row = {
                    "steps": steps,
                    **rollout_metrics(batch),
                    **credit_metrics(batch),
                    **cell_metrics(batch),
                    **feedback_metrics(batch, actor_critic),
                    **update_metrics(before, updates),
                    "entropy_coeff": entropy_coeff,
                    "seconds/env": env_seconds,
                    "seconds/policy": policy_seconds,
                    "seconds/update": update_seconds,
                    "steps_per_second": batch.numel() / (collect_seconds + update_seconds),
                }
                if EXPLODED.keys() & find_warnings(row).keys():
                    run.keep_checkpoint()
                save()
                for callback in callbacks:
                    callback.on_iteration(row)
                last = iteration + 1 == iterations
                if last or perf_counter() - saved_at >= config.save_seconds:
                    points.save(iteration + 1, row["return"])
                    saved_at = perf_counter()
    except KeyboardInterrupt as interrupt:
        raise TrainingInterrupted(run.path) from interrupt
    return run.path


def _require_finite(name: str, value: Tensor, steps: int) -> None:
    if not torch.isfinite(value):
        raise _broken(f"the {name} became {value.item()}", steps)


@contextmanager
def _broken_numbers(steps: int) -> Iterator[None]:
    """In a run, a batch that the loss refuses comes from a policy whose numbers are broken."""
    try:
        yield
    except ValueError as error:
        raise _broken(str(error), steps) from error


def _broken(reason: str, steps: int) -> FloatingPointError:
    return FloatingPointError(
        f"{reason}, after {steps} steps; the last good policy is in checkpoint.pt, or in "
        "checkpoint.good.pt if that is there; a smaller ppo.lr may help"
    )
