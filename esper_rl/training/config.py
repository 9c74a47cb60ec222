"""What a training run is told: the configuration, its help and its ``key=value`` overrides."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from esper_rl.errors import ConfigError
from esper_rl.growing import PRESETS, PolicyConfig
from esper_rl.objectives import BOOTSTRAPS, RATIOS
from esper_rl.policy.config import option


@dataclass
class EnvConfig:
    """The world that the policy is trained in; see :class:`envs.MorphogenesisEnv`.

    Fields left at None take the task's own value.
    """

    task: str = option("digits", "name of the task, see `esper-rl tasks`")
    num_envs: int = option(16, "hosts grown at once, N")
    num_slots: int = option(3, "slots of a host, S")
    max_epochs: int | None = option(None, "epochs of an episode")
    batches_per_epoch: int | None = option(None, "minibatches of an epoch")
    minibatch_size: int | None = option(None, "samples of a minibatch")
    validation_size: int | None = option(None, "samples of the validation pass")
    gates: str = option("permissive", "permissive | strict | hidden")
    counterfactual_every: int = option(1, "epochs between measurements of the contributions")
    time_limit: str = option("terminate", "terminate | truncate at max_epochs")

    def __post_init__(self) -> None:
        for name in ("num_envs", "num_slots", "counterfactual_every"):
            _require_at_least(f"env.{name}", getattr(self, name), 1)
        if self.max_epochs is not None:
            _require_at_least("env.max_epochs", self.max_epochs, 1)


@dataclass
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017) and its value estimation.

    Entropies are normalised, so that the bonus is as strong where two ops are legal as where six
    are: on an empty host the op then follows even a small advantage of planting now, and a greedy
    policy doesn't wait there for ever.
    """

    lr: float = option(5e-4, "learning rate of Adam")
    gamma: float = option(0.995, "discount per epoch, in [0, 1]")
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

    def __post_init__(self) -> None:
        for name, allowed in (("ratio", RATIOS), ("bootstrap", BOOTSTRAPS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"ppo.{name}: got {getattr(self, name)}, allowed are {', '.join(allowed)}"
                )
        for name in ("epochs", "minibatches"):
            _require_at_least(f"ppo.{name}", getattr(self, name), 1)
        for name in ("lr", "clip_epsilon", "max_grad_norm"):
            _require_positive(f"ppo.{name}", getattr(self, name))
        for name in ("critic_coeff", "entropy_coeff"):
            _require_at_least(f"ppo.{name}", getattr(self, name), 0)
        for name in ("gamma", "lmbda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"ppo.{name}: got {getattr(self, name)}, allowed are numbers from 0 to 1"
                )


@dataclass
class TrainConfig:
    """Everything that decides a training run; two runs of the same one give the same metrics.

    Raises:
        ConfigError: when a value is out of range or two values don't fit each other.

    Examples:
        >>> TrainConfig(total_steps=1600).iterations
        2
    """

    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig.v2)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    total_steps: int = option(18_400, "environment steps of the run, over all rows")
    steps_per_iteration: int = option(800, "steps between two updates, over all rows")
    seed: int = option(0, "seed of everything random")
    device: str = option("cpu", "device of world and policy")
    workers: int = option(2, "processes that collect, each with num_envs / workers rows")
    compile: bool = option(False, "torch.compile the network for updates; needs a C++ compiler")
    bf16: bool = option(False, "updates under bf16 autocast")
    threads: int | None = option(None, "CPU threads of PyTorch; null leaves its own choice")
    run_dir: str | None = option(None, "run folder, new; null makes runs/<task>-<time>")
    eval_episodes: int = option(64, "episodes a policy at the end; 0 leaves the evaluation out")

    def __post_init__(self) -> None:
        for name in ("total_steps", "steps_per_iteration"):
            _require_at_least(name, getattr(self, name), 1)
        for name in ("seed", "eval_episodes"):
            _require_at_least(name, getattr(self, name), 0)
        _require_at_least("workers", self.workers, 1)
        if self.env.num_envs % self.workers:
            raise ConfigError(
                f"workers: got {self.workers}, allowed are divisors of env.num_envs = "
                f"{self.env.num_envs}, so that every process has as many rows"
            )
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"device: got {self.device}, allowed are PyTorch's devices on this machine, such "
                f"as cpu ({str(error).splitlines()[0]})"
            ) from None
        if self.threads is not None:
            _require_at_least("threads", self.threads, 1)
        if self.steps_per_iteration % self.env.num_envs:
            raise ConfigError(
                f"steps_per_iteration: got {self.steps_per_iteration}, allowed are multiples of "
                f"env.num_envs = {self.env.num_envs}, so that every row takes the same steps"
            )
        if self.policy.num_slots != self.env.num_slots:
            raise ConfigError(
                f"policy.num_slots: got {self.policy.num_slots}, allowed is env.num_slots = "
                f"{self.env.num_slots}"
            )
        if self.ppo.minibatches > self.env.num_envs:
            raise ConfigError(
                f"ppo.minibatches: got {self.ppo.minibatches}, allowed are 1 to env.num_envs = "
                f"{self.env.num_envs}, because minibatches are made of whole rows"
            )

    @property
    def iterations(self) -> int:
        """Rollouts of the run: enough for ``total_steps``, the last one whole."""
        return math.ceil(self.total_steps / self.steps_per_iteration)


def _require_at_least(name: str, value: float, least: int) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ConfigError(f"{name}: got {value}, allowed are numbers of at least {least}")


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}: got {value}, allowed are numbers above 0")


def parse_overrides(overrides: Sequence[str]) -> TrainConfig:
    """The default configuration with some fields replaced.

    Args:
        overrides: strings such as ``"ppo.lr=1e-3"`` (Hydra's ``key=value`` form, values in YAML),
            and ``"policy=v1"`` or ``"policy=v2"`` for all fields of the policy at once; what else
            is said of the policy is about that preset.

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
    if preset not in PRESETS:
        raise ConfigError(f"policy: got {preset}, allowed are {', '.join(PRESETS)}")
    env = _merge(OmegaConf.structured(TrainConfig), others).env
    _require_at_least("env.num_slots", env.num_slots, 1)
    # The preset that fits the number of slots, which the first pass has found out.
    defaults = OmegaConf.structured(TrainConfig)
    defaults.policy = OmegaConf.structured(PRESETS[preset](env.num_slots))
    return _to_config(_merge(defaults, others))


def _merge(config: Any, overrides: Sequence[str]) -> Any:
    known = [key for key, _, _ in describe_options()]
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r}: write it as key=value")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"override {override!r}: there is no field {key!r}; the nearest is {near!r}, "
                "`esper-rl train --help` lists all"
            )
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, YAMLError) as error:
            raise ConfigError(f"override {override!r}: {_first_line(error)}") from error
    return config


def load_config(text: str) -> TrainConfig:
    """The configuration that :func:`dump_config` has written.

    Raises:
        ConfigError: when ``text`` isn't a configuration of this version.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.create(text))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"not a training configuration: {_first_line(error)}") from error
    return _to_config(config)


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, for a run folder."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe_options() -> list[tuple[str, str, str]]:
    """Key, default (in YAML) and help text of every field, in order, for ``--help``."""
    return list(_walk(TrainConfig(), prefix=""))


def _walk(config: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    for entry in fields(config):
        value, key = getattr(config, entry.name), prefix + entry.name
        if is_dataclass(value):
            yield from _walk(value, key + ".")
        elif isinstance(value, dict):
            yield from (
                (f"{key}.{name}", str(v), entry.metadata["help"]) for name, v in value.items()
            )
        else:
            yield key, "null" if value is None else str(value), entry.metadata["help"]


def _to_config(config: Any) -> TrainConfig:
    try:
        built = OmegaConf.to_object(config)
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(built, TrainConfig)
    return built


def _first_line(error: Exception) -> str:
    """OmegaConf and YAML explain in the first line and describe their own internals after it."""
    return str(error).splitlines()[0]
