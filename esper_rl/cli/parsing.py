"""The words of a command line, and the texts of ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import groupby
from shutil import get_terminal_size
from textwrap import fill
from types import ModuleType

from esper_rl.config.describe import HEADINGS, describe_options
from esper_rl.config.schema import MOST_EPISODES
from esper_rl.runs.provenance import package_versions

JSON_HELP = "print JSON instead of a table"


def parse_arguments(
    commands: Mapping[str, ModuleType], argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """The words of a command line, by default this process's; ``command`` is the command's name.

    Options and settings may stand in any order. Ends the process when they can't be understood.

    Args:
        commands: by name; each has HELP, one line, DESCRIPTION, and ``add_arguments(parser)``.
        argv: the words.
    """
    parser = _build_parser(commands)
    arguments, rest = parser.parse_known_args(argv)
    if rest:  # argparse takes the settings up to the first option only
        are_settings = all("=" in word and not word.startswith("-") for word in rest)
        if not are_settings or "settings" not in arguments:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        arguments.settings += rest
    return arguments


def _build_parser(commands: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esper-rl",
        description="Teach an agent to grow neural networks while they train.",
        epilog="`esper-rl COMMAND --help` tells more about a command.",
    )
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    parser.add_argument("--version", action="version", version=versions)
    listed = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name, command in commands.items():
        each = listed.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        command.add_arguments(each)
        each.add_argument(
            "--import",
            dest="imports",
            action="append",
            default=[],
            metavar="FILE.py",
            help="run this file, or import this module, first, such as one that registers a task "
            "of your own; may be said again",
        )
    return parser


def format_options() -> str:
    """A line or more on each option of a configuration."""
    options = describe_options()
    keys = max(len(f"{option.key}={option.default}") for option in options)
    width = max(60, get_terminal_size().columns)
    lines = ["fields, their defaults and what they mean:"]
    for group, members in groupby(
        options, lambda option: option.key.rpartition(".")[0].split(".")[0]
    ):
        lines += ["", f"{HEADINGS[group]}:"]
        for option in members:
            default = "{}" if option.takes_entries else option.default
            name = f"  {f'{option.key}={default}'.ljust(keys)}  "
            lines.append(
                fill(option.help, width, initial_indent=name, subsequent_indent=" " * len(name))
            )
    return "\n".join(lines)


def number_of_episodes(text: str) -> int:
    """An argument that is a number of episodes."""
    if not (text.isdecimal() and 1 <= int(text) <= MOST_EPISODES):
        raise argparse.ArgumentTypeError(
            f"got {text}, allowed are whole numbers from 1 to {MOST_EPISODES}"
        )
    return int(text)
