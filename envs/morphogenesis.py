"""The environment: neural networks that grow while they train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from envs.actions import head_sizes
from envs.batched.randomness import fold
from envs.batched.workers import outside_callers_modes
from envs.batched_state import cloned
from envs.checkpointing import check_options, load_tensors, save_tensors
from envs.checks import check_choice, check_device, check_integer, check_memory, check_seed
from envs.governor import Governor
from envs.lifecycle import GATES, draw_action
from envs.networks.growing import GrowingNetwork
from envs.observation import feature_names
from envs.populations.absent import with_absent_slots
from envs.populations.base import SlotInputs
from envs.populations.left_out import MOST_SLOTS
from envs.registration import make_task
from envs.reset import begin
from envs.reward import REWARD_TERMS, RewardConfig
from envs.reward_schedule import RewardSchedule
from envs.specs import SpecMaker
from envs.state import Slots, State
from envs.step_inputs import check_action, check_begun, marked_rows
from envs.tasks.base import Task
from envs.transition import World, advance, observe

TIME_LIMITS: tuple[str, ...] = ("terminate", "truncate")
"""Values of the environment's ``time_limit``."""


class MorphogenesisEnv(EnvBase):
    """Many small networks in training, each with slots where modules can be grown.

    One step is one **host epoch** of every row: the row's action, a fixed number of minibatches
    of SGD, one validation pass. An episode is one host's training run of ``max_epochs``. Rows
    never influence each other.

    Keys at reset and under ``next``, for N rows of S slots:

    ========================== ======================= =======================================
    key                        shape, dtype            meaning
    ========================== ======================= =======================================
    ``observation``            [N, 25 + 29·S] float32  features in [−1, 1.5], named by
                                                       :func:`envs.feature_names`
    ``blueprint_indices``      [N, S] int64            −1 where no module sits
    ``last_action_success``    [N, 1] bool             False where the action was refused
    ``last_action_op``         [N] int64               the op that was chosen
    ``("action_mask", head)``  bool                    ``op`` [N, 6]; ``slot`` [N, 6, S], for
                                                       each op; the others [N, choices]
    ``("metrics", name)``      various                 unnormalised, for loggers and plots
    ``("reward_terms", name)`` [N, 1] float32          they sum to ``reward``
    ========================== ======================= =======================================

    All of it is explained, name by name, in docs/observation.md.

    Action: ``("action", head)``, int64 [N] for the eight heads of :data:`envs.actions.HEADS`. An
    action that is illegal changes nothing: the step runs as WAIT.

    Reward: the sum of :data:`envs.reward.REWARD_TERMS` and the task's own terms. End: after
    ``max_epochs`` steps the episode is terminated, or truncated if ``time_limit`` says so.

    A network that fails, one whose loss or weights aren't finite for example, is taken back to
    when it was well (:mod:`envs.governor`): ``("metrics", "rollback")``. The rows beside it go on
    as if nothing had happened.

    Args:
        task: name of the task, one of :func:`envs.list_tasks`; or a :class:`envs.Task`.
        num_envs: networks grown at once, rows N.
        num_slots: slots that are shown, S: those of the host from the input on. A host that has
            fewer lacks the last ones: they are dormant for ever, and nothing is legal there.
        max_epochs: epochs of an episode, a step each; default: the task's.
        seed: of everything random, 0 to 2⁶³ − 1; default: another one every time. See
            :meth:`set_seed`.
        device: where all of it lives; default: the CPU.
        batches_per_epoch: minibatches of an epoch; default: the task's.
        minibatch_size: examples of a minibatch; default: the task's.
        validation_size: examples of a validation; default: the task's. These three are for tasks
            with data; the attributes are None without.
        gates: ``"permissive"``, ``"strict"`` (asks also for a healthy gradient before blending
            and a contribution before fossilizing) or ``"hidden"`` (strict, but not shown in the
            masks).
        reward: weights of the reward's terms; default: the task's. A :class:`envs.RewardSchedule`
            lets them change with the steps that this environment has taken.
        counterfactual_every: epochs between two measurements of contributions and interactions.
            A contribution that is paid for is measured then; a reward with ``synergy`` or
            ``hindsight`` needs the interactions of every epoch.
        time_limit: ``"terminate"`` or ``"truncate"`` the episode after ``max_epochs``.

    Attributes:
        task: the :class:`envs.Task`, with the sizes that were asked for.
        population: the networks, a :class:`envs.populations.Population`.
        state: all that the rows are apart from the networks, an :class:`envs.state.State`.

    Raises:
        ValueError: on an unknown task or choice, or a number out of range.
        TypeError: if a number isn't an integer, or ``reward`` neither a RewardConfig nor a
            schedule.

    Examples:
        >>> env = MorphogenesisEnv(num_envs=2, max_epochs=3)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape
        torch.Size([2, 3, 112])
    """

    @outside_callers_modes
    def __init__(
        self,
        task: str | Task = "digits",
        num_envs: int = 64,
        num_slots: int = 3,
        max_epochs: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        *,
        batches_per_epoch: int | None = None,
        minibatch_size: int | None = None,
        validation_size: int | None = None,
        gates: str = "permissive",
        reward: RewardConfig | RewardSchedule | None = None,
        counterfactual_every: int = 1,
        time_limit: str = "terminate",
    ) -> None:
        if isinstance(task, str):
            task = make_task(task)
        elif not isinstance(task, Task):
            raise TypeError(f"task must be a name or a Task, got {task!r}")
        task = task.resized(
            batches_per_epoch=batches_per_epoch,
            minibatch_size=minibatch_size,
            validation_size=validation_size,
        )
        max_epochs = task.max_epochs if max_epochs is None else max_epochs
        num_envs = check_integer("num_envs", num_envs)
        max_epochs = check_integer("max_epochs", max_epochs)
        counterfactual_every = check_integer("counterfactual_every", counterfactual_every)
        what = "most whose pairs it measures"
        num_slots = check_integer("num_slots", num_slots, most=MOST_SLOTS, what=what)
        chosen_seed = check_seed("seed", seed)
        if not isinstance(reward, RewardConfig | RewardSchedule | None):
            raise TypeError(
                f"reward must be a RewardConfig, a RewardSchedule or None, got {reward!r}"
            )
        check_choice("gates", gates, GATES)
        check_choice("time_limit", time_limit, TIME_LIMITS)
        device = check_device("device", device)
        check_memory(f"num_envs={num_envs}", num_envs * _bytes_of_row(num_slots), device)
        super().__init__(device=device, batch_size=torch.Size([num_envs]))

        self.task = task
        self.topology = task.topology
        self.num_envs = num_envs
        self.num_slots = num_slots
        self.max_epochs = max_epochs
        self.gates = gates
        self.reward_schedule = None
        if isinstance(reward, RewardSchedule):
            reward.at(0).check_cadence(counterfactual_every)
            self.reward_schedule, reward = reward, reward.final
        self.reward_config = task.reward if reward is None else reward
        self.reward_config.check_cadence(counterfactual_every)
        self.counterfactual_every = counterfactual_every
        self.time_limit = time_limit
        present = min(num_slots, task.num_slots)
        self.population = with_absent_slots(
            task.make_population(num_envs, present, self.device), present, num_slots
        )
        self.governor = Governor(self.population, task.loss_limit, task.guessing_loss)
        self.world = World(
            task,
            self.population,
            self.governor,
            self.reward_config,
            {**REWARD_TERMS, **task.reward_terms},
            present,
            max_epochs,
            time_limit,
            gates,
            counterfactual_every,
        )
        self.head_sizes = head_sizes(num_slots, len(self.population.blueprints))
        self.batches_per_epoch = getattr(task, "batches_per_epoch", None)
        self.minibatch_size = getattr(task, "minibatch_size", None)
        self.validation_size = getattr(task, "validation_size", None)
        self._rows = torch.arange(num_envs, device=self.device)
        make = SpecMaker(num_envs, num_slots, self.head_sizes, self.device)
        self.observation_spec = make.observation(max_epochs, self.world.terms)
        self.action_spec = make.action()
        self.reward_spec = make.reward()
        self.done_spec = make.done()
        self._seed, self._steps = chosen_seed, 0
        self.state = self._fresh()
        self.state.terminated = ~self.state.terminated  # until it is reset

    def _set_seed(self, seed: int | None) -> None:
        """Start all random streams anew; takes effect at each row's next reset."""
        self._seed = check_seed("seed", seed)
        self.state.episode = torch.full_like(self._rows, -1)

    def _fresh(self) -> State:
        """Rows at the beginning of an episode, but for their seeds and validation."""
        blank = torch.zeros(self.num_envs, dtype=torch.float32, device=self.device)
        unknown, key = torch.full_like(self._rows, -1), torch.zeros_like(self._rows)
        terms = self.world.terms
        return State.fresh(
            self.num_slots, terms, episode=unknown, key=key, loss=blank, accuracy=blank
        )

    def to(self, device: torch.device | str) -> MorphogenesisEnv:
        """Move everything to another device: specs, state, networks and data.

        Raises:
            ValueError: if PyTorch can't use the device.
        """
        moved = super().to(check_device("device", device))
        self.state = self.state.to(self.device)
        self.population.to(self.device)
        self._rows = self._rows.to(self.device)
        return moved

    def get_extra_state(self) -> dict[str, Any]:
        """All that decides how it goes on, copied: ``state_dict()`` holds it."""
        tensors = save_tensors(self.state, self.population)
        progress = {"seed": self._seed, "steps": self._steps}
        return {"options": self._options(), **progress, **tensors}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from there, bitwise; ``load_state_dict`` calls it.

        Raises:
            ValueError: if it is of an environment with another task, other sizes or other options;
                nothing is changed then.
        """
        check_options(self._options(), state.get("options", {}))
        self.state = load_tensors(state, self.state, self.population)
        self._seed, self._steps = int(state["seed"]), int(state.get("steps", 0))

    def _options(self) -> dict[str, Any]:
        """By name, all that decides how a state goes on and isn't in it: plain values."""
        sizes = ("num_envs", "num_slots", "batches_per_epoch", "minibatch_size", "validation_size")
        rules = ("max_epochs", "time_limit", "gates", "counterfactual_every")
        schedule = self.reward_schedule
        return {
            **({} if schedule is None else {"reward_schedule": repr(schedule)}),
            **{f"task.{name}": value for name, value in self.task.numbers().items()},
            **{name: getattr(self, name) for name in (*sizes, *rules)},
            **{f"reward.{name}": value for name, value in self.reward_config.weights().items()},
        }

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(task={self.task.name!r}, num_envs={self.num_envs}, "
            f"num_slots={self.num_slots}, max_epochs={self.max_epochs}, device='{self.device}')"
        )

    # -- reset ------------------------------------------------------------------------------

    @outside_callers_modes
    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        """Replace the rows that ``_reset`` marks (all without it) by fresh ones."""
        if kwargs:
            raise TypeError(f"reset must have no other arguments, got {sorted(kwargs)}")
        mask = marked_rows(tensordict, "_reset", self._rows)
        rows = mask.nonzero().squeeze(1)
        fresh = self._fresh()
        fresh.episode = self.state.episode + 1
        fresh.key = fold(torch.full_like(self._rows, self._seed), self._rows, fresh.episode)
        begin(fresh, self.population, self.task, rows, self.slot_inputs(fresh.slots))
        self.state.replace(mask, fresh)
        self.governor.save(self.state, mask)
        return self.observe()

    # -- step -------------------------------------------------------------------------------

    @outside_callers_modes
    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = check_action(tensordict.get("action", None), self.num_envs, self.head_sizes)
        stepping = marked_rows(tensordict, "_step", self._rows)
        check_begun(stepping, self.state.done)
        world, schedule = self.world, self.reward_schedule
        if schedule is not None:
            world = replace(world, reward=schedule.at(self._steps))
        self.state, reward = advance(world, self.state, action, stepping)
        self._steps += 1
        return self.observe().set("reward", reward)

    def rand_action(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        """Draw an action and write it: a legal one where the TensorDict holds ``action_mask``.

        Without masks, indices are drawn from the spec; most of these actions are refused.
        """
        if tensordict is None or tensordict.get("action_mask", None) is None:
            return super().rand_action(tensordict)
        return tensordict.update({"action": draw_action(tensordict["action_mask"])})

    # -- what comes out ---------------------------------------------------------------------

    def slot_inputs(self, slots: Slots) -> SlotInputs:
        """Describe slots (those of ``state``, or others) as :attr:`population` takes them."""
        return self.world.slot_inputs(slots)

    def network(self, row: int) -> GrowingNetwork:
        """Copy a row's network as it is now; ValueError without it, TypeError for formulas."""
        return self.population.network(row, self.slot_inputs(self.state.slots))

    def load_network(self, row: int, network: GrowingNetwork) -> None:
        """Copy the weights of a network into a row that has grown the same; errors as above."""
        self.population.load_network(row, network, self.slot_inputs(self.state.slots))

    def observe(self) -> TensorDict:
        """Show the state that holds now: observation, masks, metrics, reward terms and ends.

        Returns:
            The keys of a reset (see the class), with copies of all tensors.
        """
        shown = observe(self.world, self.state)
        # What others do to it in place must not reach the environment's state.
        return TensorDict(cloned(shown), batch_size=self.batch_size, device=self.device)


def _bytes_of_row(num_slots: int) -> int:
    """Roughly what a row takes beside its network: features, and numbers of pairs of slots."""
    return 4 * (len(feature_names(num_slots)) + 16 * num_slots**2)
