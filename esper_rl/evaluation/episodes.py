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

from filelock import FileLock
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

WHAT_WAS_PLAYED = ("run", "steps", "seed", "episodes", "gamma", "settings")
"""Fields by which two evaluations of a run differ: the digest of the run, the steps that its policy
has been trained for, the seed and number of the episodes, the discount of the returns, and settings
of the world that differ from the run's."""

_BY_PLAYER = ("policies", "drop_in_return", "by_episode")

MEASURES = tuple(field.name for field in fields(Evaluation))
"""Names of all that is measured of an episode."""


def mean_and_ci(values: Tensor) -> dict[str, float]:
    """Mean of ``values [E]``, and half the width of its 95 % interval (normal)."""
    spread = values.std().item() if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "ci95": 1.96 * spread / math.sqrt(len(values))}


def as_json(
    results: Mapping[str, Evaluation], hindered: Sequence[str], played: Mapping[str, Any]
) -> dict[str, Any]:
    """Of every player a summary, and its numbers by episode.

    Args:
        results: by the player's name, ``"greedy"`` among them.
        hindered: names of those whose losses against the greedy policy are written, too.
        played: what was played, :data:`WHAT_WAS_PLAYED` but for the number of episodes.
    """
    greedy = results["greedy"].returns
    return {
        **played,
        "episodes": len(greedy),
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


def keep(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write an evaluation into a run's file, beside those that are there.

    The file's own content is the fullest: of the latest policy, in the run's own world, with the
    most episodes, then the most players; the others are under ``"others"``. Of two evaluations in
    which the same was played, players that the new one lacks stay. What can't be written is said.

    Returns:
        The fullest.
    """
    try:
        with FileLock(file.with_name(f".{file.name}.lock")):  # others may evaluate the run, too
            fullest, *others = _merge(content, _read_all(file))
            write_atomically(file, as_text({**fullest, "others": others}))
    except OSError as error:
        _LOGGER.warning("the evaluation can't be written: %s", error)
        return content
    if any(fullest[key] != content[key] for key in WHAT_WAS_PLAYED if key in fullest):
        _LOGGER.warning(
            "%s: compare and report read the fuller evaluation of %d episodes, and this one is "
            "kept beside it", file, fullest["episodes"],
        )  # fmt: skip
    return fullest


def _merge(content: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All evaluations, the fullest first; of those that are equally full the new one."""
    kept = [content]
    for other in others:
        if all(other.get(key) == content[key] for key in WHAT_WAS_PLAYED):
            for part in _BY_PLAYER:
                new = content[part]
                new |= {name: old for name, old in other[part].items() if name not in new}
        else:
            kept.append(other)

    def fullness(each: Mapping[str, Any]) -> tuple[int, ...]:
        steps = each.get("steps", content["steps"])  # files of older versions don't know them
        return steps, not each.get("settings"), each["episodes"], len(each["policies"])

    return sorted(kept, key=fullness, reverse=True)


def _read_all(file: Path) -> list[dict[str, Any]]:
    """The evaluations in a file; none, and a warning, where they can't be read."""
    try:
        first = json.loads(file.read_text(encoding="utf-8"))
        found = [first, *first.pop("others", [])]
        for each in found:
            if not all(isinstance(each[part], dict) for part in _BY_PLAYER):
                raise TypeError(f"{', '.join(_BY_PLAYER)} must be dictionaries")
            int(each["episodes"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _LOGGER.warning("%s can't be read and is replaced: %s", file, error)
        return []
    return found


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
