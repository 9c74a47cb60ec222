"""The configuration of a training run: its fields, and the values that are allowed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from envs import Ramp, RewardConfig, make_task
from envs.actions import Op
from esper_rl.errors import (
    check_choice,
    check_device,
    check_integer,
    check_number,
    check_types,
    config_errors,
)
from esper_rl.growing import PolicyConfig
from esper_rl.policy.config import option
from esper_rl.ppo import PPOConfig


@dataclass
class EnvConfig:
    """The world that the policy is trained in: the arguments of :class:`envs.MorphogenesisEnv`.

    ``seed`` and ``device`` are those of the run, ``reward`` is :class:`RewardOptions`.
    """

    task: str = option("digits", "what hosts are trained on, one of envs.list_tasks()")
    num_envs: int = option(64, "rows: networks that are trained side by side")
    num_slots: int = option(3, "slots of a host that seeds may grow in")
    max_epochs: int | None = option(None, "epochs of an episode; null: the task's")
    batches_per_epoch: int | None = option(None, "minibatches of an epoch; null: the task's")
    minibatch_size: int | None = option(None, "examples of a minibatch; null: the task's")
    validation_size: int | None = option(None, "examples that validate an epoch; null: the task's")
    gates: str = option(
        "permissive",
        "permissive; strict, which asks more of a seed; hidden: strict, but unmasked",
    )
    counterfactual_every: int = option(
        1, "epochs between two measurements of what a seed contributes beside the others"
    )
    time_limit: str = option(
        "terminate", "what the last epoch is: terminate, an end that is paid; truncate, a cut"
    )

    @config_errors()
    def __post_init__(self) -> None:
        check_types(self, "env.")


def _price(name: str, text: str) -> Any:
    """A weight of the reward that is the task's unless it is given; most have the default."""
    return option(None, f"{text} (usually {getattr(RewardConfig, name)})")


@dataclass
class RewardOptions:
    """Fields of :class:`envs.RewardConfig` that differ from the task's, the others None or empty.

    ``gamma`` is that of :class:`esper_rl.PPOConfig`.
    """

    mode: str | None = _price("mode", "terms that are paid: shaped | simplified | sparse | minimal")
    progress: float | None = _price("progress", "weight of accuracy, as a potential")
    stage: float | None = _price("stage", "weight of the slots' stages, as a potential")
    rent: float | None = _price("rent", "paid in every step for the seeds' parameters")
    shock: float | None = _price("shock", "paid for changes of α, squared")
    intervention: dict[Op, float] = option(dict, "cost of the op; what isn't given is the task's")
    fossilize: float | None = _price("fossilize", "weight of what a fossilized seed contributes")
    fossilize_limit: float | None = _price("fossilize_limit", "fraction up to which that counts")
    fossilize_cost: float | None = _price("fossilize_cost", "paid when that isn't positive")
    prune: float | None = _price("prune", "weight of minus what a pruned seed contributes")
    prune_limit: float | None = _price("prune_limit", "fraction up to which that counts, both ways")
    upkeep: float | None = _price("upkeep", "paid in every step for each seed being mixed in")
    synergy: float | None = _price("synergy", "weight of the interactions, as a potential")
    hindsight: float | None = _price("hindsight", "weight of helpers' credit at a fossilization")
    terminal: float | None = _price("terminal", "weight of the accuracy at the last epoch")
    bonus: float | None = _price("bonus", "earned at the end for each fossilized seed that helps")
    size: float | None = _price("size", "weight of the parameter budget's share, at the end")
    hasty_prune: float | None = _price("hasty_prune", "cost of pruning a young seed, if minimal")
    governor: float | None = _price("governor", "cost of a rollback")
    schedule: list[Ramp] = option(
        list,
        "weights that change while it learns, each {key: intervention.GERMINATE, start: 0.2, "
        "begin: 0.2, end: 0.6}: start until that share of the run, then linearly to the weight "
        "itself, at which policies are evaluated",
    )

    @config_errors()
    def __post_init__(self) -> None:
        check_types(self, "reward.")

    def weights(self, prices: RewardConfig, gamma: float) -> RewardConfig:
        """The weights of a run on a task with these prices.

        Raises:
            ValueError: if a weight is out of range.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        del given["schedule"]
        given["intervention"] = {**prices.intervention, **given["intervention"]}
        return replace(prices, gamma=gamma, **given)


COLLECTORS = ("sync", "async", "ray")


@dataclass
class RayConfig:
    """The cluster, and what each of the workers of ``collector=ray`` takes of it."""

    address: str | None = option(
        None, "HOST:PORT of a cluster's head; auto: this machine's; null: one is started here"
    )
    cpus: float = option(1.0, "cores of a worker")
    gpus: float = option(0.0, "GPUs of a worker, also parts of one")

    @config_errors()
    def __post_init__(self) -> None:
        check_types(self, "ray.")
        check_number("ray.cpus", self.cpus, above=0)
        check_number("ray.gpus", self.gpus, least=0)
        address = self.address
        if address not in (None, "auto") and not re.fullmatch(r"[^/:]+:\d{1,5}", str(address)):
            raise ValueError(f"ray.address must be null, auto or HOST:PORT, got {address!r}")


_LARGEST_SEED = 2**63 - 1
_MOST_THREADS = 1024
_MOST_STEPS = 10**12
MOST_EPISODES = 2**20


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
    ray: RayConfig = field(default_factory=RayConfig)
    total_steps: int = option(41_600, "environment steps of the run, over all rows")
    steps_per_iteration: int | None = option(
        None, "steps between two updates, over all rows; null: an episode of every row"
    )
    seed: int = option(0, "seed of everything random")
    device: str = option("cpu", "device of world and policy")
    collector: str = option(
        "sync",
        "sync; async: collect the next steps while it learns from these, by the policy of before "
        "the last update; ray: by Ray's workers",
    )
    workers: int = option(2, "processes that collect, each with num_envs / workers rows")
    compile: bool = option(False, "torch.compile the network for updates; needs a C++ compiler")
    bf16: bool = option(False, "updates under bf16 autocast")
    threads: int | None = option(
        None, "CPU threads of PyTorch; null: as many as it takes, noted in config.yaml"
    )
    run_dir: str | None = option(None, "run folder, new; null makes runs/<task>-<time>")
    start_from: str | None = option(
        None, "folder of a run, of any task, whose policy and value this one begins with"
    )
    save_seconds: float = option(30.0, "seconds between two points from which a run can go on")
    loggers: list[str] = option(
        lambda: ["tensorboard"], "where metrics go, beside metrics.csv: tensorboard, wandb, mlflow"
    )
    eval_episodes: int = option(64, "episodes a policy at the end; 0 leaves the evaluation out")

    @config_errors()
    def __post_init__(self) -> None:
        check_types(self)
        check_choice("collector", self.collector, COLLECTORS)
        check_integer("workers", self.workers)
        check_integer(
            "total_steps",
            self.total_steps,
            most=_MOST_STEPS,
            what="steps of some 16 years at 2,000 a second",
        )
        if self.steps_per_iteration is not None:
            check_integer("steps_per_iteration", self.steps_per_iteration)
        check_integer("seed", self.seed, least=0, most=_LARGEST_SEED)
        check_integer("eval_episodes", self.eval_episodes, least=0, most=MOST_EPISODES)
        check_number("save_seconds", self.save_seconds, least=0)
        if self.threads is not None:
            check_integer("threads", self.threads, most=_MOST_THREADS)
        rows = self.env.num_envs
        check_integer("env.num_envs", rows)
        if self.env.max_epochs is not None:
            check_integer("env.max_epochs", self.env.max_epochs)
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
                most=self.episode_steps,
                what="epochs of an episode",
            )
        check_device("device", self.device)
        if self.collector == "ray" and self.device.startswith("cuda") and not self.ray.gpus:
            raise ValueError(f"ray.gpus must be above 0 for device={self.device}, got 0")

    @property
    def rollout_steps(self) -> int:
        """Steps of an iteration over all rows: ``steps_per_iteration``, or whole episodes."""
        if self.steps_per_iteration is not None:
            return self.steps_per_iteration
        return self.env.num_envs * self.episode_steps

    @property
    def episode_steps(self) -> int:
        """Epochs of an episode, a step each."""
        if self.env.max_epochs is not None:
            return self.env.max_epochs
        with config_errors("env."):
            return make_task(self.env.task).max_epochs

    @property
    def iterations(self) -> int:
        """Rollouts of the run: enough for ``total_steps``, the last one whole."""
        return math.ceil(self.total_steps / self.rollout_steps)
