"""Base class of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from envs.checks import check_integer, check_name, check_number
from envs.populations.base import Population
from envs.reward import REWARD_TERMS, RewardConfig, RewardTerm
from envs.tasks.plans import BestPlan
from envs.typed import check_types


@dataclass(frozen=True, kw_only=True, eq=False)
class Task(ABC):
    """One growing problem: what is grown, on what, and for how long.

    Attributes:
        name: for people and run folders, see :func:`envs.checks.check_name`.
        description: one line for people.
        topology: kind of host; a policy knows the blueprints of one kind only.
        num_slots: slots of its host.
        max_epochs: default length of an episode.
        warm_up: epochs that a host trains by itself before its episode begins.
        host_lr: learning rate of hosts and fossilized seeds.
        seed_lr: learning rate of live seeds.
        parameter_budget: seed parameters at which ``params_utilization`` is 1.
        loss_limit: the largest validation loss that is shown; a network above it may be failing,
            see :mod:`envs.governor`.
        guessing_loss: loss of a network that knows nothing, ln C for C classes; None where the
            loss isn't one of answers.
        reward: weights of the reward's terms, where a run doesn't say otherwise.
        reward_terms: further terms by name, each a function of an
            :class:`envs.reward.Transition` that gives float32 ``[N]``.
        training: options of ``esper-rl train`` that are others for this task, by key, such as
            ``{"ppo.lmbda": 0.98}``, for tasks of other packages and scripts. Those of the tasks in
            this package are in ``esper_rl/config/conf/task/``.
        best_plan: the best way to play it, where that is known.

    Raises:
        TypeError: if a number is of the wrong kind.
        ValueError: if it is out of range, or a further term has the name of one that exists, or
            something is called what is no name.
    """

    name: str
    description: str = ""
    topology: str
    num_slots: int
    max_epochs: int = 50
    warm_up: int = 0
    host_lr: float = 0.05
    seed_lr: float = 0.05
    parameter_budget: int
    loss_limit: float = 10.0
    guessing_loss: float | None = None
    reward: RewardConfig = field(default_factory=RewardConfig)
    reward_terms: Mapping[str, RewardTerm] = field(default_factory=dict)
    training: Mapping[str, float | int | str | list[float]] = field(default_factory=dict)
    best_plan: BestPlan | None = None

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_types(self)
        for term in self.reward_terms:
            check_name("reward_terms: a term", term)
        for name in ("num_slots", "max_epochs", "parameter_budget"):
            self._set(name, check_integer(name, getattr(self, name)))
        self._set("warm_up", check_integer("warm_up", self.warm_up, least=0))
        check_number("host_lr", self.host_lr, least=0)
        check_number("seed_lr", self.seed_lr, least=0)
        check_number("loss_limit", self.loss_limit, above=0)
        if self.guessing_loss is not None:
            check_number("guessing_loss", self.guessing_loss, above=0)
        taken = sorted(set(self.reward_terms) & set(REWARD_TERMS))
        if taken:
            raise ValueError(f"reward_terms must have names of their own, got {taken}")

    def _set(self, name: str, value: object) -> None:
        """Set a field of a frozen dataclass, as dataclasses do in their constructor."""
        object.__setattr__(self, name, value)

    def numbers(self) -> dict[str, float | str | None]:
        """Name and numbers by which a host's training goes, where a run can't say otherwise."""
        names = ("name", "warm_up", "host_lr", "seed_lr", "parameter_budget", "loss_limit")
        return {name: getattr(self, name) for name in (*names, "guessing_loss")}

    @property
    def offered(self) -> tuple[str, ...]:
        """Names of the blueprints that its hosts offer."""
        population = self.make_population(1, self.num_slots, torch.device("cpu"))
        names = zip(population.blueprints, population.offered.tolist(), strict=True)
        return tuple(name for name, offered in names if offered)

    @abstractmethod
    def make_population(self, num_rows: int, num_slots: int, device: torch.device) -> Population:
        """Make N untrained hosts of which the first S slots are used."""

    def resized(
        self,
        *,
        batches_per_epoch: int | None = None,
        minibatch_size: int | None = None,
        validation_size: int | None = None,
    ) -> Task:
        """Make the same task with other sizes of its data; None keeps a size as it is.

        Raises:
            TypeError: if a size isn't an integer.
            ValueError: if it is more than the task has, or means nothing to it.
        """
        sizes = {
            "batches_per_epoch": batches_per_epoch,
            "minibatch_size": minibatch_size,
            "validation_size": validation_size,
        }
        for size, value in sizes.items():
            if value is not None:
                raise ValueError(
                    f"{size} must be None for the task {self.name!r}, which has no data, "
                    f"got {value!r}; leave it out"
                )
        return self
