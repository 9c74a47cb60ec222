"""Sweeps: a run for each combination of values, started by a launcher of Hydra's, or by Ray."""

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
from esper_rl.errors import ConfigError, check_choice, check_integer, config_errors

_OF_HYDRA = ("hydra.", "hydra/")
_OF_SWEEP = ("sweep=", "sweep.")
_FOLDER = "hydra.sweep.dir="


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
            ``"sweep=ray"`` makes the runs tasks of the cluster at ``ray.address``,
            ``"sweep.at_once=N"`` of them beside each other; see
            :func:`~esper_rl.training.ray_sweep.sweep_on_ray`.
        run: trains with a configuration, or goes on in its ``run_dir`` if that is there: when the
            machine of a task has died, and in a sweep whose folder is that of an earlier one.
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
    of_sweep = [override for override in overrides if override.startswith(_OF_SWEEP)]
    on_ray, at_once = _parse_sweep(of_sweep)
    if any(override.startswith("run_dir=") for override in overrides):
        raise ConfigError("run_dir is the sweep's to choose; hydra.sweep.dir=DIR says where")
    configs = compose_jobs([each for each in overrides if each not in (*of_hydra, *of_sweep)])
    folder = f"runs/sweep-{datetime.now():%Y%m%d-%H%M%S}"
    of_hydra.insert(0, f"{_FOLDER}{folder}")
    if not on_ray:
        return _sweep_by_hydra(configs, run, of_hydra, quiet=quiet)
    for word in of_hydra:
        if not word.startswith(_FOLDER):
            raise ConfigError(f"{word} is for Hydra's launchers; leave it out, or sweep=ray")
    from esper_rl.training.ray_sweep import sweep_on_ray  # loads Ray

    place = Path(of_hydra[-1].removeprefix(_FOLDER))
    sweep_on_ray(configs, run, place, at_once, quiet=quiet)
    return place


def _sweep_by_hydra(
    configs: Mapping[str, TrainConfig],
    run: Callable[[TrainConfig], object],
    of_hydra: Sequence[str],
    *,
    quiet: bool,
) -> Path:
    arguments = [
        f"+job={','.join(map(str, range(len(configs))))}",
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


def _parse_sweep(words: Sequence[str]) -> tuple[bool, int | None]:
    """Does Ray start the runs, and how many at most beside each other?"""
    values = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [word for word in words if word.partition("=")[0] not in ("sweep", "sweep.at_once")]
    if unknown or len(values) < len(words):
        wrong = (unknown or words)[0]
        raise ConfigError(f"{wrong}: there are sweep=ray and sweep.at_once=N")
    with config_errors():
        check_choice("sweep", values.get("sweep", "hydra"), ("hydra", "ray"))
        on_ray, most = values.get("sweep") == "ray", values.get("sweep.at_once")
        if most is None:
            return on_ray, None
        if not on_ray:
            raise ValueError("sweep.at_once is for sweep=ray; Hydra's launchers have n_jobs")
        number = int(most) if most.isdecimal() else most
        return on_ray, check_integer("sweep.at_once", number)


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
