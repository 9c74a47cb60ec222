"""A configuration for people: its options with their defaults and texts, and its file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from textwrap import fill, indent
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from envs import list_tasks
from esper_rl.config.schema import TrainConfig
from esper_rl.growing import PRESETS

GROUPS = {"task": "digits", "policy": "v2"}
"""Options that stand for many others, and what counts where they aren't given."""

HEADINGS = {
    "": "the run",
    "env": "the world",
    "reward": "the reward, null: as the task has it",
    "policy": "the policy's network",
    "ppo": "PPO and the estimation of values",
    "ray": "workers on a cluster, if collector=ray",
}
"""By the part of an option's name before its point."""


class Option(NamedTuple):
    """A field of a configuration, as ``key=value`` names it."""

    key: str
    default: str
    help: str
    takes_entries: bool = False
    """It is a dictionary: ``KEY.ENTRY=VALUE`` sets an entry."""


def describe_options() -> list[Option]:
    """Every option of a run; those that stand for many others come first."""
    texts = {
        "task": f"what hosts are trained on, with what runs on it need: {' | '.join(list_tasks())}",
        "policy": f"all of policy.… at once: {' | '.join(PRESETS)}",
    }
    listed = [each for each in _walk(TrainConfig()) if each.key != "env.task"]
    listed.sort(key=lambda option: "." in option.key)
    return [Option(group, GROUPS[group], text) for group, text in texts.items()] + listed


def _walk(config: Any, prefix: str = "") -> Iterator[Option]:
    """Options of a dataclass, and of those in it."""
    for entry in fields(config):
        value, key = getattr(config, entry.name), prefix + entry.name
        if is_dataclass(value):
            yield from _walk(value, key + ".")
        elif isinstance(value, dict) and value:
            for name, each in value.items():
                yield Option(f"{key}.{name}", str(each), entry.metadata["help"])
        else:
            written = "null" if value is None else str(value).replace("'", "")
            yield Option(key, written, entry.metadata["help"], isinstance(value, dict))


def nearest_option(key: str, options: Sequence[Option]) -> str | None:
    """The known key that ``key`` names in words, or the one that is written like it, if any is."""
    *_, group, name = f".{key}".split(".")
    known = [option.key for option in options]
    if name in known:
        return name
    of_that_name = [each for each in known if each.endswith(f".{name}")]
    if of_that_name:
        return of_that_name[0]
    start = name.replace("_", " ") + " "
    described = [option.key for option in options if f"{option.help} ".startswith(start)]
    same_group = [each for each in described if each.split(".")[0] == group]
    if described:
        return (same_group or described)[0]
    return next(iter(difflib.get_close_matches(key, known, n=1)), None)


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """By the name of an option, values that stand in nested mappings.

    Examples:
        >>> flatten({"seed": 1, "ppo": {"lr": 0.1}})
        {'seed': 1, 'ppo.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, every option with its text, for a run folder."""
    return _commented(config, "")


def _commented(config: Any, name: str) -> str:
    typed, text, groups = OmegaConf.structured(config), f"# {HEADINGS[name]}\n\n", ""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            groups += f"\n{entry.name}:\n{indent(_commented(value, entry.name), '  ')}"
        else:
            lines = fill(entry.metadata["help"], 96, initial_indent="# ", subsequent_indent="# ")
            text += f"{lines}\n"
            text += OmegaConf.to_yaml(OmegaConf.masked_copy(typed, [entry.name]))
    return text + groups
