"""``esper-rl evaluate``: play a trained policy beside the baselines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esper_rl.cli.parsing import JSON_HELP, number_of_episodes
from esper_rl.evaluation import EVALUATION_SEED, OPEN_LOOP, evaluate_run, shuffled
from esper_rl.evaluation.episodes import Evaluation, without_nan
from esper_rl.report.tables import format_evaluations
from esper_rl.runs import RunFolder
from esper_rl.terminal import terminal_width
from esper_rl.training.loading import read_config

HELP = "play a trained policy beside the baselines"
DESCRIPTION = (
    "Play the policy of a run, greedy and sampled, also with its action feedback hidden, the "
    "baselines wait, random, fixed-schedule (conv_heavy at slot 0 as early as possible) and "
    "heuristic, and the best plan where it is known, on the same episodes. Prints a table; the "
    "run's evaluation.json keeps all evaluations, the fullest one first, which compare and report "
    "read."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training run")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="play in another world than the run's, such as task=digits_full, with another "
        "discount of returns (ppo.gamma=1), or device=cuda",
    )
    parser.add_argument(
        "--episodes",
        type=number_of_episodes,
        default=64,
        help="episodes of each policy (default %(default)s)",
    )
    parser.add_argument(
        "--open-loop",
        action="store_true",
        help="also play the greedy policy's actions of each host on another one",
    )
    parser.add_argument(
        "--shuffle",
        action="append",
        default=[],
        metavar="COLUMNS",
        help="also let the greedy policy see these columns of another host, such as "
        "accuracy_norm,loss_norm or 'slot*_alpha'; '*' for all; may be said again",
    )
    parser.add_argument(
        "--video",
        metavar="FILE",
        type=Path,
        help="write the greedy policy's first episode, too, as FILE.gif or FILE.mp4",
    )
    parser.add_argument(
        "--save-network",
        metavar="FILE",
        type=Path,
        help="write the best network that the greedy policy grows, too: FILE.pt2, which needs "
        "PyTorch only, its weights and what was grown when beside it",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=EVALUATION_SEED,
        help="of the episodes (default %(default)s)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="a JSON file to write instead of the run's evaluation.json, this evaluation only",
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def run(arguments: argparse.Namespace) -> None:
    """Play the run as the words say."""
    if arguments.video is not None:
        from esper_rl.report.video import check_video, record_episode  # loads Matplotlib

        check_video(arguments.video)
    if arguments.save_network is not None:
        from esper_rl.evaluation.best_network import check_network_file, save_best_network

        check_network_file(arguments.save_network)
    controls = [OPEN_LOOP] if arguments.open_loop else []
    if arguments.shuffle:
        slots = read_config(RunFolder.open(arguments.run), arguments.settings).env.num_slots
        controls += [shuffled(columns.split(","), slots) for columns in arguments.shuffle]
    print_evaluation(
        arguments.run,
        arguments.episodes,
        as_json=arguments.json,
        controls=controls,
        seed=arguments.seed,
        settings=arguments.settings,
        output=arguments.output,
    )
    out = sys.stderr if arguments.json else sys.stdout
    if arguments.video is not None:
        record_episode(arguments.run, arguments.video)
        print(f"The first episode of the greedy policy is in {arguments.video}", file=out)
    if arguments.save_network is not None:
        best = save_best_network(
            arguments.run,
            arguments.save_network,
            arguments.episodes,
            seed=arguments.seed,
            settings=arguments.settings,
        )
        print(
            f"The best network, {best['accuracy']:.1f} % with {best['parameters']:,} parameters, "
            f"is in {arguments.save_network}",
            file=out,
        )


def print_evaluation(run: Path, episodes: int, as_json: bool = False, **options: Any) -> None:
    played = evaluate_run(run, episodes, **options)
    if as_json:
        summaries = {name: evaluation.summary() for name, evaluation in played.items()}
        print(json.dumps(without_nan({"run": str(run), "policies": summaries}), indent=2))
    else:
        print_table(played, episodes)


def print_table(played: Mapping[str, Evaluation], episodes: int) -> None:
    summaries = {name: evaluation.summary() for name, evaluation in played.items()}
    print(format_evaluations(summaries, episodes, terminal_width()))
