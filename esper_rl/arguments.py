"""The command line of ``esper-rl``: its commands, options and help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill

from esper_rl.evaluation import EVALUATION_SEED
from esper_rl.report.episodes import MEASURES
from esper_rl.runs.provenance import package_versions
from esper_rl.training.composition import describe_options
from esper_rl.training.config import MOST_EPISODES

_JSON_HELP = "print JSON instead of a table"

_HEADINGS = {
    "": "the run",
    "env": "the world",
    "reward": "the reward, null: as the task has it",
    "policy": "the policy's network",
    "ppo": "PPO and the estimation of values",
}
"""By the part of an option's name before its point."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The words of a command line, by default this process's; ``command`` is the command's name.

    Options and settings may stand in any order. Ends the process when they can't be understood.
    """
    parser = _build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest:  # argparse takes the settings up to the first option only
        are_settings = all("=" in word and not word.startswith("-") for word in rest)
        if not are_settings or "settings" not in arguments:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.settings += rest
    return arguments


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esper-rl",
        description="Teach an agent to grow neural networks while they train.",
        epilog="`esper-rl COMMAND --help` tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=_format_versions())
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )

    training = commands.add_parser(
        "train",
        help="train a policy, then evaluate it",
        description=(
            "Train a policy with PPO, then play it beside the baselines. A run leaves\n"
            "config.yaml, provenance.jsonl (versions, commit, machine), metrics.csv,\n"
            "checkpoint.pt, learning_curve.png and evaluation.json in its folder, and in\n"
            "resume/ what --resume needs. Ctrl-C ends it early; its policy is kept, and\n"
            "--resume goes on.\n\n"
            "With -m a value may be several, such as policy=v1,v2 seed=range(5): there is\n"
            "a run for each combination, and at the end a comparison. Hydra starts them:\n"
            "hydra/launcher=joblib n_jobs at once where that launcher is installed."
        ),
        epilog=_describe_fields(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    training.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="fields that differ from the defaults"
    )
    training.add_argument(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with the run in this folder, whatever has ended it",
    )
    training.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="begin with the configuration in this file, such as a run's config.yaml",
    )
    training.add_argument(
        "-m", "--multirun", action="store_true", help="a run for each combination of values"
    )
    training.add_argument("--quiet", action="store_true", help="show no progress")
    training.add_argument("--json", action="store_true", help=_JSON_HELP)

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
        help="play in another world than the run's, such as task=digits_full, or device=cuda",
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

    report = commands.add_parser(
        "report",
        help="write a page about a run",
        description=(
            "Write one HTML page about a run, which needs no network: what was trained and with "
            "what, the result, learning curves, entropies, ops, value, memory and credit, and what "
            "the greedy policy grows in three episodes, told slot by slot."
        ),
    )
    report.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    report.add_argument(
        "--episodes",
        type=_episodes,
        default=16,
        help="episodes that are played for the stories (default %(default)s)",
    )
    report.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (default report.html in the run)"
    )

    export = commands.add_parser(
        "export",
        help="write a policy as a program of its own",
        description=(
            "Write the policy of a run as a program that needs PyTorch or an ONNX runtime only: it "
            "takes observation, indices, masks and state, and gives actions, log-probabilities and "
            "the next state, for any number of rows."
        ),
    )
    export.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    export.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="FILE.pt2 or FILE.onnx"
    )
    export.add_argument(
        "--sampled", action="store_true", help="draw actions; default: take the likeliest ones"
    )

    commands.add_parser("tasks", help="list what hosts can be trained on")
    return parser


def _format_versions() -> str:
    return ", ".join(f"{name} {number}" for name, number in package_versions().items())


def _describe_fields() -> str:
    options = describe_options()
    keys = max(len(f"{key}={default}") for key, default, _ in options)
    width = max(60, get_terminal_size().columns)
    lines = ["fields, their defaults and what they mean:"]
    for group, members in groupby(
        options, lambda option: option[0].rpartition(".")[0].split(".")[0]
    ):
        lines += ["", f"{_HEADINGS[group]}:"]
        for key, default, text in members:
            name = f"  {f'{key}={default}'.ljust(keys)}  "
            lines.append(fill(text, width, initial_indent=name, subsequent_indent=" " * len(name)))
    examples = [
        "esper-rl train total_steps=8000 ppo.lr=1e-3 run_dir=runs/first",
        "esper-rl train -m policy=v1,v2 'seed=range(5)'",
    ]
    return "\n".join([*lines, "", "examples:", *(f"  {example}" for example in examples)])


def _episodes(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST_EPISODES):
        raise argparse.ArgumentTypeError(
            f"got {text}, allowed are whole numbers from 1 to {MOST_EPISODES}"
        )
    return int(text)
