"""``esper-rl grow``: grow networks on fresh hosts, and take the best one home."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from envs import MorphogenesisEnv
from esper_rl.cli.parsing import number_of_episodes
from esper_rl.config import compose_config, make_env
from esper_rl.errors import ConfigError, check_choice, check_integer, config_errors
from esper_rl.evaluation import EVALUATION_SEED, GREEDY, SAMPLED, Arena
from esper_rl.evaluation.best_network import (
    GrownNetwork,
    check_network_file,
    play_best,
    save_network,
)
from esper_rl.growing.baselines import HeuristicPolicy, RandomPolicy, SchedulePolicy, WaitPolicy
from esper_rl.runs.atomic_write import write_atomically

HELP = "grow networks on fresh hosts, and take the best one home"
DESCRIPTION = (
    "Let a policy grow networks on hosts that it hasn't seen, of its own task or another one, and "
    "write the most accurate of them: FILE.pt2, a program that needs PyTorch only, its weights "
    "(.pt), the ops that did something (.json), and a page that tells its story (.html)."
)

_BASELINES = {"heuristic": HeuristicPolicy, "wait": WaitPolicy, "random": RandomPolicy}
_SEED_OF_A_SCHEDULE = re.compile(r"(\w+)@(\d+)(?::(\d+))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "policy",
        metavar="RUN",
        help="folder of a training run; or heuristic, wait or random; or a schedule, such as "
        "conv_heavy@0,norm@2:10: blueprints, each with its slot and the epoch of planting",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="the world: task=NAME, keys of env and reward, device",
    )
    parser.add_argument(
        "--network",
        metavar="FILE.pt2",
        type=Path,
        default=Path("network.pt2"),
        help="where the network goes (default %(default)s)",
    )
    parser.add_argument(
        "--hosts",
        type=number_of_episodes,
        default=16,
        help="networks that are grown at once (default %(default)s)",
    )
    parser.add_argument("--sampled", action="store_true", help="let the run's policy draw actions")
    parser.add_argument(
        "--seed", type=int, default=EVALUATION_SEED, help="of the hosts (default %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Grow networks, and write the best one."""
    from esper_rl.report.growth_page import growth_page  # loads Matplotlib

    path = arguments.network
    check_network_file(path)
    grown, env = _grow(arguments)
    described = save_network(grown, path, env.task)
    page = growth_page(grown, described, arguments.policy, path.name)
    write_atomically(path.with_suffix(".html"), page.encode(errors="replace"))
    for did in described["grown"]:
        what = " ".join([did["op"], *filter(None, [did.get("blueprint")])])
        print(f"epoch {did['epoch']}: {what} in slot {did['slot']}")
    print(
        f"The best of {arguments.hosts} networks, {grown.accuracy:.1f} % with "
        f"{described['parameters']:,} parameters, is in {path}; its story is in "
        f"{path.with_suffix('.html')}"
    )


def _grow(arguments: argparse.Namespace) -> tuple[GrownNetwork, MorphogenesisEnv]:
    name, hosts, seed = arguments.policy, arguments.hosts, arguments.seed
    if name not in _BASELINES and "@" not in name:
        arena = Arena(name, hosts, seed=seed, settings=arguments.settings)
        player = SAMPLED if arguments.sampled else GREEDY
        return play_best(arena.enter(player), arena.world, player.mode), arena.world.base_env
    config = compose_config(arguments.settings)
    if config.reward.schedule:
        raise ConfigError("reward.schedule is for training; give the weights themselves")
    env = make_env(config, num_envs=hosts, seed=seed)
    torch.manual_seed(seed)
    policy = _BASELINES[name]() if name in _BASELINES else _schedule(name, env)
    return play_best(policy, env, "sampled"), env


def _schedule(text: str, env: MorphogenesisEnv) -> SchedulePolicy:
    """The policy that a schedule's text describes."""
    blueprints = torch.full((env.num_slots,), -1)
    epochs = torch.zeros_like(blueprints)
    names = env.population.blueprints
    for part in text.split(","):
        match = _SEED_OF_A_SCHEDULE.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"a schedule's parts must be BLUEPRINT@SLOT or BLUEPRINT@SLOT:EPOCH, got {part!r}"
            )
        blueprint, slot, epoch = match.groups(default="0")
        with config_errors(f"schedule {part!r}: "):
            check_choice("blueprint", blueprint, env.task.offered)
            last, end = len(blueprints) - 1, env.max_epochs - 1
            check_integer("slot", int(slot), least=0, most=last, what="last slot")
            check_integer("epoch", int(epoch), least=0, most=end, what="last epoch")
        blueprints[int(slot)], epochs[int(slot)] = names.index(blueprint), int(epoch)
    return SchedulePolicy(blueprints, epochs, env.max_epochs)
