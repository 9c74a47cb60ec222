"""The evaluation of a run: its policy beside the players without training."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cloudpickle
import torch
from tqdm import tqdm

from envs.registration import register_tasks, registered_tasks
from esper_rl.evaluation.arena import EVALUATION_SEED, Arena, Player
from esper_rl.evaluation.episodes import Evaluation, Summary, as_json, as_text, keep
from esper_rl.evaluation.players import (
    BEST_PLAN,
    FIXED_SCHEDULE,
    HEURISTIC,
    WAIT,
    players_of,
)
from esper_rl.processes import require_guard
from esper_rl.runs import RunFolder
from esper_rl.runs.atomic_write import write_atomically
from esper_rl.runs.learning_curve import plot_learning_curve
from esper_rl.runs.outputs import check_output

_DRAWN = [player.name for player in (WAIT, FIXED_SCHEDULE, HEURISTIC, BEST_PLAN)]
"""Players beside which a policy's learning is drawn."""


def evaluate_run(
    run: str | Path,
    episodes: int = 64,
    gamma: float | None = None,
    controls: Sequence[Player] = (),
    *,
    seed: int = EVALUATION_SEED,
    settings: Sequence[str] = (),
    output: str | Path | None = None,
) -> dict[str, Evaluation]:
    """Play the policy of a run and the baselines on the same episodes.

    The run's evaluation.json keeps all its evaluations, see
    :func:`~esper_rl.evaluation.episodes.keep`; baselines of the fullest one are drawn into the
    run's learning curve. Runs in as many processes as collected for the training run.

    Args:
        run: folder of a training run.
        episodes: episodes of each policy, all at once.
        gamma: discount of the returns; default: that of the run.
        controls: more players, such as :data:`OPEN_LOOP` and those of :func:`shuffled`.
        seed: of the episodes.
        settings: another world or device than the run's, such as ``["task=digits_full"]``;
            see :class:`Arena`.
        output: a file to write instead, with this evaluation only.

    Returns:
        By its name, an :class:`Evaluation` for each of :func:`players_of` and of the controls.

    Raises:
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
        ConfigError: for columns that don't exist, settings that aren't allowed, or a script
            without ``if __name__ == "__main__":`` that starts workers.
    """
    if output is not None:
        check_output("output", output, ".json")
    arena = Arena(run, episodes, seed=seed, settings=settings)  # or what is wrong with the run
    config, players = arena.config, [*players_of(arena.config), *controls]
    gamma = config.ppo.gamma if gamma is None else gamma
    if config.workers > 1:
        require_guard()
    with ExitStack() as stack:
        played: Iterable[Evaluation] = (arena.play(player, gamma) for player in players)
        if config.workers > 1:
            brought = cloudpickle.dumps((registered_tasks(), players))
            start = partial(Arena, run, episodes, seed=seed, settings=settings)
            pool = get_context("spawn").Pool(config.workers, _start_worker, (brought, start, gamma))
            played = stack.enter_context(pool).imap(_play, range(len(players)))
            pool.close()  # or its processes would be killed at the end, and leave semaphores
        bar = tqdm(
            played, "evaluate", len(players), unit="policy", leave=False, delay=5, disable=None
        )
        names = [player.name for player in players]
        results = dict(zip(names, bar, strict=True))
        if config.workers > 1:
            pool.join()
    hindered = [player.name for player in players if player.hinders]
    differs = [*settings, *([] if gamma == config.ppo.gamma else [f"ppo.gamma={gamma}"])]
    played_here = {
        "run": arena.folder.digest,
        "steps": arena.trained_steps,
        "seed": seed,
        "gamma": gamma,
        "settings": differs,
    }
    content = as_json(results, hindered, played_here)
    if output is not None:
        write_atomically(Path(output), as_text(content))
        return results
    fullest = keep(arena.folder.evaluation, content)
    if not fullest.get("settings"):
        _draw(arena.folder, fullest["policies"])
    return results


def _draw(folder: RunFolder, summaries: Mapping[str, Summary]) -> None:
    """Draw the means of the baselines into a run's learning curve."""
    drawn = {
        name: {
            "return": summaries[name]["returns"]["mean"],
            "final_accuracy": summaries[name]["final_accuracy"]["mean"],
        }
        for name in _DRAWN
        if name in summaries
    }
    plot_learning_curve(folder.metrics, folder.learning_curve, drawn)


_PLAY: Callable[[int], Evaluation]
"""In a worker: plays the player of that number."""


def _start_worker(brought: bytes, open_arena: Callable[[], Arena], gamma: float) -> None:
    global _PLAY
    tasks, players = cloudpickle.loads(brought)
    register_tasks(tasks)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the process that started it ends it
    arena = open_arena()
    _PLAY = lambda number: arena.play(players[number], gamma)  # noqa: E731


def _play(number: int) -> Evaluation:
    return _PLAY(number)
