"""Callbacks of a training run: metrics on disk, warnings, progress, and your own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter

from tensordict import TensorDictBase
from tqdm import tqdm

from esper_rl.config import TrainConfig
from esper_rl.growing.monitors import find_warnings
from esper_rl.runs import RunFolder
from esper_rl.runs.learning_curve import plot_learning_curve
from esper_rl.runs.metrics import append_row, count_rows


class Callback:
    """Hooks of a training run, called in the order of a run; override those that you need.

    Examples:
        >>> class Best(Callback):
        ...     best = float("-inf")
        ...     def on_iteration(self, metrics):
        ...         self.best = max(self.best, metrics["return"])
        >>> train(TrainConfig(), callbacks=[Best()])  # doctest: +SKIP
    """

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        """Called once, before the first iteration; the run's folder exists."""

    def on_rollout(self, batch: TensorDictBase) -> None:
        """Called in every iteration before the updates, with the steps that it is about.

        Args:
            batch: steps ``[N, T]`` with all that the world and the policy have written, not to be
                changed.
        """

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        """Called after every iteration with its numbers, nan where there was nothing to measure.

        Args:
            metrics: by the name that they have in ``metrics.csv``; ``"steps"`` are all
                environment steps so far.
        """

    def on_end(self) -> None:
        """Called once at the end, also after Ctrl-C or an error."""


class MetricsFile(Callback):
    """``metrics.csv``, one line an iteration, and the learning curve at the end."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.run = run

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        append_row(self.run.metrics, metrics)

    def on_end(self) -> None:
        plot_learning_curve(self.run.metrics, self.run.learning_curve)


class Warnings(Callback):
    """Warnings that weren't there in the iteration before, printed above the progress bar."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.before: dict[str, str] = {}

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        now = find_warnings(metrics)
        for name in now.keys() - self.before.keys():
            tqdm.write(f"after {metrics['steps']:,.0f} steps: {now[name]}", file=sys.stderr)
        self.before = now


SECONDS_A_LINE = 10.0
"""Time between two lines of :class:`ProgressLines`, or more."""


def make_progress() -> Callback:
    """A bar on a terminal, lines elsewhere."""
    return Progress() if sys.stderr.isatty() else ProgressLines()


def _steps(config: TrainConfig, run: RunFolder) -> tuple[int, int]:
    """Environment steps that a run has made already, and those that it will have made."""
    return count_rows(run.metrics) * config.rollout_steps, config.iterations * config.rollout_steps


def _headline(metrics: Mapping[str, float]) -> dict[str, str]:
    return {
        "return": f"{metrics['return']:.2f}",
        "accuracy": f"{metrics['final_accuracy']:.1f}%",
        "H(op)": f"{metrics['head_entropy/op']:.2f}",
        "H(blueprint)": f"{metrics['head_entropy/blueprint']:.2f}",
    }


class ProgressLines(Callback):
    """Steps, time left and the headline numbers, as lines for a log."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        self.first, self.total = _steps(config, run)
        self.began = self.printed_at = perf_counter()

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        now, steps = perf_counter(), metrics["steps"]
        if steps < self.total and now - self.printed_at < SECONDS_A_LINE:
            return
        self.printed_at = now
        seconds = (now - self.began) / (steps - self.first) * (self.total - steps)
        left = tqdm.format_interval(seconds)
        numbers = ", ".join(f"{name} {value}" for name, value in _headline(metrics).items())
        print(
            f"{steps:,.0f} of {self.total:,} steps, {left} left, {numbers}",
            file=sys.stderr,
            flush=True,
        )


class Progress(Callback):
    """A bar with steps, steps per second, time left and the headline numbers."""

    def on_start(self, config: TrainConfig, run: RunFolder) -> None:
        done, total = _steps(config, run)
        self.bar = tqdm(initial=done, total=total, unit="step")

    def on_iteration(self, metrics: Mapping[str, float]) -> None:
        self.bar.set_postfix(_headline(metrics), refresh=False)
        self.bar.update(metrics["steps"] - self.bar.n)

    def on_end(self) -> None:
        self.bar.close()
