"""Traces of episodes: what became of a network in one episode, slot by slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from tensordict import TensorDictBase
from torchrl.envs.utils import set_exploration_type

from envs.actions import STAGES, Op, Stage
from esper_rl.evaluation import Arena, Player
from esper_rl.evaluation.arena import EXPLORATION
from esper_rl.figures import as_png, new_figure

_EMPTY = (Stage.UNKNOWN, Stage.DORMANT)

_MARKS = {
    Op.GERMINATE: "G",
    Op.SET_ALPHA_TARGET: "α",
    Op.PRUNE: "P",
    Op.FOSSILIZE: "F",
    Op.ADVANCE: "A",
}
"""A letter for each op that does something."""

LEGEND = (
    "A lane is a slot, the input's first; its colour is the stage of the seed in it, the line how "
    "far it is mixed in (α, by the scale at the right), and below it stands what was planted. "
    "Letters above are the agent's ops: G germinate, A advance, α set alpha target, F fossilize, "
    "P prune; grey where it could not be done."
)
"""Explains :func:`draw_trace` to people."""


@dataclass(frozen=True)
class EpisodeTrace:
    """One episode of T epochs on a host with S slots.

    Attributes:
        earned: discounted return.
        accuracy: in percent, ``[T + 1]``, from the reset on.
        stage: after each epoch, ``[T, S]``, a :class:`~envs.actions.Stage`.
        alpha: ``[T, S]``, how far a seed is mixed in.
        blueprint: ``[T, S]``, its name, empty where there is none.
        op, slot: ``[T]``, what was chosen.
        success: ``[T]``, whether it could be done.
    """

    earned: float
    accuracy: np.ndarray
    stage: np.ndarray
    alpha: np.ndarray
    blueprint: np.ndarray
    op: np.ndarray
    slot: np.ndarray
    success: np.ndarray

    def describe(self) -> str:
        """A sentence about each op that did something, for those who can't see the picture."""
        sentences = []
        for epoch in np.flatnonzero((self.op != Op.WAIT) & self.success):
            op, slot = Op(self.op[epoch]), self.slot[epoch]
            what = f" {self.blueprint[epoch, slot]}" if op is Op.GERMINATE else ""
            sentences.append(f"{epoch + 1}: {op.name}{what} in slot {slot}")
        return "; ".join(sentences) or "it only waits"


@torch.no_grad()
def trace_episodes(
    run: str | Path, episodes: int, gamma: float, player: Player
) -> list[EpisodeTrace]:
    """Play the first episodes of an evaluation.

    Args:
        run: folder of a training run.
        episodes: how many, all at once.
        gamma: discount of the returns.
        player: who plays.

    Returns:
        The traces, the one that earned most first.
    """
    arena = Arena(run, episodes)
    policy, env = arena.enter(player), arena.world
    with set_exploration_type(EXPLORATION[player.mode]):
        played = env.rollout(env.max_epochs, policy, break_when_any_done=False)  # [E, T]
    traces = [trace_of(row, env.population.blueprints, gamma) for row in played.cpu().unbind(0)]
    return sorted(traces, key=lambda trace: -trace.earned)


def trace_of(played: TensorDictBase, blueprints: Sequence[str], gamma: float) -> EpisodeTrace:
    """The trace of an episode.

    Args:
        played: ``[T]``: actions, metrics, and under ``next`` all that the world showed.
        blueprints: names of the choices of head ``blueprint``.
        gamma: discount of the return.
    """
    after, metrics, names = played["next"], played["next", "metrics"], np.array([*blueprints, ""])
    discounts = gamma ** torch.arange(len(played))
    accuracy = [played["metrics", "val_accuracy"][:1], metrics["val_accuracy"]]
    return EpisodeTrace(
        earned=float((after["reward"].squeeze(-1) * discounts).sum()),
        accuracy=torch.cat(accuracy).squeeze(-1).numpy(),
        stage=metrics["stage"].numpy(),
        alpha=metrics["alpha"].numpy(),
        blueprint=names[after["blueprint_indices"].numpy()],
        op=played["action", "op"].numpy(),
        slot=played["action", "slot"].numpy(),
        success=after["last_action_success"].squeeze(-1).numpy(),
    )


def draw_trace(trace: EpisodeTrace) -> bytes:
    """PNG: accuracy above, a lane for each slot below, the input's first.

    Colours are stages, the line is α, letters mark ops: G germinate, A advance, α set alpha
    target, F fossilize, P prune; in grey where it could not be done.
    """
    epochs, slots = trace.stage.shape
    figure = new_figure(9, 2.4 + 0.9 * slots)
    axes = figure.subplots(1 + slots, 1, sharex=True, height_ratios=[2.2, *[1] * slots])
    axes[0].plot(range(epochs + 1), trace.accuracy, color="#000000", linewidth=1.5)
    axes[0].set_ylabel("accuracy (%)")
    axes[0].grid(alpha=0.3)
    for slot, lane in enumerate(axes[1:]):
        _draw_lane(lane, trace, slot)
        lane.set_ylabel(f"slot {slot}", rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(0, epochs)
    shown = [stage for stage in Stage if stage not in _EMPTY and (trace.stage == stage).any()]
    handles = [Patch(color=STAGES[stage].colour, label=stage.name.lower()) for stage in shown]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=8, frameon=False, fontsize="small"
        )
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return as_png(figure)


def _draw_lane(lane: Axes, trace: EpisodeTrace, slot: int) -> None:
    stage = trace.stage[:, slot]
    for value in np.unique(stage):
        if value not in _EMPTY:
            spans = [(float(epoch), 1.0) for epoch in np.flatnonzero(stage == value)]
            lane.broken_barh(spans, (0, 1), color=STAGES[Stage(value)].colour, linewidth=0)
    live = np.append(~np.isin(stage, _EMPTY), False)
    alpha = np.where(live[:-1], trace.alpha[:, slot], np.nan)
    lane.step(range(1, len(stage) + 1), alpha, color="#000000", linewidth=1.2)
    names = trace.blueprint[:, slot]
    before = ""
    for epoch, name in enumerate(names):
        if name and name != before:
            lane.text(epoch, -0.08, name, va="top", fontsize="small", clip_on=True)
        before = name
    for at in np.flatnonzero((trace.op != Op.WAIT) & (trace.slot == slot)):
        colour = "#000000" if trace.success[at] else "#999999"
        mark = _MARKS[Op(trace.op[at])]
        lane.text(at + 0.5, 1.05, mark, ha="center", color=colour, fontsize="x-small")
    lane.set_ylim(-0.5, 1.05)
    lane.yaxis.tick_right()
    lane.set_yticks([0, 1], ["α 0", "1"], fontsize="x-small")
