"""The report on a run: one page about the training, its result and the networks it grows."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from esper_rl.config import TrainConfig, make_schedule
from esper_rl.evaluation import BASELINES, GREEDY
from esper_rl.evaluation.episodes import Summary
from esper_rl.report.episode_trace import LEGEND, EpisodeTrace, draw_trace, trace_episodes
from esper_rl.report.page import as_page, as_picture, as_row, as_table
from esper_rl.report.run_figures import SECTIONS, Columns, draw_learning
from esper_rl.report.tables import evaluation_rows
from esper_rl.runs import CheckpointError, RunFolder
from esper_rl.runs.atomic_write import printable
from esper_rl.runs.metrics import read_columns
from esper_rl.training.loading import read_config

_LOGGER = logging.getLogger(__name__)

_NO_RESULT = "<p>None yet: <code>esper-rl evaluate</code> of this run gives one.</p>"

_LINES = {"return": "returns", "final_accuracy": "final_accuracy"}
"""Measures of an evaluation, by the metric whose curve they are drawn beside."""


def report_run(run: str | Path, episodes: int = 16, reload_seconds: int | None = None) -> str:
    """Write the report on a run, as one HTML page that needs no network.

    What can't be read, such as a broken metrics file, is said, and the rest is still shown.

    Args:
        run: its folder.
        episodes: episodes of an evaluation that the greedy policy plays; the traces of the one
            that earned most, of the middle one and of the one that earned least are shown. With 0
            none are.
        reload_seconds: the page loads itself again after so many; default: it doesn't.

    Raises:
        FileNotFoundError: when there is no such run.
        ConfigError: when its configuration isn't one of this version.
    """
    folder = RunFolder.open(run, begun=True)
    config = read_config(folder)
    columns, players = _read_metrics(folder), _read_evaluation(folder)
    parts = [f"<p>{escape(_describe(config, columns))}</p>", _provenance(folder)]
    if players or not folder.evaluation.exists():
        parts += ["<h2>Result</h2>", as_table(evaluation_rows(players)) if players else _NO_RESULT]
    if columns:
        means = {
            each.name: {m: players[each.name][key]["mean"] for m, key in _LINES.items()}
            for each in (GREEDY, *BASELINES)
            if each.name in players
        }
        learned = as_row(draw_learning(columns, means), "Return and accuracy")
        parts += ["<h2>Learning</h2>", learned]
        parts.append(
            "<p>The line is the mean over the episodes that ended in an iteration, the band one "
            "standard deviation of them. Horizontal lines are means in the evaluation: of the "
            "policy itself, greedy, and of players without training.</p>"
        )
        if config.reward.schedule:
            parts.append(f"<p>{escape(_tell_prices(config))}</p>")
        for title, draw, explanation in SECTIONS:
            pictures = as_row(draw(columns), title)
            parts += [f"<h2>{title}</h2>", pictures, f"<p>{explanation}</p>"]
    parts += _episodes(folder, config, episodes) if episodes else []
    title = f"{printable(folder.path.name)}: growing on {config.env.task}"
    return as_page(title, parts, reload_seconds)


def _describe(config: TrainConfig, columns: Columns) -> str:
    done = int(columns["steps"][-1]) if columns else 0
    return (
        f"{config.policy.describe()}, trained on {config.env.task} with seed {config.seed} for "
        f"{done:,} of {config.iterations * config.rollout_steps:,} environment steps, "
        f"{config.env.num_envs} networks at once."
    )


def _tell_prices(config: TrainConfig) -> str:
    """The weights of the reward that changed while the policy learned."""
    schedule = make_schedule(config)
    final = schedule.prices(schedule.steps)
    ramps = (
        f"{ramp.key} from {ramp.start:g} to {final[ramp.key]:g}, between {ramp.begin:.0%} and "
        f"{ramp.end:.0%} of the steps"
        for ramp in schedule.ramps
    )
    return f"Prices changed: {'; '.join(ramps)}. Evaluations are at the last ones."


def _provenance(folder: RunFolder) -> str:
    try:
        made = json.loads(folder.provenance.read_text(encoding="utf-8").splitlines()[-1])
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        git = made["git"]
        commit = f", commit {git['commit'][:12]}{' with changes' * git['changed']}" if git else ""
        return f"<p>{escape(made['started'])}, {escape(versions + commit)}.</p>"
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "<p>Versions and commit were not noted.</p>"


def _read_metrics(folder: RunFolder) -> Columns:
    """All columns; nothing, and a warning, where there is none that can be read."""
    try:
        columns = read_columns(folder.metrics)
        missing = {"steps", *_LINES} - columns.keys()
        if missing or not columns["steps"]:
            raise ValueError(f"no {', '.join(sorted(missing)) or 'iteration'}")
    except (OSError, ValueError, TypeError) as error:
        _LOGGER.warning("%s can't be read: %s", folder.metrics, error)
        return {}
    return {name: np.array(values) for name, values in columns.items()}


def _read_evaluation(folder: RunFolder) -> Mapping[str, Summary]:
    """Means and intervals by player; nothing, and a warning, where they can't be read."""
    if not folder.evaluation.exists():
        return {}
    try:
        policies = json.loads(folder.evaluation.read_text(encoding="utf-8"))["policies"]
        evaluation_rows(policies)  # fails where something is missing
        return policies
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _LOGGER.warning("%s can't be read: %s", folder.evaluation, error)
        return {}


def _episodes(folder: RunFolder, config: TrainConfig, episodes: int) -> list[str]:
    """The traces of three episodes; a sentence where there is no policy that can play."""
    try:
        traces = trace_episodes(folder.path, episodes, config.ppo.gamma, GREEDY)
    except (CheckpointError, FileNotFoundError) as error:
        _LOGGER.warning("no episodes are shown: %s", error)
        return ["<h2>What it grows</h2>", f"<p>{escape(str(error))}</p>"]
    parts = [
        "<h2>What it grows</h2>",
        f"<p>The greedy policy on {episodes} hosts of an evaluation. {LEGEND}</p>",
    ]
    for title, trace in _choose(traces).items():
        parts += [
            f"<h3>{title}: {trace.earned:.2f}</h3>",
            as_picture(draw_trace(trace), trace.describe()),
            f"<details><summary>In words</summary><p>{escape(trace.describe())}.</p></details>",
        ]
    return parts


def _choose(traces: Sequence[EpisodeTrace]) -> Mapping[str, EpisodeTrace]:
    """The best, the middle and the worst, as far as there are so many."""
    if len(traces) < 3:
        return {f"Episode {i + 1}": trace for i, trace in enumerate(traces)}
    return {
        "The episode that earned most": traces[0],
        "The middle one": traces[len(traces) // 2],
        "The one that earned least": traces[-1],
    }
