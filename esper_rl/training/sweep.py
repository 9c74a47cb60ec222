"""Sweeps: a run for each combination of values, started by one of Hydra's launchers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from esper_rl.errors import ConfigError
from esper_rl.training.composition import (
    PRIMARY,
    compose_jobs,
    config_store,
    first_line,
    parse_overrides,
    to_config,
    written_values,
)
from esper_rl.training.config import TrainConfig

_OF_HYDRA = ("hydra.", "hydra/")


def sweep(
    overrides: Sequence[str], run: Callable[[TrainConfig], object], *, quiet: bool = False
) -> Path:
    """Train with each combination of values.

    All configurations are checked before the first run starts. A run that fails doesn't end the
    others; the first failure is raised when all are over.

    Args:
        overrides: as for :func:`~esper_rl.training.composition.compose_config`, but values may be
            several, ``"seed=0,1,2"`` or ``"seed=range(10)"``; and keys of Hydra itself, such as
            ``"hydra/launcher=joblib"`` where the package hydra-joblib-launcher is installed.
        run: trains with a configuration, whose ``run_dir`` is new.
        quiet: without a line to stderr as each run starts.

    Returns:
        The folder of the sweep, ``runs/sweep-TIME`` unless ``hydra.sweep.dir`` says otherwise; in
        it a run's folder is named by the values of what differs.

    Raises:
        ConfigError: see :func:`~esper_rl.training.composition.compose_config`; also for a
            ``run_dir``.

    Examples:
        >>> sweep(["policy=v1,v2", "seed=range(5)"], train)  # doctest: +SKIP
    """
    of_hydra = [override for override in overrides if override.startswith(_OF_HYDRA)]
    parsed = parse_overrides([each for each in overrides if each not in of_hydra])
    if any(override.key_or_group == "run_dir" for override in parsed):
        raise ConfigError("run_dir is the sweep's to choose; hydra.sweep.dir=DIR says where")
    values = written_values(parsed)
    number = len(compose_jobs(parsed))
    job = partial(_run_job, run, None if quiet else number)
    the_same = [key for key, options in values.items() if len(options) == 1]
    name = "override_dirname" if len(the_same) < len(values) else "num"
    arguments = [
        f"hydra.sweep.dir=runs/sweep-{datetime.now():%Y%m%d-%H%M%S}",
        f"hydra.sweep.subdir=${{hydra.job.{name}}}",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(the_same)}]",
        "hydra.output_subdir=null",  # a run's folder has its configuration
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
        *of_hydra,
        *(f"{key}={_joined(options)}" for key, options in values.items()),
    ]
    with config_store(parsed):
        jobs = GlobalHydra.instance().hydra
        assert jobs is not None
        try:
            batches = jobs.multirun(PRIMARY, job, arguments)
        except HydraException as error:
            raise ConfigError(first_line(error)) from error
    return Path(batches[0][0].hydra_cfg.hydra.sweep.dir)


def _joined(written: Sequence[str]) -> str:
    return ",".join(each.partition("=")[2] for each in written)


def _run_job(
    run: Callable[[TrainConfig], object], number: int | None, composed: DictConfig
) -> None:
    """Train; with the number of runs, say which of them this is."""
    hydra = HydraConfig.get()
    place = Path(hydra.runtime.output_dir)
    if number is not None:
        print(f"run {hydra.job.num + 1} of {number}: {place.name}", file=sys.stderr, flush=True)
    run(replace(to_config(composed), run_dir=str(place)))
