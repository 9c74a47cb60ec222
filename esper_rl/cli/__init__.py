"""The command ``esper-rl``: a module for each of its commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from errno import EDQUOT, EIO, ENOSPC
from types import ModuleType

from esper_rl.cli import compare, evaluate, export, grow, report, tasks, train
from esper_rl.cli.importing import run_first
from esper_rl.cli.parsing import parse_arguments
from esper_rl.errors import ConfigError
from esper_rl.runs import CheckpointError
from esper_rl.terminal import ended_by_signals, forgive_output_errors, is_out_of_memory
from esper_rl.training.trainer import TrainingInterrupted
from esper_rl.training.worker_processes import WorkerLostError

COMMANDS: Mapping[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "grow": grow,
    "compare": compare,
    "report": report,
    "export": export,
    "tasks": tasks,
}
"""By name; each has HELP, DESCRIPTION, ``add_arguments(parser)`` and ``run(arguments)``."""

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
    arguments = parse_arguments(COMMANDS, argv)
    try:
        with ended_by_signals():
            for name in arguments.imports:
                run_first(name)
            COMMANDS[arguments.command].run(arguments)
    except (ConfigError, CheckpointError) as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT, EIO):
            return _fail(str(error), EXIT_BAD_INPUT)
        return _fail(
            f"{error}; when there is space again, `esper-rl train --resume RUN` goes on with a run",
            EXIT_FAILED,
        )
    except (FloatingPointError, WorkerLostError) as error:
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
