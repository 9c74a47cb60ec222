"""Configuration of a training run, its help and its ``key=value`` overrides."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from envs import MorphogenesisEnv, RewardConfig, make_task
from esper_rl.errors import (
    ConfigError,
    check_choice,
    check_device,
    check_integer,
    check_number,
    config_errors,
)
from esper_rl.growing import PRESETS, PolicyConfig
from esper_rl.objectives import BOOTSTRAPS, RATIOS
from esper_rl.policy.config import option
from esper_rl.training.options import (
    ANY_KEYS,
    from_signature,
    nearest_option,
    overriding,
    walk_options,
)

_EnvOptions: Any = from_signature(
    "EnvOptions",
    MorphogenesisEnv.__init__,
    MorphogenesisEnv.__doc__,
    leave_out=("self", "seed", "device", "reward"),
)
_RewardOptions: Any = overriding("RewardOptions", RewardConfig, leave_out=("gamma",))


class EnvConfig(_EnvOptions):
    """The world that the policy is trained in: the arguments of :class:`envs.MorphogenesisEnv`.

    ``seed`` and ``device`` are those of the run, ``reward`` is :class:`RewardOptions`.
    """


class RewardOptions(_RewardOptions):
    """Fields of :class:`envs.RewardConfig` that differ from the task's, the others None.

    ``gamma`` is that of :class:`PPOConfig`.
    """

    def weights(self, prices: RewardConfig, gamma: float) -> RewardConfig:
        """The weights of a run on a task with these prices.

        Raises:
            ValueError: if a weight is out of range.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if "intervention" in given:
            given["intervention"] = {**prices.intervention, **given["intervention"]}
        return replace(prices, gamma=gamma, **given)


_LARGEST_SEED = 2**63 - 1
_MOST_THREADS = 1024
MOST_EPISODES = 2**20


@dataclass
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017) and its value estimation.

    Entropies are normalised, so that the bonus is as strong where two ops are legal as where six
    are: on an empty host the op then follows even a small advantage of planting now, and a greedy
    policy doesn't wait there for ever.
    """

    lr: float = option(5e-4, "learning rate of Adam")
    gamma: float = option(0.995, "discount per epoch, above 0 and at most 1")
    lmbda: float = option(0.9, "decay of generalised advantage estimation, in [0, 1]")
    clip_epsilon: float = option(0.2, "the ratio is clipped to 1 ± this")
    epochs: int = option(6, "passes over the steps of an iteration")
    minibatches: int = option(2, "parts of a pass; rows are split, their time never is")
    critic_coeff: float = option(0.5, "weight of the value loss")
    entropy_coeff: float = option(0.006, "weight of the entropies, in the first iteration")
    anneal_entropy: bool = option(True, "multiply entropy_coeff by (1 - progress)^2")
    ratio: str = option("joint", "what is clipped: joint | per_head")
    normalize_entropy: bool = option(True, "divide entropies by log(number of legal choices)")
    bootstrap: str = option("sampled", "op of the value after a cut: sampled | expected (mean)")
    max_grad_norm: float = option(1.0, "the gradient is scaled down to this norm")

    @config_errors()
    def __post_init__(self) -> None:
        check_choice("ppo.ratio", self.ratio, RATIOS)
        check_choice("ppo.bootstrap", self.bootstrap, BOOTSTRAPS)
        for name in ("epochs", "minibatches"):
            check_integer(f"ppo.{name}", getattr(self, name))
        for name in ("lr", "max_grad_norm"):
            check_number(f"ppo.{name}", getattr(self, name), above=0)
        check_number("ppo.clip_epsilon", self.clip_epsilon, above=0, below=1)
        for name in ("critic_coeff", "entropy_coeff"):
            check_number(f"ppo.{name}", getattr(self, name), least=0)
        check_number("ppo.gamma", self.gamma, above=0, most=1)
        check_number("ppo.lmbda", self.lmbda, least=0, most=1)

    def advantage_options(self) -> dict[str, Any]:
        """Arguments of :func:`esper_rl.objectives.compute_advantages`."""
        return {"gamma": self.gamma, "lmbda": self.lmbda, "bootstrap": self.bootstrap}

    def loss_options(self) -> dict[str, Any]:
        """Arguments of :class:`esper_rl.FactoredClipPPOLoss`."""
        names = ("clip_epsilon", "critic_coeff", "entropy_coeff", "ratio", "normalize_entropy")
        return {name: getattr(self, name) for name in names}


@dataclass
class TrainConfig:
    """Everything that decides a training run; two runs of the same one give the same metrics.

    Raises:
        ConfigError: when a value is out of range or two values don't fit each other.

    Examples:
        >>> TrainConfig(total_steps=3200).iterations
        2
    """

    env: EnvConfig = field(default_factory=partial(EnvConfig, num_envs=32))
    reward: RewardOptions = field(default_factory=RewardOptions)
    policy: PolicyConfig = field(default_factory=PolicyConfig.v2)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    total_steps: int = option(41_600, "environment steps of the run, over all rows")
    steps_per_iteration: int | None = option(
        None, "steps between two updates, over all rows; null: an episode of every row"
    )
    seed: int = option(0, "seed of everything random")
    device: str = option("cpu", "device of world and policy")
    workers: int = option(2, "processes that collect, each with num_envs / workers rows")
    compile: bool = option(False, "torch.compile the network for updates; needs a C++ compiler")
    bf16: bool = option(False, "updates under bf16 autocast")
    threads: int | None = option(
        None, "CPU threads of PyTorch; null: as many as it takes, noted in config.yaml"
    )
    run_dir: str | None = option(None, "run folder, new; null makes runs/<task>-<time>")
    save_seconds: float = option(30.0, "seconds between two points from which a run can go on")
    eval_episodes: int = option(64, "episodes a policy at the end; 0 leaves the evaluation out")

    @config_errors()
    def __post_init__(self) -> None:
        for name in ("total_steps", "workers"):
            check_integer(name, getattr(self, name))
        if self.steps_per_iteration is not None:
            check_integer("steps_per_iteration", self.steps_per_iteration)
        check_integer("seed", self.seed, least=0, most=_LARGEST_SEED)
        check_integer("eval_episodes", self.eval_episodes, least=0, most=MOST_EPISODES)
        check_number("save_seconds", self.save_seconds, least=0)
        if self.threads is not None:
            check_integer("threads", self.threads, most=_MOST_THREADS)
        rows = self.env.num_envs
        check_integer("env.num_envs", rows)
        check_integer("env.num_slots", self.env.num_slots)
        check_integer(
            "ppo.minibatches", self.ppo.minibatches, most=rows, what="rows, which are never split"
        )
        if rows % self.workers:
            raise ValueError(
                f"workers must be a divisor of env.num_envs = {rows}, so that every process has as "
                f"many rows, got {self.workers}"
            )
        if self.steps_per_iteration is not None and self.steps_per_iteration % rows:
            raise ValueError(
                f"steps_per_iteration must be a multiple of env.num_envs = {rows}, so that every "
                f"row takes the same steps, got {self.steps_per_iteration}"
            )
        if self.policy.num_slots != self.env.num_slots:
            raise ValueError(
                f"policy.num_slots must be env.num_slots = {self.env.num_slots}, got "
                f"{self.policy.num_slots}"
            )
        if self.policy.attention_span:
            check_integer(
                "policy.attention_span",
                self.policy.attention_span,
                most=self._episode,
                what="epochs of an episode",
            )
        check_device("device", self.device)

    @property
    def rollout_steps(self) -> int:
        """Steps of an iteration over all rows: ``steps_per_iteration``, or whole episodes."""
        if self.steps_per_iteration is not None:
            return self.steps_per_iteration
        return self.env.num_envs * self._episode

    @property
    def _episode(self) -> int:
        """Epochs of an episode."""
        epochs = self.env.max_epochs
        return make_task(self.env.task).max_epochs if epochs is None else epochs

    @property
    def iterations(self) -> int:
        """Rollouts of the run: enough for ``total_steps``, the last one whole."""
        return math.ceil(self.total_steps / self.rollout_steps)


_LOGGER = logging.getLogger(__name__)

_ACCELERATORS = ("cuda", "mps", "xpu")


def parse_overrides(overrides: Sequence[str]) -> TrainConfig:
    """The default configuration with some fields replaced.

    Args:
        overrides: strings such as ``"ppo.lr=1e-3"`` (Hydra's ``key=value`` form, values in YAML);
            what they leave open is as the task has it (``Task.training``), or the default;
            and ``"policy=v1"`` or ``"policy=v2"`` for all fields of the policy at once; what else
            is said of the policy is about that preset. Of the same key the last one counts.

    Raises:
        ConfigError: for a string without ``=``, an unknown key (the nearest known one is named),
            a value of the wrong type or out of range.

    Examples:
        >>> parse_overrides(["env.num_envs=8", "ppo.lr=1e-3"]).ppo.lr
        0.001
        >>> parse_overrides(["policy=v1", "policy.hidden_size=64"]).policy.value_mode
        'state'
    """
    presets = [override for override in overrides if override.startswith("policy=")]
    others = [override for override in overrides if override not in presets]
    preset = presets[-1].removeprefix("policy=") if presets else "v2"
    env = _merge(OmegaConf.structured(TrainConfig), others).env
    with config_errors("env: "):
        task = make_task(env.task)
    # What is said comes last, and the last one counts.
    others = [*(f"{key}={value}" for key, value in task.training.items()), *others]
    env = _merge(OmegaConf.structured(TrainConfig), others).env
    with config_errors():
        check_choice("policy", preset, PRESETS)
        check_integer("env.num_slots", env.num_slots)
    # The preset that fits the number of slots, which the first pass has found out.
    defaults = OmegaConf.structured(TrainConfig)
    defaults.policy = OmegaConf.structured(PRESETS[preset](env.num_slots))
    return _to_config(_merge(defaults, others))


_OF_A_WORLD = ("env.", "reward.", "device", "workers", "threads")
"""Beginnings of keys that a policy can be played with otherwise than it was trained."""


def play_otherwise(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """A run's configuration with another world or device, for its evaluation.

    Args:
        config: of the run.
        overrides: as for :func:`parse_overrides`; keys of ``env``, ``reward``, or ``device``,
            ``workers`` and ``threads``.

    Raises:
        ConfigError: see :func:`parse_overrides`; also for another key.

    Examples:
        >>> play_otherwise(TrainConfig(), ["env.task=digits_full"]).env.task
        'digits_full'
    """
    merged = _merge(OmegaConf.structured(config), overrides)
    for override in overrides:
        if not override.startswith(_OF_A_WORLD):
            raise ConfigError(
                f"override {override!r}: a policy is played as it was trained; only env.…, "
                "reward.…, device, workers and threads may be others"
            )
    return _to_config(merged)


def _merge(config: Any, overrides: Sequence[str]) -> Any:
    described = describe_options()
    options = {key: default for key, default, _ in described}
    open_ended = tuple(f"{key}." for key, default in options.items() if default == ANY_KEYS)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: write it as key=value")
        if key not in options and not key.startswith(open_ended):
            near = nearest_option(key, described)
            raise ConfigError(
                f"override {override!r}: there is no field {key!r}; the nearest is {near!r}, "
                "`esper-rl train --help` lists all"
            )
        try:
            config = _set(config, key, value)
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override {override!r}: {_first_line(error)}") from error
    return config


def _set(config: Any, key: str, value: str) -> Any:
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist([f"{key}={value}"]))
    except ValidationError:
        # YAML reads 1e5 as a number with a fraction, which no integer field takes.
        whole = OmegaConf.from_dotlist([f"{key}={_as_integer(value)}"])
        return OmegaConf.merge(config, whole)


def _as_integer(text: str) -> str:
    """``1e5`` as ``100000``; what isn't a whole number stays as it is."""
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


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
        config = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(text))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"not a training configuration: {_first_line(error)}") from error
    if anywhere and config.device.startswith(_ACCELERATORS) and not _is_here(config.device):
        _LOGGER.warning("%s is not on this machine, the CPU is used", config.device)
        config.device = "cpu"
    return _to_config(config)


def _is_here(device: str) -> bool:
    try:
        check_device("device", device)
    except ValueError:
        return False
    return True


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, for a run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe_options() -> list[tuple[str, str, str]]:
    """Key, default (in YAML) and help text of every field, in order, for ``--help``."""
    return list(walk_options(TrainConfig()))


def _to_config(config: Any) -> TrainConfig:
    try:
        with config_errors():
            built = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(built, TrainConfig)
    return built


def _first_line(error: Exception) -> str:
    """OmegaConf and YAML explain in the first line and describe their own internals after it."""
    return str(error).splitlines()[0]
