"""The best network of an evaluation, taken home as a program of its own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import set_exploration_type, step_mdp
from tqdm import tqdm

from envs.actions import Op
from envs.networks.growing import GrowingNetwork
from envs.tasks import LoopTask, Task
from esper_rl.errors import ConfigError, config_errors
from esper_rl.evaluation.arena import EVALUATION_SEED, EXPLORATION, Arena, Mode, Player
from esper_rl.evaluation.players import GREEDY
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.outputs import check_output


def check_network_file(path: str | Path) -> None:
    """Refuse a file that a network can't be written to.

    Raises:
        ConfigError: see :func:`~esper_rl.runs.outputs.check_output`.
    """
    check_output("the network's file", path, ".pt2", beside=[".pt", ".json", ".html"])


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
    check_network_file(path)
    arena = Arena(run, episodes, seed=seed, settings=settings)
    grown = play_best(arena.enter(player), arena.world, player.mode)
    return save_network(grown, path, arena.world.task)


@dataclass(frozen=True)
class GrownNetwork:
    """The network that ended as the most accurate one of some episodes.

    Attributes:
        network: as its episode ended.
        accuracy: of its last validation, in percent.
        played: its episode ``[T]``: actions, and under ``next`` all that the world showed.
        blueprints: names of the choices of head ``blueprint``.
    """

    network: GrowingNetwork
    accuracy: float
    played: TensorDictBase
    blueprints: Sequence[str]

    def ops(self) -> list[dict[str, Any]]:
        """``epoch``, ``op``, ``slot`` and ``blueprint`` of each op that did something."""
        done = []
        success = self.played["next", "last_action_success"].squeeze(-1)
        for epoch, action in enumerate(self.played["action"].unbind(0)):
            op = Op(int(action["op"]))
            if success[epoch] and op is not Op.WAIT:
                did = {"epoch": epoch + 1, "op": op.name, "slot": int(action["slot"])}
                if op is Op.GERMINATE:
                    did["blueprint"] = self.blueprints[int(action["blueprint"])]
                done.append(did)
        return done


def example_of(task: Task) -> Tensor:
    """Two examples as the task's networks take them.

    Raises:
        ConfigError: for a task without networks.
    """
    if isinstance(task, LoopTask):
        return torch.cat([task.example, task.example])
    inputs = getattr(getattr(task, "validation", None), "inputs", None)
    if inputs is None:
        raise ConfigError(f"task {task.name!r} must have data to take a network home")
    return inputs[:2].cpu()


@torch.no_grad()
def play_best(
    policy: Callable[[TensorDictBase], TensorDictBase], env: EnvBase, mode: Mode
) -> GrownNetwork:
    """Play an episode on each row of a world, from its next reset on; keep the best network."""
    example_of(env.task)  # fails before anything is played
    rows = env.batch_size.numel()
    best, network, row, length = -1.0, None, 0, 0
    steps, playing = [], torch.ones(rows, dtype=torch.bool)
    with set_exploration_type(EXPLORATION[mode]), config_errors():
        state = env.reset()
        for epoch in tqdm(
            range(env.max_epochs), "networks", unit="epoch", leave=False, delay=5, disable=None
        ):
            step = env.step(policy(state))
            steps.append(step.select("action", "metrics", "next").cpu())
            after = steps[-1]["next"]
            ended = after["done"].squeeze(-1) & playing
            scores = torch.where(ended, after["metrics", "val_accuracy"].squeeze(-1), -1.0)
            if scores.max() > best:
                best, row, length = float(scores.max()), int(scores.argmax()), epoch + 1
                network = env.network(row)
            playing &= ~ended
            state = env.maybe_reset(step_mdp(step))
    assert network is not None  # every episode ends
    played = torch.stack([step[row] for step in steps[:length]])
    return GrownNetwork(network, best, played, env.population.blueprints)


def save_network(grown: GrownNetwork, path: str | Path, task: Task) -> dict[str, Any]:
    """Write a grown network's three files, see :func:`save_best_network`."""
    path, plain = Path(path), grown.network.freeze().eval()
    numbers = ({0: torch.export.Dim("examples")},)
    program = torch.export.export(plain, (example_of(task),), dynamic_shapes=numbers)
    described = {
        "task": task.name,
        "accuracy": grown.accuracy,
        "parameters": sum(weight.numel() for weight in plain.parameters()),
        "grown": grown.ops(),
    }
    torch.export.save(program, exported := io.BytesIO())
    torch.save(plain.state_dict(), weights := io.BytesIO())
    write_atomically(path, exported.getvalue())
    write_atomically(path.with_suffix(".pt"), weights.getvalue())
    text = json.dumps(described, indent=2) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    return described
