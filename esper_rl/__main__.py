"""The command ``esper-rl``, also ``python -m esper_rl``."""

import os
import signal
import sys


def main() -> int:
    """Run what the command line says; Ctrl-C ends it without a trace, also while PyTorch loads."""
    usual = signal.default_int_handler
    noticed = signal.getsignal(signal.SIGINT) is usual  # a shell may have it ignored
    if noticed:
        signal.signal(signal.SIGINT, _leave)
    from esper_rl import cli

    if noticed:
        signal.signal(signal.SIGINT, usual)
    return cli.main()


def _leave(number: int, frame: object) -> None:
    """Nothing has begun that would have to end: libraries that load may not end well."""
    os.write(2, b"esper-rl: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
