"""Playing whole episodes with a policy, and the table of a run beside the baselines."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import cloudpickle
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Compose, EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from envs.actions import Stage
from envs.registration import adopt_tasks, make_task, registered_tasks
from esper_rl.errors import ConfigError, check_choice, check_folder_of
from esper_rl.growing.baselines import (
    FixedSchedulePolicy,
    HeuristicPolicy,
    PlanPolicy,
    RandomPolicy,
    WaitPolicy,
)
from esper_rl.growing.controls import Recorder, Replay, shuffled
from esper_rl.growing.feedback import HIDDEN, WithoutFeedback
from esper_rl.processes import require_guard
from esper_rl.report.curves import plot_learning_curve
from esper_rl.report.episodes import Evaluation, as_json, as_text, keep_longest
from esper_rl.runs import RunFolder
from esper_rl.runs.files import write_whole
from esper_rl.training.config import TrainConfig
from esper_rl.training.environment import make_env
from esper_rl.training.loading import load_policy, read_config

_LOGGER = logging.getLogger(__name__)

EVALUATION_SEED = 20_000_003
"""Episodes of an evaluation are the same for every policy and differ from those of training."""

Mode = Literal["sampled", "greedy"]

EXPLORATION: Mapping[Mode, ExplorationType] = {
    "sampled": ExplorationType.RANDOM,
    "greedy": ExplorationType.DETERMINISTIC,
}
"""TorchRL's name for the way in which a mode takes actions."""


@torch.no_grad()
def evaluate(
    policy: Callable[[TensorDictBase], TensorDictBase],
    env: EnvBase,
    episodes: int,
    mode: Mode = "sampled",
    gamma: float = 1.0,
) -> Evaluation:
    """Play whole episodes, one on each row of the world.

    The policy starts from whatever state the world's random numbers are in: call
    ``env.set_seed`` and ``torch.manual_seed`` before, to play the same episodes again.

    Args:
        policy: reads the world's TensorDict and writes ``("action", head)``.
        env: a world with batch size ``[E]``, with the transforms that the policy needs.
        episodes: E. It has to be the world's number of rows.
        mode: ``"sampled"`` draws actions, ``"greedy"`` takes the most probable one of each head.
        gamma: discount of the returns.

    Raises:
        ValueError: when ``episodes`` isn't the number of rows, or for an unknown mode.
    """
    if env.batch_size != torch.Size([episodes]):
        raise ValueError(
            f"episodes must be the number of rows of env, {list(env.batch_size)}, got {episodes}"
        )
    check_choice("mode", mode, tuple(EXPLORATION))

    returns = torch.zeros(episodes, device=env.device)
    discount = 1.0
    playing = torch.ones(episodes, dtype=torch.bool, device=env.device)
    results = {name: torch.zeros_like(returns) for name in _FINAL}
    with set_exploration_type(EXPLORATION[mode]):
        state = env.reset()
        while playing.any():
            # A row whose episode is over starts another one, which doesn't count.
            step, state = env.step_and_maybe_reset(policy(state))
            outcome = step["next"]
            returns += discount * outcome["reward"].squeeze(-1) * playing
            discount *= gamma
            ending = outcome["done"].squeeze(-1) & playing
            for name, measure in _FINAL.items():
                results[name][ending] = measure(outcome)[ending]
            playing &= ~ending
    return Evaluation(returns=returns.cpu(), **{key: value.cpu() for key, value in results.items()})


_FINAL: Mapping[str, Callable[[TensorDictBase], Tensor]] = {
    "final_accuracy": lambda outcome: outcome["metrics", "val_accuracy"].squeeze(-1).float(),
    "seed_params": lambda outcome: outcome["metrics", "seed_params"].squeeze(-1).float(),
    "fossilized": lambda outcome: (outcome["metrics", "stage"] == Stage.FOSSILIZED).sum(-1).float(),
}


BASELINES: Mapping[str, Callable[[], TensorDictModuleBase]] = {
    "wait": WaitPolicy,
    "random": RandomPolicy,
    "fixed-schedule": FixedSchedulePolicy,
    "heuristic": HeuristicPolicy,
}
"""Players without training, by name."""

PLAYERS: tuple[str, ...] = (
    "greedy",
    "sampled",
    *(f"greedy, feedback {name}" for name in HIDDEN),
    *BASELINES,
)
"""Players of :func:`evaluate_run`: the policy of the run, also with its action feedback hidden (a
large drop in return means that it has learned a shortcut), then the baselines."""

BEST_PLAN = "best plan"
"""One more player, where the task's best plan is known."""

OPEN_LOOP = "greedy, actions of another host"
"""The actions that the greedy policy takes on one host, played on another one."""

SHUFFLED = "greedy, shuffled: "
"""The beginning of a player's name whose policy sees some columns of another host, those that
the rest of the name says (:func:`esper_rl.growing.controls.shuffled`)."""


_DRAWN = ("wait", "fixed-schedule", "heuristic", BEST_PLAN)
"""Players beside which a policy's learning is drawn."""


def players_of(config: TrainConfig) -> tuple[str, ...]:
    """Players in a run's world: :data:`PLAYERS`, and the best plan where it is known.

    It is known for a task's own length of episodes and number of slots.
    """
    task, world = make_task(config.env.task), config.env
    as_usual = world.max_epochs in (None, task.max_epochs) and world.num_slots == task.num_slots
    return (*PLAYERS, BEST_PLAN) if task.best_plan is not None and as_usual else PLAYERS


def evaluate_run(
    run: str | Path,
    episodes: int = 64,
    gamma: float | None = None,
    controls: Sequence[str] = (),
    *,
    seed: int = EVALUATION_SEED,
    settings: Sequence[str] = (),
    output: str | Path | None = None,
) -> dict[str, Evaluation]:
    """Play the policy of a run and the baselines on the same episodes; writes evaluation.json.

    Played in the run's own world, without ``settings``, the file is the run's and baselines are
    drawn into its learning curve, unless they are discounted otherwise. Runs in as many processes
    as collected for the training run.

    Args:
        run: folder of a training run.
        episodes: episodes of each policy, all at once.
        gamma: discount of the returns; default: that of the run, whose sum the policy maximises
            and in which the reward's potentials cancel.
        controls: more players: :data:`OPEN_LOOP`, or names that begin with :data:`SHUFFLED`.
        seed: of the episodes.
        settings: another world or device than the run's, such as ``["task=digits_full"]``;
            see :func:`esper_rl.training.composition.play_otherwise`.
        output: another file to write.

    Returns:
        An :class:`Evaluation` for each of :func:`players_of` and for the controls.

    Raises:
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
        ConfigError: for a control that isn't one, columns that don't exist, settings that aren't
            allowed, or a script without ``if __name__ == "__main__":`` that starts workers.
    """
    folder = RunFolder.open(run)
    config = read_config(folder, settings)
    if output is not None:
        check_folder_of("output", output)
    if config.workers > 1:
        require_guard()
    if settings:  # before another world is made, whose networks may have to be compiled
        own, task = (make_task(each.env.task) for each in (read_config(folder), config))
        if own.topology != task.topology:
            raise ConfigError(
                f"the run's policy knows blueprints of {own.topology} hosts, {config.env.task} has "
                f"{task.topology} hosts"
            )
    # What is wrong with the run is said here, not by a worker.
    load_policy(folder.path, make_env(config, num_envs=1, seed=seed))
    for control in controls:
        _check_control(control, config.env.num_slots)
    players = (*players_of(config), *controls)
    gamma = config.ppo.gamma if gamma is None else gamma
    play = partial(
        play_run, folder.path, episodes=episodes, gamma=gamma, seed=seed, settings=settings
    )
    with ExitStack() as stack:
        played: Iterable[Evaluation] = map(play, players)
        if config.workers > 1:
            tasks = cloudpickle.dumps(registered_tasks())
            pool = get_context("spawn").Pool(config.workers, _start_worker, (tasks,))
            played = stack.enter_context(pool).imap(play, players)
        bar = tqdm(
            played, "evaluate", len(players), unit="policy", leave=False, delay=5, disable=None
        )
        results = dict(zip(players, bar, strict=True))
    content = as_json(results, seed=seed, gamma=gamma, settings=settings)
    if output is not None:
        write_whole(Path(output), as_text(content))
    elif not settings:
        keep_longest(folder.evaluation, content)
    if not settings and gamma == config.ppo.gamma:
        summaries = content["policies"]
        drawn = {
            name: {
                "return": summaries[name]["returns"]["mean"],
                "final_accuracy": summaries[name]["final_accuracy"]["mean"],
            }
            for name in _DRAWN
            if name in summaries
        }
        plot_learning_curve(folder.metrics, folder.learning_curve, drawn)
    return results


def _check_control(control: str, num_slots: int) -> None:
    if control.startswith(SHUFFLED):
        shuffled(control.removeprefix(SHUFFLED), num_slots)
    elif control != OPEN_LOOP:
        raise ConfigError(
            f"controls must be {OPEN_LOOP!r} or begin with {SHUFFLED!r}, got {control!r}"
        )


def _start_worker(tasks: bytes) -> None:
    adopt_tasks(cloudpickle.loads(tasks))
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the process that started it ends it


def play_run(
    run: str | Path,
    player: str,
    episodes: int,
    gamma: float | None = None,
    *,
    seed: int = EVALUATION_SEED,
    settings: Sequence[str] = (),
) -> Evaluation:
    """Play a policy of a run, or a baseline on its task; on the same episodes for all of them.

    Args:
        run: folder of a training run.
        player: one of :data:`PLAYERS`, :data:`BEST_PLAN`, or a control, see
            :func:`evaluate_run`.
        episodes: how many, all at once.
        gamma: discount of the returns; default: that of the run.
        seed: of the episodes.
        settings: see :func:`evaluate_run`.

    Raises:
        ValueError: for an unknown player, or the best plan of a task that has none.
        FileNotFoundError: when there is no such run.
        CheckpointError: when its policy can't be loaded.
    """
    if gamma is None:
        gamma = read_config(RunFolder.open(run)).ppo.gamma
    make = partial(make_player, run, episodes=episodes, seed=seed, settings=settings)
    if player == OPEN_LOOP:
        policy, env, mode = make("greedy")
        recorder = Recorder(policy)
        evaluate(recorder, env, episodes, mode)
        _, env, _ = make("wait")
        return evaluate(Replay(recorder.actions), env, episodes, gamma=gamma)
    policy, env, mode = make(player)
    return evaluate(policy, env, episodes, mode, gamma)


def make_player(
    run: str | Path,
    player: str,
    episodes: int,
    *,
    seed: int = EVALUATION_SEED,
    settings: Sequence[str] = (),
) -> tuple[TensorDictModuleBase, EnvBase, Mode]:
    """Make a policy or a baseline, a world of so many rows for it, and how it takes its actions.

    Everything random is seeded, so each call gives the same episodes, if nothing else is drawn
    before they are played.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: see :func:`play_run`.
    """
    config = read_config(RunFolder.open(run), settings)
    if not player.startswith(SHUFFLED):
        check_choice("player", player, players_of(config))
    env: EnvBase = make_env(config, num_envs=episodes, seed=seed)
    mode: Mode = "sampled"
    policy: TensorDictModuleBase
    if player in BASELINES:
        policy = BASELINES[player]()
    elif player == BEST_PLAN:
        policy = PlanPolicy(env.task.best_plan, env.max_epochs, env.num_slots)
    else:
        actor_critic = load_policy(run, env)
        env = TransformedEnv(env, Compose(*actor_critic.transforms()))
        mode = "sampled" if player == "sampled" else "greedy"
        hide = HIDDEN.get(player.rpartition(" ")[2])
        if player.startswith(SHUFFLED):
            hide = shuffled(player.removeprefix(SHUFFLED), config.env.num_slots)
        actor = actor_critic.actor
        policy = actor if hide is None else WithoutFeedback(actor, hide)
    torch.manual_seed(seed)  # after loading, which draws the first weights
    return policy, env, mode
