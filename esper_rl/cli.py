"""The command ``esper-rl``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from errno import EDQUOT, EIO, ENOSPC
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from envs import list_tasks, make_task
from esper_rl.arguments import parse_arguments
from esper_rl.errors import ConfigError, check_folder_of, config_errors
from esper_rl.evaluation import OPEN_LOOP, evaluate_run, shuffled
from esper_rl.report.episodes import Evaluation, without_nan
from esper_rl.report.tables import format_evaluations, format_problem, format_task
from esper_rl.runs import CheckpointError, RunFolder
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.terminal import ended_by_signals, forgive_output_errors, is_out_of_memory
from esper_rl.training.composition import compose_config, load_config
from esper_rl.training.config import TrainConfig
from esper_rl.training.loading import all_settings, read_config
from esper_rl.training.trainer import TrainingInterrupted, resume, train

_PAGE = 88
"""Columns of text that doesn't go to a terminal."""

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``esper-rl``; by default those of the command line.

    Returns:
        The exit code: 0, 1 when training failed or disk or memory is full, 2 for bad input, 130
        after Ctrl-C, SIGTERM, SIGHUP or SIGUSR1.
    """
    forgive_output_errors()
    arguments = parse_arguments(argv)
    try:
        with ended_by_signals():
            _COMMANDS[arguments.command](arguments)
    except (ConfigError, CheckpointError) as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except OSError as error:
        full = error.errno in (ENOSPC, EDQUOT, EIO)
        return _fail(str(error), EXIT_FAILED if full else EXIT_BAD_INPUT)
    except FloatingPointError as error:
        return _fail(str(error), EXIT_FAILED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(
            f"out of memory; fewer rows (env.num_envs), episodes or steps_per_iteration, or a "
            f"smaller policy.hidden_size, take less: {str(error).splitlines()[0]}",
            EXIT_FAILED,
        )
    except TrainingInterrupted as interrupt:
        return _fail(
            f"interrupted; the policy so far is in {interrupt.run}: "
            f"`esper-rl train --resume {interrupt.run}` goes on, "
            f"`esper-rl evaluate {interrupt.run}` plays it",
            EXIT_INTERRUPTED,
        )
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"esper-rl: {message}", file=sys.stderr)
    return code


def _train(arguments: argparse.Namespace) -> None:
    others = {"--config": arguments.config, "-m": arguments.multirun}
    given = [name for name, value in others.items() if value]
    if arguments.resume is not None:
        given = [*given, *arguments.settings]
        if given:
            raise ConfigError(
                f"--resume goes on with the configuration that it has; leave out {' '.join(given)}"
            )
        config = read_config(RunFolder.open(arguments.resume, begun=True))
        run = resume(arguments.resume, quiet=arguments.quiet)
    elif arguments.multirun:
        _sweep(arguments)
        return
    else:
        config = _parse(arguments.settings, arguments.config)
        run = train(config, quiet=arguments.quiet)
    if not arguments.json:
        print(f"run folder: {run}")
    if config.eval_episodes:
        _print_evaluation(run, config.eval_episodes, as_json=arguments.json)
    elif arguments.json:
        print(json.dumps({"run": str(run)}))


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
        _print_comparison([folder], "greedy", "returns", as_json=arguments.json)


def _train_of_sweep(config: TrainConfig, *, quiet: bool) -> None:
    run = train(config, quiet=quiet)
    if config.eval_episodes:
        played = evaluate_run(run, config.eval_episodes)
        if not quiet:
            _print_table(played, config.eval_episodes)


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


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.video is not None:
        from esper_rl.video import check_video, record_episode  # loads Matplotlib

        check_video(arguments.video)
    controls = [OPEN_LOOP] if arguments.open_loop else []
    if arguments.shuffle:
        slots = read_config(RunFolder.open(arguments.run), arguments.settings).env.num_slots
        controls += [shuffled(columns, slots) for columns in arguments.shuffle]
    _print_evaluation(
        arguments.run,
        arguments.episodes,
        as_json=arguments.json,
        controls=controls,
        seed=arguments.seed,
        settings=arguments.settings,
        output=arguments.output,
    )
    if arguments.video is not None:
        record_episode(arguments.run, arguments.video)
        out = sys.stderr if arguments.json else sys.stdout
        print(f"The first episode of the greedy policy is in {arguments.video}", file=out)


def _print_evaluation(run: Path, episodes: int, as_json: bool = False, **options: Any) -> None:
    played = evaluate_run(run, episodes, **options)
    if as_json:
        summaries = {name: evaluation.summary() for name, evaluation in played.items()}
        print(json.dumps(without_nan({"run": str(run), "policies": summaries}), indent=2))
    else:
        _print_table(played, episodes)


def _print_table(played: Mapping[str, Evaluation], episodes: int) -> None:
    summaries = {name: evaluation.summary() for name, evaluation in played.items()}
    print(format_evaluations(summaries, episodes, _width()))


def _compare(arguments: argparse.Namespace) -> None:
    output = arguments.output
    if output is not None and output.suffix not in (".html", ".md"):
        raise ConfigError(f"--output must end in .html or .md, got {str(output)!r}")
    _print_comparison(
        arguments.runs, arguments.player, arguments.measure, as_json=arguments.json, output=output
    )


def _print_comparison(
    runs: Sequence[Path], player: str, measure: str, *, as_json: bool, output: Path | None = None
) -> None:
    from esper_rl.report import comparison_page as page  # loads SciPy
    from esper_rl.report.comparison import read_designs

    designs = read_designs(runs, player, measure, all_settings)
    summary, title = page.summarise(designs), f"{measure} of {player}"
    if as_json:
        print(json.dumps(without_nan(summary), indent=2))
    else:
        print(title, *map(page.as_text, page.tables(summary)), sep="\n\n")
        print("\nin brackets: 95 % intervals, bootstrapped over training seeds")
    if page.caution(summary):
        print(f"esper-rl: {page.caution(summary)}", file=sys.stderr)
    if output is not None:
        if output.suffix == ".html":
            text = page.as_page(title, summary, designs)
        else:
            text = page.as_markdown(title, summary)
        write_atomically(output, text.encode(errors="replace"))


def _report(arguments: argparse.Namespace) -> None:
    from esper_rl.run_report import report_run  # loads Matplotlib

    output = arguments.output or RunFolder(arguments.run).report
    check_folder_of("report", output)
    write_atomically(output, report_run(arguments.run, arguments.episodes).encode(errors="replace"))
    print(f"The report is in {output}")


def _export(arguments: argparse.Namespace) -> None:
    from esper_rl.export import export_policy

    export_policy(arguments.run, arguments.output, greedy=not arguments.sampled)
    print(f"The policy is in {arguments.output}")


def _list_tasks(arguments: argparse.Namespace) -> None:
    for name in list_tasks():
        try:
            print(format_task(name, make_task(name), _width() or _PAGE))
        except (ImportError, OSError, ValueError) as error:  # data that the user has to bring
            print(format_problem(name, str(error), _width() or _PAGE))


def _width() -> int | None:
    """Columns of the terminal, None if output goes elsewhere."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "compare": _compare,
    "report": _report,
    "export": _export,
    "tasks": _list_tasks,
}
