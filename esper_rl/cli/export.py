"""``esper-rl export``: write a policy as a program of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a policy as a program of its own"
DESCRIPTION = (
    "Write the policy of a run as a program that needs PyTorch or an ONNX runtime only: it takes "
    "observation, indices, masks and state, and gives actions, log-probabilities and the next "
    "state, for any number of rows."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="FILE.pt2 or FILE.onnx"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="draw actions; default: take the likeliest ones"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the program."""
    from esper_rl.export import export_policy

    export_policy(arguments.run, arguments.output, greedy=not arguments.sampled)
    print(f"The policy is in {arguments.output}")
