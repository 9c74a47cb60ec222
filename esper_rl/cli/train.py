"""``esper-rl train``: train a policy, or one for each combination of values."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from esper_rl.cli.compare import print_comparison
from esper_rl.cli.evaluate import print_evaluation, print_table
from esper_rl.cli.parsing import JSON_HELP, format_options
from esper_rl.config import TrainConfig, compose_config, load_config, pin_world
from esper_rl.errors import ConfigError, config_errors
from esper_rl.evaluation import evaluate_run
from esper_rl.runs import RunFolder
from esper_rl.training.loading import read_config
from esper_rl.training.trainer import resume, train

HELP = "train a policy, then evaluate it"
DESCRIPTION = """\
Train a policy with PPO, then play it beside the baselines. A run leaves
config.yaml, provenance.jsonl (versions, commit, machine), metrics.csv,
checkpoint.pt, learning_curve.png and evaluation.json in its folder, and in
resume/ what --resume needs. Ctrl-C ends it early; its policy is kept, and
--resume goes on.

With -m a value may be several, such as policy=v1,v2 seed=range(5): there is
a run for each combination, and at the end a comparison. Hydra starts them:
hydra/launcher=joblib n_jobs at once where that launcher is installed. With
sweep=ray a cluster of Ray does, sweep.at_once=N at once. The same words and
hydra.sweep.dir=FOLDER go on with a sweep that was ended."""

_EXAMPLES = """
examples:
  esper-rl train total_steps=8000 ppo.lr=1e-3 run_dir=runs/first
  esper-rl train -m policy=v1,v2 'seed=range(5)'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{format_options()}\n{_EXAMPLES}"
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="fields that differ from the defaults"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with the run in this folder, whatever has ended it; total_steps=N makes it "
        "longer",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="begin with the configuration in this file, such as a run's config.yaml",
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def run(arguments: argparse.Namespace) -> None:
    """Train as the words say."""
    if arguments.resume is not None:
        folder = resume(arguments.resume, total_steps=_more_steps(arguments), quiet=arguments.quiet)
        config = read_config(RunFolder.open(folder))
    elif arguments.multirun:
        _sweep(arguments)
        return
    else:
        config = _parse(arguments.settings, arguments.config)
        folder = train(config, quiet=arguments.quiet)
    if not arguments.json:
        print(f"run folder: {folder}")
    if config.eval_episodes:
        print_evaluation(folder, config.eval_episodes, as_json=arguments.json)
    elif arguments.json:
        print(json.dumps({"run": str(folder)}))


def _more_steps(arguments: argparse.Namespace) -> int | None:
    """The steps to which a run that goes on is extended; it can't be changed otherwise."""
    others = {"--config": arguments.config, "-m": arguments.multirun}
    given = [name for name, value in others.items() if value]
    given += [setting for setting in arguments.settings if not setting.startswith("total_steps=")]
    if given:
        raise ConfigError(
            "--resume goes on with the configuration that the run has; only total_steps=N may be "
            f"given, leave out {' '.join(given)}"
        )
    return compose_config(arguments.settings).total_steps if arguments.settings else None


def _sweep(arguments: argparse.Namespace) -> None:
    """Train with each combination of values, then compare the runs."""
    from esper_rl.report.comparison import find_runs  # loads SciPy
    from esper_rl.training.sweep import sweep

    if arguments.config is not None:
        raise ConfigError("-m begins with the defaults; leave out --config, or -m")
    silent = arguments.quiet or arguments.json
    train_one = partial(_train_of_sweep, quiet=silent)
    folder = sweep(arguments.settings, train_one, quiet=arguments.quiet)
    if not arguments.json:
        print(f"sweep folder: {folder}")
    if any(RunFolder(run).evaluation.exists() for run in find_runs([folder])):
        print_comparison([folder], "greedy", "returns", as_json=arguments.json)


def _train_of_sweep(config: TrainConfig, *, quiet: bool) -> None:
    folder = RunFolder(Path(str(config.run_dir)))
    if folder.config.is_file():
        _check_same(config, folder)
        run = resume(folder.path, quiet=quiet)
    else:
        run = train(config, quiet=quiet)
    if config.eval_episodes and not folder.evaluation.exists():
        played = evaluate_run(run, config.eval_episodes)
        if not quiet:
            print_table(played, config.eval_episodes)


def _check_same(config: TrainConfig, folder: RunFolder) -> None:
    """Refuse to go on with a run that was begun with other settings."""
    begun = read_config(folder)
    if replace(pin_world(config), threads=begun.threads, run_dir=begun.run_dir) != begun:
        raise ConfigError(
            f"{folder.path} is a run with other settings; hydra.sweep.dir=DIR names another folder"
        )


def _parse(overrides: Sequence[str], start: Path | None) -> TrainConfig:
    """The configuration of a new run; prints which settings don't count, or count otherwise."""
    if start is None:
        config = compose_config(overrides)
    else:
        with config_errors(f"{start}: "):
            begun = replace(load_config(start.read_text(encoding="utf-8")), run_dir=None)
        config = compose_config(overrides, begun)
    keys = [override.partition("=")[0] for override in overrides]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        print(f"esper-rl: {key} is given more than once; the last one counts", file=sys.stderr)
    steps = config.iterations * config.rollout_steps
    if steps != config.total_steps:
        print(
            f"esper-rl: total_steps={config.total_steps} is rounded up to {steps}, to whole "
            f"iterations of {config.rollout_steps} steps",
            file=sys.stderr,
        )
    return config
