"""Configurations of runs, composed from ``key=value`` overrides, and read from files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import product
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs import make_task
from esper_rl.config.describe import GROUPS, Option, describe_options, flatten, nearest_option
from esper_rl.config.schema import TrainConfig
from esper_rl.config.world import unpin_world
from esper_rl.errors import ConfigError, check_choice, check_device, check_integer, config_errors
from esper_rl.growing import PRESETS

_LOGGER = logging.getLogger(__name__)

_ACCELERATORS = ("cuda", "mps", "xpu")

_OF_A_WORLD = ("task", "env.", "reward.", "ppo.gamma", "device", "workers", "threads")
"""Beginnings of the keys that an evaluation may change: a policy plays in other worlds, too."""

_WHOLE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE]\+?\d+(?![\w.])")
"""A number such as 1e5, which is read as one with a fraction: no integer field takes that."""

_Settings = Mapping[str, Override]
"""By key, the override that counts; it has one value."""

_Said = tuple[str, Any, str]
"""A key, its value, and the place where that is said, for messages."""


def compose_config(overrides: Sequence[str] = (), start: TrainConfig | None = None) -> TrainConfig:
    """The configuration of a run.

    Args:
        overrides: strings such as ``"ppo.lr=1e-3"``, in Hydra's grammar; what they leave open is
            the default. ``"task=scaffold"`` chooses what hosts are trained on, and with it the
            numbers that runs on it need (``Task.training``); ``"policy=v1"`` or ``"policy=v2"``
            chooses all fields of the policy at once. What else is said counts more than either.
            Of the same key the last one counts.
        start: what they change, instead of the defaults.

    Raises:
        ConfigError: for a string that isn't ``key=value``, an unknown key (the nearest known one
            is named), a value of the wrong type or out of range.

    Examples:
        >>> compose_config(["env.num_envs=8", "ppo.lr=1e-3"]).ppo.lr
        0.001
        >>> compose_config(["policy=v1", "policy.hidden_size=64"]).policy.value_mode
        'state'
    """
    return _compose(_parse_single(overrides), start)


def compose_jobs(overrides: Sequence[str]) -> dict[str, TrainConfig]:
    """The configurations of a sweep: one for each combination of values, the last key fastest.

    Each is named by the values of what differs; a single one is ``"0"``.

    Raises:
        ConfigError: see :func:`compose_config`; also when two have the same values.

    Examples:
        >>> list(compose_jobs(["seed=0,1", "policy=v1"]))
        ['seed=0', 'seed=1']
    """
    parsed, jobs = _parse(overrides), {}
    for values in product(*parsed.values()):
        settings = dict(zip(parsed, values, strict=True))
        differing = [
            f"{key}={setting.get_value_element_as_str()}"
            for key, setting in settings.items()
            if len(parsed[key]) > 1
        ]
        name = ",".join(differing) or "0"
        if name in jobs:
            raise ConfigError(f"{name} is given more than once; leave out one of them")
        jobs[name] = _compose(settings)
    return jobs


def in_another_world(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """A run's configuration with another world or device, for its evaluation.

    Args:
        config: of the run.
        overrides: as for :func:`compose_config`; ``task``, keys of ``env``, ``reward``,
            ``ppo.gamma``, by which returns and the reward's potentials are discounted, or
            ``device``, ``workers`` and ``threads``.

    Raises:
        ConfigError: see :func:`compose_config`; also for another key.

    Examples:
        >>> in_another_world(TrainConfig(), ["task=digits_full"]).env.task
        'digits_full'
    """
    if not overrides:
        return config
    settings = _parse_single(overrides)
    for key, setting in settings.items():
        if key.startswith("reward.schedule"):
            raise ConfigError(
                f"override {setting.input_line!r}: a policy is played at the final prices; set "
                "those, reward.rent for example"
            )
        if key == "env.num_slots" and setting.value() != config.env.num_slots:
            raise ConfigError(
                f"override {setting.input_line!r}: a policy acts on as many slots as it was "
                f"trained with, {config.env.num_slots}; leave it out"
            )
        if not key.startswith(_OF_A_WORLD):
            raise ConfigError(
                f"override {setting.input_line!r}: a policy is played as it was trained; only "
                "task, env.…, reward.…, ppo.gamma, device, workers and threads may be others"
            )
    if "task" in settings:  # not the numbers that training on it needs
        settings["env.task"] = settings.pop("task")
    return _compose(settings, config)


# -- overrides ----------------------------------------------------------------------------------


def _parse_single(texts: Sequence[str]) -> dict[str, Override]:
    settings = {}
    for key, values in _parse(texts).items():
        if len(values) > 1:
            raise ConfigError(
                f"override {values[0].input_line!r}: several values; `esper-rl train -m` trains "
                "with each"
            )
        settings[key] = values[0]
    return settings


def _parse(texts: Sequence[str]) -> dict[str, list[Override]]:
    """The values of each key, of the same key those that were given last."""
    options = {option.key: option for option in describe_options()}
    return dict(_parse_override(text, options) for text in texts)


def _parse_override(text: str, options: Mapping[str, Option]) -> tuple[str, list[Override]]:
    """The key, and an override for each of the values that are given for it."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r}: write it as key=value")
    if key == "run_dir":  # a path may hold anything
        if value[:1] + value[-1:] in ("[]", "{}"):
            raise ConfigError(
                f"override {text!r}: run_dir must be one folder; quote a name that looks like a "
                f"list, run_dir=\"'{value}'\""
            )
        value = value if value == "null" or value[:1] in ("'", '"') else _quoted(value)
    else:
        value = _WHOLE.sub(lambda number: _as_integer(number.group()), value)
    parser = OverridesParser.create()
    try:
        values = parser.parse_overrides([f"{key}={value}"])
        if values[0].is_sweep_override():  # fails for a sweep that has no end, an interval
            written = values[0].sweep_string_iterator()
            values = parser.parse_overrides([f"{key}={each}" for each in written])
    except HydraException as error:
        raise ConfigError(
            f"override {text!r}: write it as key=value; {first_line(error)}"
        ) from error
    if not values:
        raise ConfigError(f"override {text!r}: it must have a value, got an empty range")
    key = values[0].key_or_group
    _check_key(f"override {text!r}", key, options)
    for override in values:
        override.input_line = text
        if override.type is not OverrideType.CHANGE:
            raise ConfigError(f"override {text!r}: write it as key=value, without a sign before it")
        if key in options and options[key].default in ("True", "False"):
            _check_flag(text, override.value())
    return key, values


def _check_key(place: str, key: str, options: Mapping[str, Option]) -> None:
    """Refuse a key that is neither an option nor an entry of one."""
    entries = tuple(f"{option.key}." for option in options.values() if option.takes_entries)
    if key not in options and not key.startswith(entries):
        nearest = nearest_option(key, list(options.values()))
        raise ConfigError(
            f"{place}: there is no field {key!r}; "
            + (f"the nearest is {nearest!r}, " if nearest else "")
            + "`esper-rl train --help` lists all"
        )


def _check_flag(text: str, value: object) -> None:
    """Refuse numbers in place of true and false: OmegaConf would take any but 0 for true."""
    if isinstance(value, int | float) and value not in (0, 1):
        raise ConfigError(f"override {text!r}: must be true or false, got {value}")


def _quoted(text: str) -> str:
    """Text as Hydra takes it literally: backslashes count where a quotation mark follows."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _as_integer(text: str) -> str:
    """``1e5`` as ``100000``; a number with a fraction stays as it is."""
    number = float(text)
    return str(int(number)) if number.is_integer() else text


# -- composition --------------------------------------------------------------------------------


def _compose(settings: _Settings, start: TrainConfig | None = None) -> TrainConfig:
    """The configuration with these settings; its groups count less than single options."""
    groups = {} if start is not None else dict(GROUPS)
    groups |= {key: str(each.value()) for key, each in settings.items() if key in GROUPS}
    if start is not None and ("task" in groups or "env.task" in settings):
        start = unpin_world(start)
    config = OmegaConf.structured(TrainConfig() if start is None else start)
    said = [] if "task" not in groups else list(_needs_of(groups["task"]))
    said += [
        (key, setting.value(), f"override {setting.input_line!r}")
        for key, setting in settings.items()
        if key not in GROUPS
    ]
    _set(config, said)
    if "policy" in groups:
        with config_errors():
            check_choice("policy", groups["policy"], PRESETS)
            slots = check_integer("env.num_slots", config.env.num_slots)
        config.policy = PRESETS[groups["policy"]](slots)
        _set(config, said)  # counts more than the preset
    try:
        return to_config(config)
    except ConfigError as error:
        needs = flatten({key: value for key, value, place in said if place.startswith("task ")})
        sources = [
            f"{key}={value} is what task {groups['task']!r} needs"
            for key, value in needs.items()
            if key in str(error) and key not in settings
        ]
        raise ConfigError("; ".join([str(error), *sources])) from error


def _needs_of(task: str) -> Iterator[_Said]:
    """Numbers that training on a task needs: of a file here, or the task's own."""
    with config_errors("task: "):
        training = make_task(task).training
    yield "env.task", task, f"task {task!r}"
    file = files("esper_rl.config") / "conf" / "task" / f"{task}.yaml"
    if file.is_file():
        for key, value in OmegaConf.create(file.read_text(encoding="utf-8")).items():
            yield str(key), value, f"task {task!r}: {key!s}"
    options = {option.key: option for option in describe_options()} if training else {}
    for key, value in training.items():
        _check_key(f"task {task!r}", key, options)
        yield key, value, f"task {task!r}: {key}={value}"


def _set(config: DictConfig, said: Iterable[_Said]) -> None:
    for key, value, place in said:
        try:
            _update(config, {key: value})
        except OmegaConfBaseException as error:
            raise ConfigError(f"{place}: {first_line(error)}") from error


def _update(config: DictConfig, values: Mapping[Any, Any]) -> None:
    """Set options entry by entry: in a mapping, OmegaConf takes no list of whole numbers for one of
    numbers with a fraction."""
    for key, value in flatten(values).items():
        OmegaConf.update(config, key, value)


def to_config(composed: DictConfig) -> TrainConfig:
    """Check every value of what Hydra or a file has put together.

    Raises:
        ConfigError: when a value is out of range.
    """
    with config_errors():
        try:
            check_integer("env.num_slots", composed.env.num_slots)
            built = OmegaConf.to_object(composed)
        except OmegaConfBaseException as error:
            raise ConfigError(first_line(error)) from error
    assert isinstance(built, TrainConfig)
    return built


# -- files --------------------------------------------------------------------------------------


def load_config(text: str, *, anywhere: bool = False) -> TrainConfig:
    """The configuration that :func:`dump_config` has written.

    Args:
        text: what it has written.
        anywhere: take the CPU, with a warning, where this machine lacks the accelerator.

    Raises:
        ConfigError: when ``text`` isn't a configuration of this version.
    """
    if not text.strip():
        raise ConfigError("not a training configuration: it is empty")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ConfigError("not a training configuration: it has YAML aliases, which grow")
        config = OmegaConf.structured(TrainConfig)
        read = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(read, dict):
            raise ConfigError("not a training configuration: it isn't KEY: VALUE")
        _update(config, read)
    except (OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not a training configuration: {first_line(error)}") from error
    if anywhere and config.device.startswith(_ACCELERATORS) and not _is_here(config.device):
        _LOGGER.warning("%s is not on this machine, the CPU is used", config.device)
        config.device = "cpu"
    return to_config(config)


def _is_here(device: str) -> bool:
    try:
        check_device("device", device)
    except ValueError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """Hydra, OmegaConf and YAML explain in the first line, and describe their internals after."""
    return str(error).splitlines()[0]
