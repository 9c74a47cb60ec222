"""Configurations of runs, composed by Hydra from ``key=value`` overrides, and their files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from importlib.resources import files
from itertools import product

import yaml
from hydra import compose, initialize
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from envs import list_tasks, make_task
from esper_rl.errors import ConfigError, check_choice, check_device, check_integer, config_errors
from esper_rl.growing import PRESETS
from esper_rl.training.config import TrainConfig
from esper_rl.training.environment import unpin_world
from esper_rl.training.options import ANY_KEYS, nearest_option, walk_options

_LOGGER = logging.getLogger(__name__)

_ACCELERATORS = ("cuda", "mps", "xpu")

PRIMARY = "train"
"""Name of the primary configuration."""

_DEFAULTS = {"task": "digits", "policy": "v2"}
"""Config groups, and the option of each that counts where none is said."""

_OF_A_WORLD = ("task", "env.", "reward.", "device", "workers", "threads")
"""Beginnings of the keys that an evaluation may change: a policy plays in other worlds, too."""

_WHOLE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?[eE]\+?\d+(?![\w.])")
"""A number such as 1e5, which Hydra reads as one with a fraction: no integer field takes that."""


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
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(
                f"override {override.input_line!r}: several values; `esper-rl train -m` trains "
                "with each"
            )
    return compose_jobs(parsed, start)[0]


def compose_jobs(parsed: Sequence[Override], start: TrainConfig | None = None) -> list[TrainConfig]:
    """The configurations of a sweep, one for each combination of values, the last key fastest."""
    if start is not None and any(o.key_or_group in ("task", "env.task") for o in parsed):
        start = unpin_world(start)
    with config_store(parsed, start):
        jobs = product(*written_values(parsed, start).values())
        return [_compose(list(job)) for job in jobs]


def in_another_world(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """A run's configuration with another world or device, for its evaluation.

    Args:
        config: of the run.
        overrides: as for :func:`compose_config`; ``task``, keys of ``env``, ``reward``, or
            ``device``, ``workers`` and ``threads``.

    Raises:
        ConfigError: see :func:`compose_config`; also for another key.

    Examples:
        >>> in_another_world(TrainConfig(), ["task=digits_full"]).env.task
        'digits_full'
    """
    if not overrides:
        return config
    parsed = parse_overrides(overrides)
    for override in parsed:
        if not override.key_or_group.startswith(_OF_A_WORLD):
            raise ConfigError(
                f"override {override.input_line!r}: a policy is played as it was trained; only "
                "task, env.…, reward.…, device, workers and threads may be others"
            )
        if override.key_or_group == "task":  # not the numbers that training on it needs
            override.key_or_group = "env.task"
    return compose_jobs(parsed, config)[0]


# -- overrides ----------------------------------------------------------------------------------


def parse_overrides(texts: Sequence[str]) -> list[Override]:
    """Parse ``key=value`` strings, whose keys have to be options or config groups.

    Raises:
        ConfigError: if one isn't, or can't be parsed.
    """
    described = describe_options()
    return [_parse(text, described) for text in texts]


def _parse(text: str, described: Sequence[tuple[str, str, str]]) -> Override:
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
    try:
        (override,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
        if override.is_sweep_override():
            list(override.sweep_iterator())  # fails for what has no end, such as an interval
    except HydraException as error:
        raise ConfigError(
            f"override {text!r}: write it as key=value; {first_line(error)}"
        ) from error
    override.input_line = text
    key = override.key_or_group
    default = next((default for known, default, _ in described if known == key), None)
    if default in ("True", "False") and not override.is_sweep_override():
        _check_flag(text, override.value())
    open_ended = tuple(f"{known}." for known, default, _ in described if default == ANY_KEYS)
    if key not in {known for known, _, _ in described} and not key.startswith(open_ended):
        raise ConfigError(
            f"override {text!r}: there is no field {key!r}; the nearest is "
            f"{nearest_option(key, described)!r}, `esper-rl train --help` lists all"
        )
    if override.type is not OverrideType.CHANGE:
        raise ConfigError(f"override {text!r}: write it as key=value, without a sign before it")
    if key.startswith(open_ended):
        override.type = OverrideType.FORCE_ADD
    return override


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


def written_values(
    parsed: Sequence[Override], start: TrainConfig | None = None
) -> dict[str, list[str]]:
    """Every ``key=value`` as Hydra takes it, by key; of the same key the last override counts."""
    found = {}
    for override in parsed:
        key = override.get_key_element()
        if start is not None and key in _DEFAULTS:
            key = f"+{key}"  # the configuration that it starts from has no groups
        if override.is_sweep_override():
            found[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            found[key] = [f"{key}={override.get_value_element_as_str()}"]
    return found


# -- composition --------------------------------------------------------------------------------


@contextmanager
def config_store(parsed: Sequence[Override], start: TrainConfig | None = None) -> Iterator[None]:
    """Hydra inside, with the primary configuration :data:`PRIMARY` and the groups task and policy.

    Raises:
        ConfigError: for a task or a policy that there isn't.
    """
    Plugins.instance()  # Hydra's own configurations come into the store with them, once
    store = ConfigStore.instance()
    before = store.repo
    try:
        # A program that calls this may have groups of these names.
        store.repo = {name: copy(node) for name, node in before.items()}
        if start is None:
            # The later one counts more: a task may bring numbers of the policy.
            groups = [{group: _DEFAULTS[group]} for group in ("policy", "task")]
            store.store("schema", TrainConfig)
            store.store(PRIMARY, {"defaults": ["schema", *groups, "_self_"]})
        else:
            store.store(PRIMARY, OmegaConf.structured(start))
        for name in _chosen(parsed, "task"):
            store.store(name, _task_node(name), group="task", package="_global_")
        for name in _chosen(parsed, "policy"):
            with config_errors():
                check_choice("policy", name, PRESETS)
            store.store(name, _policy_node(name), group="policy")
        with _hydra():
            yield
    finally:
        store.repo = before


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra with our own settings, also inside a program, or a job of a sweep, that runs by it."""
    running = GlobalHydra.instance()
    outer, running.hydra = running.hydra, None
    try:
        with initialize(version_base="1.3", config_path=None, job_name="esper-rl"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _chosen(parsed: Sequence[Override], group: str) -> set[str]:
    """Options of a config group that are asked for, and its default."""
    chosen = {_DEFAULTS[group]}
    for override in parsed:
        if override.key_or_group == group:
            swept = override.is_sweep_override()
            values = override.sweep_iterator() if swept else [override.value()]
            chosen |= {str(value) for value in values}
    return chosen


def _task_node(name: str) -> DictConfig:
    """A task and the numbers that training on it needs: those of a file here, or the task's own."""
    with config_errors("task: "):
        training = make_task(name).training
    node, schema = OmegaConf.create({"env": {"task": name}}), OmegaConf.structured(TrainConfig)
    file = files("esper_rl.training") / "conf" / "task" / f"{name}.yaml"
    if file.is_file():
        node.merge_with(OmegaConf.create(file.read_text(encoding="utf-8")))
    parse_overrides([f"{key}={value}" for key, value in training.items()])  # refuses unknown keys
    for key, value in training.items():
        OmegaConf.update(schema, key, value, force_add=True)
        OmegaConf.update(node, key, OmegaConf.select(schema, key))  # of the type that it has there
    return node


def _policy_node(name: str) -> DictConfig:
    """A preset that follows the number of slots."""
    node = OmegaConf.structured(PRESETS[name](TrainConfig().env.num_slots))
    node.num_slots = "${env.num_slots}"
    node.hidden_size = f"${{esper_rl.hidden_size:{name},${{env.num_slots}}}}"
    return node


def _hidden_size(preset: str, num_slots: int) -> int:
    return PRESETS[preset](num_slots).hidden_size


OmegaConf.register_new_resolver("esper_rl.hidden_size", _hidden_size, replace=True)


def _compose(overrides: list[str]) -> TrainConfig:
    try:
        return to_config(compose(PRIMARY, overrides))
    except HydraException as error:
        bad, reason = re.search(r"override '?[+]*(.*?)'?[.]?$", first_line(error)), error.__cause__
        place = f"override {bad.group(1)!r}: " if bad else ""
        raise ConfigError(f"{place}{first_line(reason or error)}") from error


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


def describe_options() -> list[tuple[str, str, str]]:
    """Key, default (in YAML) and help text of every option, for ``--help``; groups come first."""
    groups = {
        "task": f"what hosts are trained on, with what runs on it need: {' | '.join(list_tasks())}",
        "policy": f"all of policy.… at once: {' | '.join(PRESETS)}",
    }
    fields = [option for option in walk_options(TrainConfig()) if option[0] != "env.task"]
    fields.sort(key=lambda option: "." in option[0])
    return [(group, _DEFAULTS[group], text) for group, text in groups.items()] + fields


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
        config.merge_with(OmegaConf.create(text))
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


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, for a run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def first_line(error: BaseException) -> str:
    """Hydra, OmegaConf and YAML explain in the first line, and describe their internals after."""
    return str(error).splitlines()[0]
