"""Comparison of designs over training seeds, as Agarwal et al. (2021) recommend it.

A run counts once, by the mean of its evaluation: the unit is the training seed, never an episode or
a row of the world. Designs are runs that differ in nothing but the seed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy.stats import bootstrap, trim_mean
from yaml import YAMLError

from esper_rl.config.describe import flatten
from esper_rl.errors import ConfigError
from esper_rl.growing import PolicyConfig
from esper_rl.runs import RunFolder
from esper_rl.runs.metrics import read_columns

_LOGGER = logging.getLogger(__name__)

FEW_SEEDS = 5
"""With fewer training seeds than this a comparison proves nothing."""

_NOT_A_DESIGN = (
    "seed", "run_dir", "device", "workers", "threads", "save_seconds", "eval_episodes",
)  # fmt: skip
"""Fields by which two runs of the same design may differ."""


_OF_A_RUN = ("checkpoint.pt", "metrics.csv", "evaluation.json")
"""Files that tell that a folder is a run's."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, OmegaConfBaseException, YAMLError)


class Interval(NamedTuple):
    """An estimate and its 95 % interval (percentile bootstrap over training seeds)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedRun:
    """A run of a design.

    Attributes:
        path: its folder.
        seed: of the training.
        settings: its configuration but for what doesn't belong to a design, flat, by key.
        score: mean of its evaluation.
        curve: environment steps and return in training, ``[iterations, 2]``; empty if unreadable.
    """

    path: Path
    seed: int
    settings: dict[str, Any]
    score: float
    curve: np.ndarray


@dataclass(frozen=True)
class Design:
    """Runs that differ in nothing but the seed.

    Attributes:
        name: the fields in which it differs from the other designs.
        runs: one a training seed.
    """

    name: str
    runs: Sequence[SeedRun]

    @property
    def scores(self) -> np.ndarray:
        """One a training seed."""
        return np.array([run.score for run in self.runs])


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """List the folders of runs among ``paths`` and below them, each once.

    Raises:
        ConfigError: if there is none.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        configs = [path / "config.yaml"] if (path / "config.yaml").is_file() else []
        configs = configs or sorted(path.rglob("config.yaml"))
        for config in configs:
            found.setdefault(config.parent.resolve(), config.parent)
        left = {each.parent for each in path.rglob("*") if each.name in _OF_A_RUN}
        for folder in sorted(left - {config.parent for config in configs}):
            _LOGGER.warning("%s is left out: it has no config.yaml", folder)
        if not configs and not left:
            _LOGGER.warning("%s is left out: no run is there", path)
    if not found:
        names = ", ".join(map(str, paths)) or "nothing"
        raise ConfigError(
            f"runs: got {names}, where no run is; name folders of runs, or above them"
        )
    return list(found.values())


def as_written(run: RunFolder) -> Any:
    """The content of a run's ``config.yaml``."""
    return OmegaConf.to_container(OmegaConf.create(run.config.read_text()))


def read_designs(
    paths: Iterable[str | Path],
    player: str,
    measure: str,
    settings_of: Callable[[RunFolder], Any] = as_written,
) -> list[Design]:
    """Group runs by design; those that can't be compared are named in warnings and left out.

    Args:
        paths: folders of runs, or folders above them.
        player: whose evaluation counts, such as ``"greedy"``.
        measure: one of :data:`~esper_rl.evaluation.episodes.MEASURES`.
        settings_of: gives the settings of a run, nested mappings.

    Raises:
        ConfigError: if no run can be compared.
    """
    runs: list[SeedRun] = []
    for path in find_runs(paths):
        try:
            run = read_run(path, player, measure, settings_of)
        except _UNREADABLE as error:
            _LOGGER.warning("%s is left out: %s", path, _reason(error))
            continue
        task = runs[0].settings.get("env.task") if runs else None
        if runs and run.settings.get("env.task") != task:
            _LOGGER.warning(
                "%s is left out: it is of task %s, the first run of %s",
                path, run.settings.get("env.task"), task,
            )  # fmt: skip
            continue
        runs.append(run)
    if not runs:
        raise ConfigError(
            f"runs: none has an evaluation of {player!r} that can be read; "
            "`esper-rl evaluate RUN` makes one"
        )
    return _group(runs)


def read_run(
    path: Path, player: str, measure: str, settings_of: Callable[[RunFolder], Any]
) -> SeedRun:
    """Read what a comparison needs of a run.

    Raises:
        OSError, ValueError, KeyError, TypeError: when its configuration or evaluation isn't there,
            or isn't of a kind that is known here.
    """
    folder = RunFolder(path)
    config = settings_of(folder)
    if not isinstance(config, dict):
        raise ValueError("its config.yaml isn't that of a run")
    settings = flatten(config | _named_policy(config))
    evaluation = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    policies = evaluation["policies"]
    if evaluation.get("run", folder.digest) != folder.digest:
        raise ValueError("its evaluation.json is of another run")
    if player not in policies:
        raise ValueError(f"its evaluation has {', '.join(policies)}, no {player!r}")
    score = policies[player][measure]["mean"]
    if score is None or not math.isfinite(score):
        raise ValueError(f"its {measure} is {score}")
    design = {key: value for key, value in settings.items() if key not in _NOT_A_DESIGN}
    return SeedRun(path, settings["seed"], design, score, _read_curve(folder))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and str(error.filename).endswith("evaluation.json"):
        return "it has no evaluation.json; `esper-rl evaluate` makes one"
    kind = type(error).__name__ if isinstance(error, KeyError) else ""
    return f"{kind} {error}".strip().splitlines()[0]


def _read_curve(folder: RunFolder) -> np.ndarray:
    try:
        columns = read_columns(folder.metrics, ("steps", "return"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOGGER.warning("%s has no learning curve: %s", folder.path, _reason(error))
        return np.empty((0, 2))
    return np.stack(list(columns.values()), 1)


def _named_policy(config: Mapping[Any, Any]) -> dict[str, Any]:
    """The policy as a preset and what differs from it; as it is where it is of another version."""
    try:
        preset, changes = PolicyConfig(**config["policy"]).nearest_preset()
    except (KeyError, TypeError, ValueError):
        return {}
    return {"policy": preset} | {f"policy.{field}": value for field, value in changes.items()}


def _group(runs: Sequence[SeedRun]) -> list[Design]:
    keys = sorted({key for run in runs for key in run.settings})
    differing = [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]
    groups: dict[str, dict[int, SeedRun]] = {}
    for run in runs:
        differences = [f"{key}={run.settings.get(key)}" for key in differing]
        group = groups.setdefault(" ".join(differences) or "all runs", {})
        if run.seed in group:
            _LOGGER.warning(
                "%s is left out: %s has the same settings and seed", run.path, group[run.seed].path
            )
        group.setdefault(run.seed, run)
    return [Design(name, list(group.values())) for name, group in groups.items()]


# -- statistics -------------------------------------------------------------------------------


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of the scores."""
    return trim_mean(scores, 0.25, axis=axis)


def interval_of(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray, resamples: int = 9999
) -> Interval:
    """A statistic of independent samples with its interval; nan where a sample has one seed."""
    value = float(statistic(*samples, axis=-1))
    if min(map(len, samples)) < 2:
        return Interval(value, math.nan, math.nan)
    if all(np.ptp(sample) == 0 for sample in samples):
        return Interval(value, value, value)  # nothing to resample
    found = bootstrap(
        samples, statistic, n_resamples=resamples, method="percentile", vectorized=True, rng=0
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def probability_of_improvement(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of the first design scores more than one of the second.

    Ties count one half (the Mann-Whitney statistic over the number of pairs).
    """
    x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean((-2, -1))


def performance_profile(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Share of the runs that score more than each level."""
    return (scores[:, None] > levels).mean(0)
