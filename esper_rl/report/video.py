"""An episode as a film."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imageio
import torch
from tensordict import TensorDictBase
from torchrl.envs.utils import set_exploration_type
from tqdm import tqdm

from envs.rendering import Picture, draw_network
from esper_rl.errors import ConfigError
from esper_rl.evaluation import GREEDY, Arena, Mode, Player
from esper_rl.evaluation.arena import EXPLORATION
from esper_rl.runs.outputs import check_output

FRAMES_PER_SECOND = 5
KINDS = (".gif", ".mp4")
"""Endings of files that can be written."""


def check_video(path: str | Path) -> None:
    """Refuse a film that can't be written, before it is made.

    Raises:
        ConfigError: see :func:`~esper_rl.runs.outputs.check_output`; also if the encoder of MP4
            isn't installed.
    """
    path = Path(path)
    check_output("the video", path, *KINDS)
    if path.suffix.lower() == ".mp4":
        try:
            import imageio_ffmpeg  # noqa: F401
        except ImportError:
            raise ConfigError(
                "MP4 needs an encoder: pip install 'esper-rl[video]', or write a .gif"
            ) from None


def record_episode(run: str | Path, path: str | Path, player: Player = GREEDY) -> None:
    """Film the first of the episodes that an evaluation plays, one frame an epoch.

    Args:
        run: folder of a training run.
        path: GIF or MP4.
        player: who plays.

    Raises:
        ConfigError: see :func:`check_video`.
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
    """
    check_video(path)
    write_frames(path, play_frames(run, player))


def write_frames(path: str | Path, frames: Sequence[Picture]) -> None:
    """Write a GIF or an MP4 of them, 5 a second."""
    pictures: list[Any] = [*frames]
    if Path(path).suffix.lower() == ".gif":
        imageio.mimsave(path, pictures, duration=1000 / FRAMES_PER_SECOND, loop=0)
    else:
        imageio.mimsave(path, pictures, fps=FRAMES_PER_SECOND, macro_block_size=8)


def play_frames(run: str | Path, player: Player) -> list[Picture]:
    """Pictures of a player's first episode in a run's world."""
    arena = Arena(run, episodes=1)
    return draw_episode(arena.enter(player), arena.world, player.mode)


@torch.no_grad()
def draw_episode(
    policy: Callable[[TensorDictBase], TensorDictBase], env: Any, mode: Mode = "sampled"
) -> list[Picture]:
    """Pictures of an episode, from its reset to its end.

    Args:
        policy: reads the world's TensorDict and writes ``("action", head)``.
        env: a :class:`envs.MorphogenesisEnv` of one row, with the transforms that the policy needs.
        mode: how actions are taken.
    """
    epochs = env.max_epochs
    draw = partial(draw_network, blueprints=env.population.blueprints)
    with set_exploration_type(EXPLORATION[mode]):
        state = env.reset()
        accuracies = [state["metrics", "val_accuracy"].item()]
        frames = [draw(state[0], accuracies, epochs)]
        for _ in tqdm(range(epochs), "video", unit="epoch", leave=False, delay=5, disable=None):
            state = policy(state)
            action = {head: int(chosen) for head, chosen in state["action"].items()}
            step, state = env.step_and_maybe_reset(state)
            shown = step["next"]
            accuracies.append(shown["metrics", "val_accuracy"].item())
            frames.append(draw(shown[0], accuracies, epochs, action))
    return frames
