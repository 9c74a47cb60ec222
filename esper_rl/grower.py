"""Growth in a training loop of one's own: the world around a network that someone else trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.optim import Optimizer

from envs.actions import HEADS, Op, Stage, head_sizes
from envs.batched.randomness import Stream, fold
from envs.batched_state import cloned
from envs.checkpointing import check_options
from envs.governor import MOST_ROLLBACKS, Governor
from envs.lifecycle import Applied
from envs.networks.growing import GrowingNetwork
from envs.populations.absent import with_absent_slots
from envs.populations.base import Population, blueprint_choices
from envs.populations.left_out import MOST_SLOTS
from envs.populations.live import LiveNetwork
from envs.populations.loops import LivePopulation
from envs.populations.measuring import Measure, seeded
from envs.reset import shown_loss
from envs.reward import RewardConfig
from envs.state import History, State
from envs.step_inputs import check_action
from envs.tasks.base import Task
from envs.transition import World, act, judge, legal_ops, observe, train
from esper_rl.errors import check_integer, check_number
from esper_rl.growing.growth import GrowthStep, ScalarWriter
from esper_rl.training.acting import RunPolicy

Policy = Callable[[TensorDictBase], TensorDictBase]
"""Reads what a world of one row shows, and writes ``("action", head)``."""

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _OwnLoop(Task):
    """The numbers of a world whose network someone else makes and trains."""

    def make_population(self, num_rows: int, num_slots: int, device: torch.device) -> Population:
        raise NotImplementedError


class Grower:
    """Lets a network grow while someone's own loop trains it; it is stepped once an epoch.

    ::

        network = GrowingNetwork(model, slots=["layer1", "layer2"], example=x)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        grower = Grower(network, optimizer, policy="runs/mine", max_epochs=50)
        for epoch in range(50):
            train_one_epoch(network, optimizer)
            grower.step(lambda: validate(network))
        network = network.freeze()

    Every step measures the network, shows it to the policy, and does what that says: plant a seed,
    train it beside the host, blend it in, make it permanent, remove it. So the first epoch trains
    the host alone, unless :meth:`begin` was called before it. α moves once an epoch.

    - **Optimizer**: seeds that run are in a group of their own for each slot, which has the options
      of the host's parameters before the slot, and ``seed_lr`` times their learning rate, whatever
      a schedule makes of that; fossilized ones have the host's. What leaves the network leaves the
      optimizer, with its state. The grower is made before a learning rate schedule.
    - **Failures**: a network whose loss or weights aren't finite, or whose loss explodes
      (:mod:`envs.governor`), goes back to when it was well, without the seeds that weren't
      permanent; the optimizer's state begins anew. After the third time nothing more is grown.
    - **Cost**: contributions are measured by leaving seeds out, one validation more for each set
      of seeds that act; see ``measure_every``, and ``compare`` of :meth:`step`.
    - **Processes**: where :mod:`torch.distributed` runs, every process makes a grower around its
      network, before or after it is wrapped for data-parallel training. All take the same action;
      seeds have the mean gradient of all processes.
    - ``torch.compile`` makes the network's code anew after each op that changes it; where there
      are many, raise ``torch._dynamo.config.recompile_limit``.

    Args:
        network: made of a module, on any device.
        optimizer: any of :mod:`torch.optim` that has groups; it has all of the network's parameters
            that are trained.
        policy: folder of a training run; or what reads the TensorDict of a
            :class:`envs.MorphogenesisEnv` of one row and writes ``("action", head)``, such as a
            :class:`~esper_rl.growing.baselines.HeuristicPolicy`. A run's policy serves networks
            with as many slots as it was trained with, or fewer. Of the blueprints it can plant
            those whose names it knows.
        max_epochs: epochs that will be trained; later steps only measure.
        mode: a run's policy takes its likeliest choice, ``"greedy"``, or draws, ``"sampled"``.
        seed_lr: learning rate of seeds that aren't permanent, times the host's.
        measure_every: epochs between two measurements of contributions. They are also measured
            when a seed becomes permanent.
        parameter_budget: parameters of seeds that count as many; default: 8 times the host's.
        loss_limit: the largest loss that is shown to the policy; above it a network may be failing.
        guessing_loss: of a network that knows nothing, such as ln C for C classes; default: None,
            to come back to it isn't taken for a failure then.
        seed: of all that grows and of a policy that draws: the loop's own random numbers are left
            as they are.
        verbose: print a line for every step.
        writer: a TensorBoard writer, for ``grow/...`` scalars.

    Raises:
        TypeError: for arguments of another kind.
        ValueError: for numbers out of range, a network without slots and blueprints, more slots
            than the policy was trained with, no blueprint that it knows; an optimizer that lacks
            parameters, can't have groups, or has a schedule already.

    Attributes:
        network, optimizer: as given.
        state: all that the row is apart from its network; None before the first step.
        history: what every step has seen and done.

    Examples:
        >>> from esper_rl.growing.baselines import HeuristicPolicy
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> network = GrowingNetwork(model, slots=["1"], example=torch.zeros(1, 4))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> grower = Grower(network, optimizer, HeuristicPolicy(patience=1), max_epochs=9)
        >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
        >>> for epoch in range(9):
        ...     optimizer.zero_grad()
        ...     nn.functional.cross_entropy(network(x), y).backward()
        ...     optimizer.step()
        ...     step = grower.step(lambda: (1.0, 50.0))
        >>> grower.history[1].op.name, grower.history[1].blueprint
        ('GERMINATE', 'mlp')
    """

    def __init__(
        self,
        network: GrowingNetwork,
        optimizer: Optimizer,
        policy: str | Path | Policy,
        max_epochs: int,
        *,
        mode: Literal["greedy", "sampled"] = "greedy",
        seed_lr: float = 1.0,
        measure_every: int = 1,
        parameter_budget: int | None = None,
        loss_limit: float = 10.0,
        guessing_loss: float | None = None,
        seed: int = 0,
        verbose: bool = False,
        writer: ScalarWriter | None = None,
    ) -> None:
        check_integer("measure_every", measure_every)
        if isinstance(policy, str | Path):
            policy = RunPolicy(policy, mode)
        elif not callable(policy):
            raise TypeError(f"policy must be the folder of a run, or callable, got {policy!r}")
        self._live = LiveNetwork(network, optimizer, shared=True)
        self.network, self.optimizer, self.policy = network, optimizer, policy
        self.verbose, self.writer = verbose, writer
        self.history: list[GrowthStep] = []
        self.state: State | None = None
        self._seed = check_integer("seed", seed, least=0, most=2**63 - 1)
        num_present = len(network.slots)
        self.num_slots = _slots_of(policy, num_present)
        choices = _choices(policy, self._live.offer.blueprints)
        self._own = own = LivePopulation([self._live], *choices)
        population = with_absent_slots(own, num_present, self.num_slots)
        budget = 8 * own.host_size if parameter_budget is None else parameter_budget
        task = _OwnLoop(
            name="own-loop",
            topology=self._live.offer.topology,
            num_slots=num_present,
            max_epochs=max_epochs,
            host_lr=1.0,
            seed_lr=check_number("seed_lr", seed_lr, least=0),
            parameter_budget=budget,
            loss_limit=loss_limit,
            guessing_loss=guessing_loss,
        )
        self.world = World(
            task=task,
            population=population,
            governor=Governor(population, loss_limit, guessing_loss),
            reward=RewardConfig(),
            terms={},
            num_present=num_present,
            max_epochs=task.max_epochs,
            time_limit="terminate",
            gates=getattr(policy, "gates", "permissive"),
            counterfactual_every=measure_every,
        )
        self._applied: Applied | None = None
        self._row = torch.ones(1, dtype=torch.bool)

    @torch.inference_mode(False)  # what is made in it couldn't be trained
    def begin(self, validate: Measure) -> GrowthStep:
        """Measure the untrained network, and let the policy act before the first epoch.

        Args:
            validate: see :meth:`step`.

        Raises:
            RuntimeError: if growth has begun.
        """
        if self.state is not None or self._live.steps:
            raise RuntimeError("begin must be called before anything is trained, and once")
        return self._act(self._first(validate))

    @torch.inference_mode(False)
    def step(self, validate: Measure, compare: Measure | None = None) -> GrowthStep:
        """Measure what the last epoch has made of the network, and act on it.

        Args:
            validate: called without arguments, gives the network's mean loss and a score from 0 to
                100, such as the percentage of right answers. It is called again with seeds left
                out. The network is in evaluation mode then, and gradients are off.
            compare: another one to compare the network with and without its seeds, such as of fewer
                examples; default: the same.

        Returns:
            What was seen and done.

        Raises:
            RuntimeError: if the optimizer has made no step since the last call, or ``validate``
                trains the network.
            TypeError: if ``validate`` gives something else than two numbers.
            ValueError: for a score that isn't from 0 to 100; at first, for a loss that isn't
                finite; for an action that isn't one.
        """
        if not self._live.steps:
            raise RuntimeError(
                "the network must be trained for an epoch between two steps, but its optimizer has "
                "made none; to act before the first epoch, call begin(validate)"
            )
        if self.state is None:
            return self._act(self._first(validate))
        self._own.validations = [(validate, compare)]
        assert self._applied is not None  # since it has begun
        state = train(self.world, self.state, self._row)
        state, self._applied = judge(self.world, state, self._applied, self._row)
        return self._act(state)

    def _first(self, validate: Measure) -> State:
        """The state in which growth begins."""
        self._own.validations = [(validate, None)]
        state, rows = self._blank(), torch.arange(1)
        inputs = self.world.slot_inputs(state.slots)
        seen = self.world.population.validate(inputs, rows, ablate=False)
        if not seen.loss.isfinite():
            raise ValueError(f"the first loss of validate must be finite, got {float(seen.loss)}")
        loss = shown_loss(seen.loss, self.world.task)
        state.history = History.starting(loss, seen.accuracy)
        state = train(self.world, state, self._row)
        self.world.governor.save(state, self._row)
        return state

    def _blank(self) -> State:
        """The state of a row of which nothing is known."""
        nothing, none = torch.zeros(1, dtype=torch.float32), torch.zeros(1, dtype=torch.int64)
        key = fold(none + self._seed)
        return State.fresh(
            self.num_slots, (), episode=none, key=key, loss=nothing, accuracy=nothing
        )

    def _act(self, state: State) -> GrowthStep:
        """Let the policy act, and bring what the slots do into network and optimizer."""
        world = self.world
        sizes = head_sizes(self.num_slots, len(world.population.blueprints))
        shown = TensorDict(cloned(observe(world, state)), batch_size=[1])
        action = {head: torch.zeros(1, dtype=torch.int64) for head in HEADS}
        if not (state.done or state.watch.rollbacks >= MOST_ROLLBACKS):
            key = int(fold(state.key, Stream.POLICY, state.epoch))
            with torch.no_grad(), seeded(key, torch.device("cpu")):
                chosen = self.policy(shown).get("action", None)
            action = check_action(chosen, 1, sizes)
            action = {head: self._live.agree(index) for head, index in action.items()}
        legal = legal_ops(world, state, strict=world.gates != "permissive")
        after, self._applied = act(world, state, action, legal)
        inputs = world.slot_inputs(after.slots)
        self._own.settle(inputs, torch.arange(1))
        self._live.begin_epoch()
        self.state = after
        return self._report(state, after, action)

    def _report(self, seen: State, after: State, action: Mapping[str, Tensor]) -> GrowthStep:
        op, present = Op(int(after.executed_op)), self.world.num_present
        slot = None if op is Op.WAIT else int(action["slot"])
        planted = self.world.population.blueprints[int(action["blueprint"])]
        slots = after.slots
        step = GrowthStep(
            epoch=int(seen.epoch),
            loss=float(seen.history.loss),
            score=float(seen.history.accuracy),
            op=op,
            slot=slot,
            blueprint=planted if op is Op.GERMINATE else None,
            refused=not bool(after.success),
            rolled_back=bool(seen.rolled_back),
            stages=tuple(Stage(stage) for stage in slots.stage[0, :present].tolist()),
            alphas=tuple(slots.alpha[0, :present].tolist()),
            contributions=tuple(slots.contribution[0, :present].tolist()),
            seed_params=int(after.seed_params.sum()),
        )
        self.history.append(step)
        if self.verbose:
            print(step, flush=True)
        if self.writer is not None:
            step.write(self.writer)
        return step

    # -- carrying on ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that decides how growth goes on, copied: network and optimizer, too."""
        memory = self.policy.memory if isinstance(self.policy, RunPolicy) else ()
        return {
            "options": self._options(),
            "network": self._live.state_dict(),
            "state": None if self.state is None else cloned(self.state.state_dict()),
            "applied": None if self._applied is None else cloned(vars(self._applied)),
            "memory": [part.clone() for part in memory],
            "history": [step.as_dict() for step in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, bitwise; called on a grower around a network that was made anew.

        It loads network and optimizer as well. Whoever keeps them apart loads them afterwards.

        Raises:
            ValueError: if it is of a grower with other options, or of another network or optimizer;
                nothing is changed then.
        """
        check_options(self._options(), state["options"])
        go_on, loaded, applied = self._live.ready(state["network"]), None, None
        if state["state"] is not None:
            loaded = self._blank()
            loaded.load_state_dict(state["state"])
            applied = Applied(**cloned(dict(state["applied"])))
        history = [GrowthStep.of_dict(step) for step in state["history"]]
        go_on()
        self.state, self._applied, self.history = loaded, applied, history
        if isinstance(self.policy, RunPolicy):
            self.policy.memory = [part.clone() for part in state["memory"]]

    def _options(self) -> dict[str, Any]:
        """By name, all that decides how growth goes on and isn't in the state: plain values."""
        world = self.world
        return {
            **self.world.task.numbers(),
            "num_slots": self.num_slots,
            "num_present": world.num_present,
            "blueprints": ", ".join(world.population.blueprints),
            "max_epochs": world.max_epochs,
            "gates": world.gates,
            "measure_every": world.counterfactual_every,
            "seed": self._seed,
        }


def _slots_of(policy: Policy, num_present: int) -> int:
    """Slots that the policy is shown, at least those of the network."""
    if not isinstance(policy, RunPolicy):
        what = "most whose pairs are measured"
        return check_integer("slots of the network", num_present, most=MOST_SLOTS, what=what)
    if num_present > policy.num_slots:
        raise ValueError(
            f"network must have at most {policy.num_slots} slots, with which the policy was "
            f"trained, got {num_present}; leave out some, or train a policy with num_slots="
            f"{num_present}"
        )
    return policy.num_slots


def _choices(policy: Policy, offered: Collection[str]) -> tuple[tuple[str, ...], Collection[str]]:
    """Names of the choices of head ``blueprint``, and those of them that can be planted."""
    if not isinstance(policy, RunPolicy):
        return blueprint_choices(tuple(offered)), offered
    known, unknown = set(offered) & policy.known, sorted(set(offered) - policy.known)
    if not known:
        raise ValueError(
            f"network must offer blueprints that the policy was trained with, "
            f"{', '.join(sorted(policy.known))}, got {', '.join(unknown)}"
        )
    if unknown:
        _LOGGER.warning("the policy wasn't trained with %s: never planted", ", ".join(unknown))
    return policy.blueprints, known
