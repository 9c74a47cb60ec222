"""``esper-rl tasks``: list what hosts can be trained on."""

from __future__ import annotations

import argparse

from envs import list_tasks, make_task
from esper_rl.report.tables import format_problem, format_task
from esper_rl.terminal import terminal_width

HELP = DESCRIPTION = "list what hosts can be trained on"

_PAGE = 88
"""Columns of text that doesn't go to a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes nothing."""


def run(arguments: argparse.Namespace) -> None:
    """Print the tasks, also those that lack something on this machine."""
    for name in list_tasks():
        try:
            print(format_task(name, make_task(name), terminal_width() or _PAGE))
        except (ImportError, OSError, ValueError) as error:  # data that the user has to bring
            print(format_problem(name, str(error), terminal_width() or _PAGE))
