"""The command ``esper-rl``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from errno import EDQUOT, EIO, ENOSPC
from importlib.metadata import version
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from envs import list_tasks, make_task
from esper_rl.errors import ConfigError
from esper_rl.evaluation import EVALUATION_SEED, OPEN_LOOP, SHUFFLED, evaluate_run
from esper_rl.report.episodes import MEASURES, without_nan
from esper_rl.report.tables import format_evaluations, format_problem, format_task
from esper_rl.runs import CheckpointError, RunFolder
from esper_rl.terminal import ended_by_signals, is_out_of_memory, write_anywhere
from esper_rl.training.config import MOST_EPISODES, TrainConfig, describe_options, parse_overrides
from esper_rl.training.loading import read_config
from esper_rl.training.trainer import TrainingInterrupted, resume, train

_PAGE = 88
"""Columns of text that doesn't go to a terminal."""

_JSON_HELP = "print JSON instead of a table"

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``esper-rl``; by default those of the command line.

    Returns:
        The exit code: 0, 1 when training failed or disk or memory is full, 2 for bad input, 130
        after Ctrl-C, SIGTERM or SIGHUP.
    """
    write_anywhere()
    arguments = _build_parser().parse_args(argv)
    try:
        with ended_by_signals():
            arguments.run_command(arguments)
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


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esper-rl",
        description="Teach an agent to grow neural networks while they train.",
        epilog="`esper-rl COMMAND --help` tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    training = commands.add_parser(
        "train",
        help="train a policy, then evaluate it",
        description=(
            "Train a policy with PPO, then play it beside the baselines. A run\n"
            "leaves config.yaml, metrics.csv, checkpoint.pt, learning_curve.png and\n"
            "evaluation.json in its folder, and in resume/ what --resume needs. Ctrl-C\n"
            "ends it early; its policy is kept, and --resume goes on."
        ),
        epilog=_describe_fields(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="fields that differ from the defaults"
    )
    training.add_argument(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with the run in this folder, whatever has ended it",
    )
    training.add_argument("--quiet", action="store_true", help="show no progress")
    training.add_argument("--json", action="store_true", help=_JSON_HELP)
    training.set_defaults(run_command=_train)

    evaluation = commands.add_parser(
        "evaluate",
        help="play a trained policy beside the baselines",
        description=(
            "Play the policy of a run, greedy and sampled, also with its action feedback hidden, "
            "the baselines wait, random, fixed-schedule (conv_heavy at slot 0 as early as "
            "possible) and heuristic, and the best plan where it is known, on the same episodes. "
            "Prints a table and writes it to evaluation.json in the run's folder."
        ),
    )
    evaluation.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    evaluation.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="play in another world than the run's, such as env.task=digits_full, or device=cuda",
    )
    evaluation.add_argument(
        "--episodes",
        type=_episodes,
        default=64,
        help="episodes of each policy (default %(default)s)",
    )
    evaluation.add_argument(
        "--open-loop",
        action="store_true",
        help="also play the greedy policy's actions of each host on another one",
    )
    evaluation.add_argument(
        "--shuffle",
        nargs="+",
        action="append",
        default=[],
        metavar="COLUMN",
        help="also let the greedy policy see these columns of another host, such as "
        "accuracy_norm or 'slot*_alpha'; '*' for all; may be said again",
    )
    evaluation.add_argument(
        "--video",
        metavar="FILE",
        type=Path,
        help="write the greedy policy's first episode, too, as FILE.gif or FILE.mp4",
    )
    evaluation.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        help="of the episodes (default %(default)s)",
    )
    evaluation.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="another file to write than the run's evaluation.json",
    )
    evaluation.add_argument("--json", action="store_true", help=_JSON_HELP)
    evaluation.set_defaults(run_command=_evaluate)

    comparison = commands.add_parser(
        "compare",
        help="compare designs over training seeds",
        description=(
            "Compare runs by their evaluations: those that differ in nothing but the seed are one "
            "design. Interquartile means, probabilities of improvement, performance profiles and "
            "learning curves with 95 % intervals over training seeds (Agarwal et al. 2021)."
        ),
    )
    comparison.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="folders of runs, or folders above them"
    )
    comparison.add_argument(
        "--player", default="greedy", help="whose evaluation counts (default %(default)s)"
    )
    comparison.add_argument(
        "--measure",
        choices=MEASURES,
        default="returns",
        help="what is compared (default %(default)s)",
    )
    comparison.add_argument(
        "--output", metavar="FILE", type=Path, help="write a page, too: FILE.html or FILE.md"
    )
    comparison.add_argument("--json", action="store_true", help=_JSON_HELP)
    comparison.set_defaults(run_command=_compare)

    tasks = commands.add_parser("tasks", help="list what hosts can be trained on")
    tasks.set_defaults(run_command=_list_tasks)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    if arguments.resume is not None:
        if arguments.overrides:
            raise ConfigError(
                "--resume goes on with the configuration that it has; leave out "
                f"{' '.join(arguments.overrides)}"
            )
        config = read_config(RunFolder.open(arguments.resume, begun=True))
        run = resume(arguments.resume, quiet=arguments.quiet)
    else:
        config = _parse(arguments.overrides)
        run = train(config, quiet=arguments.quiet)
    if not arguments.json:
        print(f"run folder: {run}")
    if config.eval_episodes:
        _print_evaluation(run, config.eval_episodes, as_json=arguments.json)
    elif arguments.json:
        print(json.dumps({"run": str(run)}))


def _parse(overrides: Sequence[str]) -> TrainConfig:
    """The configuration of a new run; what isn't quite as it was said is said."""
    config = parse_overrides(overrides)
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
    controls += [SHUFFLED + " ".join(columns) for columns in arguments.shuffle]
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
        print(f"The first episode of the greedy policy is in {arguments.video}")


def _print_evaluation(run: Path, episodes: int, as_json: bool = False, **options: Any) -> None:
    played = evaluate_run(run, episodes, **options)
    summaries = {name: evaluation.summary() for name, evaluation in played.items()}
    if as_json:
        print(json.dumps(without_nan({"run": str(run), "policies": summaries}), indent=2))
    else:
        print(format_evaluations(summaries, episodes, _width()))


def _compare(arguments: argparse.Namespace) -> None:
    from esper_rl.report import comparison_page as page  # loads SciPy
    from esper_rl.report.comparison import read_designs

    output = arguments.output
    if output is not None and output.suffix not in (".html", ".md"):
        raise ConfigError(f"--output must end in .html or .md, got {str(output)!r}")
    designs = read_designs(arguments.runs, arguments.player, arguments.measure)
    summary, title = page.summarise(designs), f"{arguments.measure} of {arguments.player}"
    if arguments.json:
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
        output.write_text(text, encoding="utf-8")


def _list_tasks(arguments: argparse.Namespace) -> None:
    for name in list_tasks():
        try:
            print(format_task(name, make_task(name), _width() or _PAGE))
        except (ImportError, OSError, ValueError) as error:  # data that the user has to bring
            print(format_problem(name, str(error), _width() or _PAGE))


def _width() -> int | None:
    """Columns of the terminal, None if output goes elsewhere."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


def _version() -> str:
    packages = ("esper-rl", "torch", "torchrl", "tensordict")
    return ", ".join(f"{name} {version(name)}" for name in packages)


def _describe_fields() -> str:
    options = describe_options()
    keys = max(len(f"{key}={default}") for key, default, _ in options)
    width = max(60, get_terminal_size().columns)
    lines = [
        fill(
            text,
            width,
            initial_indent=f"  {f'{key}={default}'.ljust(keys)}  ",
            subsequent_indent=" " * (keys + 4),
        )
        for key, default, text in options
    ]
    return "\n".join(
        [
            "fields and their defaults:",
            *lines,
            "",
            "example: esper-rl train total_steps=8000 ppo.lr=1e-3 run_dir=runs/first",
        ]
    )


def _episodes(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MOST_EPISODES:
        raise argparse.ArgumentTypeError(
            f"got {number}, allowed are whole numbers from 1 to {MOST_EPISODES}"
        )
    return number
