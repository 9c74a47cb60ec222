"""The best network of an evaluation, taken home as a program of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import set_exploration_type, step_mdp
from tqdm import tqdm

from envs.actions import Op
from envs.networks.growing import GrowingNetwork
from esper_rl.errors import ConfigError, check_folder_of, config_errors
from esper_rl.evaluation.arena import EVALUATION_SEED, EXPLORATION, Arena, Player
from esper_rl.evaluation.players import GREEDY
from esper_rl.runs.atomic_write import write_atomically


def check_network_file(path: str | Path) -> None:
    """Refuse a file that a network can't be written to.

    Raises:
        ConfigError: if it has another ending than .pt2, or its folder isn't there.
    """
    if Path(path).suffix != ".pt2":
        raise ConfigError(f"a network's file must end in .pt2, got {str(path)!r}")
    check_folder_of("network", path)


def save_best_network(
    run: str | Path,
    path: str | Path,
    episodes: int = 64,
    *,
    seed: int = EVALUATION_SEED,
    settings: Sequence[str] = (),
    player: Player = GREEDY,
) -> dict[str, Any]:
    """Play episodes, and write the network that ends as the most accurate one.

    Three files: ``path``, a program that needs PyTorch only (``torch.export.load(path).module()``)
    and takes examples as the task's data have them, any number of them; beside it ``.pt``, its
    weights as a state dictionary; and ``.json``, what is returned.

    Args:
        run: folder of a training run.
        path: FILE.pt2.
        episodes, seed, settings: as for :class:`~esper_rl.evaluation.Arena`.
        player: who plays.

    Returns:
        ``task``; ``accuracy``, of its last validation in percent; ``parameters``, their number;
        and ``grown``: ``epoch``, ``op``, ``slot`` and ``blueprint`` of each op that did something.

    Raises:
        ConfigError: see :func:`check_network_file`; also for a task without networks, or whose
            networks aren't made of modules.
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
    """
    path = Path(path)
    check_network_file(path)
    arena = Arena(run, episodes, seed=seed, settings=settings)
    examples = getattr(getattr(arena.world.task, "validation", None), "inputs", None)
    if examples is None:
        raise ConfigError(f"task {arena.config.env.task!r} must have data to take a network home")
    network, accuracy, grown = _play(arena, player)
    plain = network.freeze().eval()
    numbers = ({0: torch.export.Dim("examples")},)
    program = torch.export.export(plain, (examples[:2].cpu(),), dynamic_shapes=numbers)
    described = {
        "task": arena.config.env.task,
        "accuracy": accuracy,
        "parameters": sum(weight.numel() for weight in plain.parameters()),
        "grown": grown,
    }
    torch.export.save(program, exported := io.BytesIO())
    torch.save(plain.state_dict(), weights := io.BytesIO())
    write_atomically(path, exported.getvalue())
    write_atomically(path.with_suffix(".pt"), weights.getvalue())
    text = json.dumps(described, indent=2) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    return described


@torch.no_grad()
def _play(arena: Arena, player: Player) -> tuple[GrowingNetwork, float, list[dict[str, Any]]]:
    """The best network as its episode ended, its accuracy, and what was done to it."""
    policy, env = arena.enter(player), arena.world
    best, network, epochs, playing = -1.0, None, [], torch.ones(arena.episodes, dtype=torch.bool)
    with set_exploration_type(EXPLORATION[player.mode]), config_errors():
        state = env.reset()
        for _ in tqdm(
            range(env.max_epochs), "networks", unit="epoch", leave=False, delay=5, disable=None
        ):
            step = env.step(policy(state))
            after = step["next"].cpu()
            epochs.append((step["action"].cpu(), after["last_action_success"].squeeze(-1)))
            ended = after["done"].squeeze(-1) & playing
            scores = torch.where(ended, after["metrics", "val_accuracy"].squeeze(-1), -1.0)
            if scores.max() > best:
                best, row = float(scores.max()), int(scores.argmax())
                network = env.network(row)
                grown = _describe(epochs, row, env.population.blueprints)
            playing &= ~ended
            state = env.maybe_reset(step_mdp(step))
    assert network is not None  # every episode ends
    return network, best, grown


def _describe(
    epochs: Sequence[tuple[TensorDictBase, Tensor]], row: int, blueprints: Sequence[str]
) -> list[dict[str, Any]]:
    """The ops of a row that did something."""
    grown = []
    for epoch, (action, success) in enumerate(epochs, 1):
        op = Op(int(action["op"][row]))
        if success[row] and op is not Op.WAIT:
            did = {"epoch": epoch, "op": op.name, "slot": int(action["slot"][row])}
            if op is Op.GERMINATE:
                did["blueprint"] = blueprints[int(action["blueprint"][row])]
            grown.append(did)
    return grown
