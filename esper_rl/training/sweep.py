"""Sweeps: a run for each combination of values, started by one of Hydra's launchers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from esper_rl.config import TrainConfig, compose_jobs
from esper_rl.config.compose import first_line
from esper_rl.errors import ConfigError

_OF_HYDRA = ("hydra.", "hydra/")


def sweep(
    overrides: Sequence[str], run: Callable[[TrainConfig], object], *, quiet: bool = False
) -> Path:
    """Train with each combination of values.

    All configurations are checked before the first run starts. A run that fails doesn't end the
    others; the first failure is raised when all are over.

    Args:
        overrides: as for :func:`~esper_rl.config.compose_config`, but values may be several,
            ``"seed=0,1,2"`` or ``"seed=range(10)"``; and keys of Hydra itself, such as
            ``"hydra/launcher=joblib"`` where the package hydra-joblib-launcher is installed.
        run: trains with a configuration, whose ``run_dir`` is new.
        quiet: without a line to stderr as each run starts.

    Returns:
        The folder of the sweep, ``runs/sweep-TIME`` unless ``hydra.sweep.dir`` says otherwise; in
        it a run's folder is named by the values of what differs.

    Raises:
        ConfigError: see :func:`~esper_rl.config.compose_config`; also for a ``run_dir``.

    Examples:
        >>> sweep(["policy=v1,v2", "seed=range(5)"], train)  # doctest: +SKIP
    """
    of_hydra = [override for override in overrides if override.startswith(_OF_HYDRA)]
    if any(override.startswith("run_dir=") for override in overrides):
        raise ConfigError("run_dir is the sweep's to choose; hydra.sweep.dir=DIR says where")
    configs = compose_jobs([each for each in overrides if each not in of_hydra])
    arguments = [
        f"+job={','.join(map(str, range(len(configs))))}",
        f"hydra.sweep.dir=runs/sweep-{datetime.now():%Y%m%d-%H%M%S}",
        "hydra.sweep.subdir=.",  # the names of runs are no words of Hydra's grammar
        "hydra.output_subdir=null",  # a run's folder has its configuration
        "hydra/hydra_logging=none",
        "hydra/job_logging=none",
        *of_hydra,
    ]
    running = GlobalHydra.instance()
    outer, running.hydra = running.hydra, None  # the sweep may be part of a program that runs by it
    try:
        with initialize(version_base="1.3", config_path=None, job_name="esper-rl"):
            jobs = GlobalHydra.instance().hydra
            assert jobs is not None
            batches = jobs.multirun(None, partial(_run_job, run, configs, quiet), arguments)
    except HydraException as error:
        raise ConfigError(first_line(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    return Path(batches[0][0].hydra_cfg.hydra.sweep.dir)


def _run_job(
    run: Callable[[TrainConfig], object],
    configs: Mapping[str, TrainConfig],
    quiet: bool,
    job: DictConfig,
) -> None:
    """Train with the configuration of a number."""
    name, config = list(configs.items())[job.job]
    if not quiet:
        print(f"run {job.job + 1} of {len(configs)}: {name}", file=sys.stderr, flush=True)
    run(replace(config, run_dir=str(Path(HydraConfig.get().runtime.output_dir) / name)))
