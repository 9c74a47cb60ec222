"""Results of whole episodes, and the file that they are kept in."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from esper_rl.runs.atomic_write import write_atomically

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Results of E episodes; every field is a float tensor ``[E]`` on the CPU.

    Attributes:
        returns: sum of rewards, discounted only if a ``gamma`` was given.
        final_accuracy: validation accuracy after the last epoch, in percent.
        seed_params: parameters of the seeds that are in the host at the end.
        fossilized: slots with a fossilized seed at the end.
    """

    returns: Tensor
    final_accuracy: Tensor
    seed_params: Tensor
    fossilized: Tensor

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and half width of the 95 % confidence interval (normal) of every field."""
        return {name: mean_and_ci(values) for name, values in vars(self).items()}


Summary = Mapping[str, Mapping[str, float]]
"""Of every measure its ``mean`` and ``ci95``."""

MEASURES = tuple(field.name for field in fields(Evaluation))
"""Names of all that is measured of an episode."""


def mean_and_ci(values: Tensor) -> dict[str, float]:
    """Mean of ``values [E]``, and half the width of its 95 % interval (normal)."""
    spread = values.std().item() if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / math.sqrt(len(values))}


def as_json(
    results: Mapping[str, Evaluation],
    hindered: Sequence[str],
    *,
    seed: int,
    gamma: float,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Content of evaluation.json: of every player a summary, and its numbers by episode.

    Args:
        results: by the player's name, ``"greedy"`` among them.
        hindered: names of those whose losses against the greedy policy are written, too.
        seed: of the episodes.
        gamma: discount of the returns.
        settings: of the world that differ from the run's.
    """
    greedy = results["greedy"].returns
    return {
        "episodes": len(greedy),
        "seed": seed,
        "gamma": gamma,
        "settings": list(settings),
        "policies": {name: result.summary() for name, result in results.items()},
        "drop_in_return": {
            name.removeprefix("greedy, "): mean_and_ci(greedy - results[name].returns)
            for name in hindered
        },
        "by_episode": {
            player: {name: values.tolist() for name, values in vars(result).items()}
            for player, result in results.items()
        },
    }


def keep_longest(file: Path, content: dict[str, Any]) -> None:
    """Write an evaluation, unless a longer one is there; what can't be written is said."""
    try:
        before = json.loads(file.read_text())["episodes"]
    except (OSError, ValueError, KeyError, TypeError):
        before = 0
    if before > content["episodes"]:
        _LOGGER.warning("%s holds %d episodes a policy and stays as it is", file, before)
        return
    try:
        write_atomically(file, as_text(content))
    except OSError as error:
        _LOGGER.warning("the evaluation can't be written: %s", error)


def as_text(content: dict[str, Any]) -> bytes:
    """JSON, each list on one line."""
    text = json.dumps(without_nan(content), indent=2, allow_nan=False)
    one_line = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    return (one_line + "\n").encode()


def without_nan(content: Any) -> Any:
    """The same with None for nan, which JSON doesn't know."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if content != content else content
