"""Pictures of networks that grow: one at a glance, or many on a contact sheet.

Slots are drawn from the input on. Colour and word tell a seed's stage, the height of the fill its
α. Colours are those of Okabe and Ito and a red of Tol's, told apart however one sees colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from tensordict import TensorDictBase

from envs.actions import BLUEPRINTS, STAGES, Op, Stage

_DOTS = 100
_WIDTH, _HEIGHT = 640, 360
_CELL_WIDTH, _CELL_HEIGHT = 160, 100
_MOST_ACROSS = 8

Picture = np.ndarray
"""RGB, uint8 ``[height, width, 3]``."""


def draw_network(
    shown: TensorDictBase,
    accuracies: Sequence[float],
    max_epochs: int,
    action: Mapping[str, int] | None = None,
    *,
    blueprints: Sequence[str] = BLUEPRINTS,
) -> Picture:
    """Draw one network, 640 × 360.

    Args:
        shown: one row of a reset or a step of :class:`envs.MorphogenesisEnv`, without a batch size.
        accuracies: in percent, of the episode so far, from its reset on.
        max_epochs: of an episode.
        action: index by head, of the action that led here; None after a reset.
        blueprints: names by index, ``env.population.blueprints`` where hosts have some of their
            own.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> state = MorphogenesisEnv("scaffold", num_envs=2).reset()[0]
        >>> draw_network(state, [10.0], 150).shape
        (360, 640, 3)
    """
    figure = Figure(figsize=(_WIDTH / _DOTS, _HEIGHT / _DOTS), dpi=_DOTS)
    network = figure.add_axes((0.0, 0.44, 1.0, 0.56))
    _draw_slots(network, shown, blueprints)
    curve = figure.add_axes((0.085, 0.13, 0.5, 0.29))
    curve.plot(range(len(accuracies)), accuracies, color="#0072B2", linewidth=2)
    curve.plot(len(accuracies) - 1, accuracies[-1], "o", color="#0072B2", markersize=4)
    curve.set(xlim=(0, max_epochs), ylim=(0, 100))
    curve.set_xlabel("epoch", fontsize=9, labelpad=1)
    curve.set_ylabel("accuracy %", fontsize=9, labelpad=1)
    curve.tick_params(labelsize=8)
    curve.grid(alpha=0.3)
    for place, line in enumerate(_summary(shown, max_epochs, action, blueprints)):
        weight = "bold" if place == 0 else "normal"
        figure.text(0.62, 0.37 - 0.075 * place, line, fontsize=10, va="center", weight=weight)
    return _pixels(figure)


def draw_sheet(
    shown: TensorDictBase,
    accuracies: np.ndarray,
    max_epochs: int,
    *,
    blueprints: Sequence[str] = BLUEPRINTS,
) -> Picture:
    """Draw many networks, a cell of 160 × 100 for each, up to eight side by side.

    Args:
        shown: a reset or a step of :class:`envs.MorphogenesisEnv`, N rows.
        accuracies: in percent, ``[T, N]``, of the episodes so far; NaN before a row's own began.
        max_epochs: of an episode.
        blueprints: as for :func:`draw_network`.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> state = MorphogenesisEnv("scaffold", num_envs=64).reset()
        >>> draw_sheet(state, np.full((1, 64), 10.0), 150).shape
        (800, 1280, 3)
    """
    rows = shown.batch_size[0]
    across = min(rows, _MOST_ACROSS)
    down = -(-rows // across)
    size = (across * _CELL_WIDTH, down * _CELL_HEIGHT)
    figure = Figure(figsize=(size[0] / _DOTS, size[1] / _DOTS), dpi=_DOTS)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(down, 0))
    axes.axis("off")
    stages, alphas, _, planted = _slots(shown, blueprints)
    boxes, curves = [], []
    for row in range(rows):
        left, top = row % across, row // across
        boxes += [Rectangle((left, top), 1, 1, fill=False, edgecolor="#CCCCCC", linewidth=1)]
        boxes += _draw_cell_slots(axes, left, top, stages[row], alphas[row], planted[row])
        now = accuracies[:, row][~np.isnan(accuracies[:, row])]
        along = left + 0.06 + 0.88 * np.arange(len(now)) / max_epochs
        curves.append(np.stack([along, top + 0.94 - 0.4 * now / 100], 1))
        axes.text(left + 0.05, top + 0.17, str(row), fontsize=8, color="#777777")
        share = f"{now[-1]:.0f} %"
        axes.text(left + 0.95, top + 0.17, share, fontsize=9, ha="right", weight="bold")
    axes.add_collection(PatchCollection(boxes, match_original=True), autolim=False)
    axes.add_collection(LineCollection(curves, colors="#0072B2", linewidths=1.5), autolim=False)
    return _pixels(figure)


def cut_sheet(sheet: Picture, rows: int) -> tuple[Picture, ...]:
    """Cut a sheet of :func:`draw_sheet` into its cells, one a network."""
    across = min(rows, _MOST_ACROSS)
    corners = [divmod(row, across) for row in range(rows)]
    return tuple(
        sheet[top * _CELL_HEIGHT :, left * _CELL_WIDTH :][:_CELL_HEIGHT, :_CELL_WIDTH]
        for top, left in corners
    )


# -- one network ----------------------------------------------------------------------------------


def _slots(shown: TensorDictBase, blueprints: Sequence[str]) -> tuple[list, list, list, np.ndarray]:
    """Stages, α, contributions and names of the blueprints, empty for none, of all slots."""
    metrics = shown["metrics"]
    return (
        metrics["stage"].tolist(),
        metrics["alpha"].tolist(),
        metrics["contribution"].tolist(),
        np.array([*blueprints, ""])[shown["blueprint_indices"].cpu().numpy()],
    )


def _draw_slots(axes: Axes, shown: TensorDictBase, blueprints: Sequence[str]) -> None:
    """Host blocks, with a slot after each, and the head."""
    stages, alphas, contributions, planted = _slots(shown, blueprints)
    count = len(stages)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    step = 0.96 / (count + 0.3)
    block, box = 0.24 * step, 0.56 * step
    small = 9.5 if count <= 3 else 9.5 * 3 / count + 1
    middle = 0.48
    for slot in range(count):
        left = 0.02 + slot * step
        _draw_block(axes, left, block, middle, f"block {slot + 1}", small)
        start = left + block + 0.12 * step
        _draw_arrow(axes, left + block, start, middle)
        _draw_seed(axes, start, box, Stage(stages[slot]), alphas[slot])
        filled = bool(planted[slot])
        centre = start + box / 2
        axes.text(centre, 0.92, f"slot {slot}", ha="center", fontsize=small, color="#555555")
        name = planted[slot] if filled else "empty"
        axes.text(centre, 0.6, name, ha="center", fontsize=small, weight="bold")
        word = Stage(stages[slot]).name
        axes.text(centre, 0.46, word, ha="center", fontsize=small - 0.5)
        if filled:
            axes.text(centre, 0.32, f"α {alphas[slot]:.2f}", ha="center", fontsize=small)
            gain = f"{contributions[slot]:+.1f} % accuracy"
            axes.text(centre, 0.02, gain, ha="center", fontsize=small)
        _draw_arrow(axes, start + box, left + step, middle)
    _draw_block(axes, 0.02 + count * step, block, middle, "head", small)


def _draw_block(
    axes: Axes, left: float, width: float, middle: float, name: str, size: float
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - 0.22),
            width,
            0.44,
            boxstyle="round,pad=0,rounding_size=0.01",
            facecolor="#EEEEEE",
            edgecolor="#777777",
        )
    )
    axes.text(left + width / 2, middle, name, rotation=90, ha="center", va="center", fontsize=size)


def _draw_arrow(axes: Axes, start: float, end: float, height: float) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (start, height),
            (end, height),
            arrowstyle="-|>",
            mutation_scale=8,
            color="#777777",
            shrinkA=0,
            shrinkB=0,
        )
    )


def _draw_seed(axes: Axes, left: float, width: float, stage: Stage, alpha: float) -> None:
    """A box in the stage's colour, filled to α."""
    low, height = 0.14, 0.72
    colour = STAGES[stage].colour
    axes.add_patch(Rectangle((left, low), width, height, facecolor="white"))
    axes.add_patch(
        Rectangle((left, low), width, height * alpha, facecolor=colour, alpha=0.35, linewidth=0)
    )
    line = "--" if stage in (Stage.UNKNOWN, Stage.DORMANT) else "-"
    axes.add_patch(
        Rectangle(
            (left, low), width, height, fill=False, edgecolor=colour, linewidth=3, linestyle=line
        )
    )


def _summary(
    shown: TensorDictBase,
    max_epochs: int,
    action: Mapping[str, int] | None,
    blueprints: Sequence[str],
) -> list[str]:
    metrics = shown["metrics"]
    lines = [
        f"epoch {int(metrics['epoch'])} of {max_epochs}",
        f"accuracy {float(metrics['val_accuracy']):.1f} %",
        f"{int(metrics['seed_params']):,} seed parameters",
    ]
    if action is not None:
        op = Op(action["op"])
        line = f"agent: {op.name}"
        if op is not Op.WAIT:
            line += f" slot {action['slot']}"
        lines.append(line)
        if op is Op.GERMINATE:
            lines[-1] += f": {blueprints[action['blueprint']]}"
        if not bool(shown["last_action_success"]):
            lines.append("(refused)")
    return lines


# -- many -----------------------------------------------------------------------------------------


def _draw_cell_slots(
    axes: Axes,
    left: float,
    top: float,
    stages: Sequence[int],
    alphas: Sequence[float],
    planted: Sequence[str],
) -> list[Rectangle]:
    """Write the blueprints of a network's slots, and return their boxes, filled to α."""
    boxes = []
    width, height = 0.9 / len(stages), 0.26
    for slot, (stage, alpha, name) in enumerate(zip(stages, alphas, planted, strict=True)):
        colour = STAGES[Stage(stage)].colour
        corner, box = (left + 0.05 + slot * width, top + 0.24), 0.9 * width
        fill = (corner[0], corner[1] + height * (1 - alpha))
        boxes += [
            Rectangle(fill, box, height * alpha, facecolor=colour, alpha=0.35, linewidth=0),
            Rectangle(corner, box, height, fill=False, edgecolor=colour, linewidth=1.5),
        ]
        if name:
            centre = corner[0] + box / 2, corner[1] + height / 2
            size = 15 / max(3, len(stages))
            axes.text(*centre, name, fontsize=size, ha="center", va="center")
    return boxes


def _pixels(figure: Figure) -> Picture:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
