"""The environment: neural networks that grow while they train."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from envs.actions import BLUEPRINTS, Op, Stage, head_sizes
from envs.arguments import check_choice, check_integer
from envs.attribution import record_contributions
from envs.growth import Growth, Validation
from envs.lifecycle import (
    GATES,
    Applied,
    Slots,
    action_masks,
    advance_alpha,
    advance_clocks,
    apply_action,
    check_action,
    legal_slots,
)
from envs.observation import HIGH, LOW, History, feature_names, observe, params_utilization
from envs.randomness import Stream, fold
from envs.reward import REWARD_TERMS, Outcome, RewardConfig, reward_terms
from envs.tasks import make_task

TIME_LIMITS: tuple[str, ...] = ("terminate", "truncate")
"""Values of the environment's ``time_limit``."""


class MorphogenesisEnv(EnvBase):
    """Many small networks in training, each with slots where modules can be grown.

    One step is one **host epoch** of every row: the row's action, a fixed number of minibatches
    of SGD, one validation pass. An episode is one host's training run of ``max_epochs``. Rows
    never influence each other.

    Keys at reset and under ``next``, for N rows of S slots:

    ========================= ======================= ========================================
    key                       shape, dtype            meaning
    ========================= ======================= ========================================
    ``observation``           [N, 25 + 29·S] float32  features in [−1, 1.5], named by
                                                      :func:`envs.feature_names`
    ``blueprint_indices``     [N, S] int64            −1 where no module sits
    ``last_action_success``   [N, 1] bool             False where the action was refused
    ``last_action_op``        [N] int64               the op that was chosen
    ``("action_mask", head)`` bool                    ``op`` [N, 6]; ``slot`` [N, 6, S], for
                                                      each op; the others [N, choices]
    ``("metrics", name)``                             unnormalised, for loggers and plots
    ``("reward_terms", name)`` [N, 1] float32         they sum to ``reward``
    ========================= ======================= ========================================

    Action: ``("action", head)``, int64 [N] for the eight heads of :data:`envs.actions.HEADS`. An
    action that is illegal changes nothing: the step runs as WAIT.

    Reward: see :mod:`envs.reward`. End: after ``max_epochs`` steps the episode is terminated,
    or truncated if ``time_limit`` says so.

    A row whose validation loss is not finite is shown with accuracy 0 and the task's loss limit,
    and ``("metrics", "diverged")``; the rows beside it and the reward's finiteness are unharmed.

    Args:
        task: one of :func:`envs.list_tasks`.
        num_envs: rows N.
        num_slots: slots S that are used, from the input on.
        max_epochs: steps of an episode; default: the task's.
        seed: of everything random; see :meth:`set_seed`.
        device: where all of it lives.
        batches_per_epoch, minibatch_size, validation_size: default: the task's. Only for tasks
            with data; the attributes are None without.
        gates: ``"permissive"``; ``"strict"``, which also asks for a healthy gradient before
            blending and a contribution before fossilizing; or ``"hidden"``, strict but not
            shown in the masks.
        reward: weights of the reward's terms.
        counterfactual_every: epochs between two measurements of the contributions.
        time_limit: ``"terminate"`` or ``"truncate"``.

    Raises:
        ValueError: on an unknown task or choice, or a number out of range.
        TypeError: if a number isn't an integer, or ``reward`` no RewardConfig.

    Examples:
        >>> env = MorphogenesisEnv(num_envs=2, max_epochs=3)
        >>> rollout = env.rollout(3)
        >>> rollout["observation"].shape
        torch.Size([2, 3, 112])
    """

    def __init__(
        self,
        task: str = "digits",
        num_envs: int = 64,
        num_slots: int = 3,
        max_epochs: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        *,
        batches_per_epoch: int | None = None,
        minibatch_size: int | None = None,
        validation_size: int | None = None,
        gates: str = "permissive",
        reward: RewardConfig | None = None,
        counterfactual_every: int = 1,
        time_limit: str = "terminate",
    ) -> None:
        chosen = make_task(task)
        if max_epochs is None:
            max_epochs = chosen.max_epochs
        check_integer("num_envs", num_envs)
        check_integer("max_epochs", max_epochs)
        check_integer("counterfactual_every", counterfactual_every)
        check_integer("num_slots", num_slots, most=chosen.num_slots, what="slots of its host")
        check_integer("seed", seed, least=0, most=2**63 - 1, what="largest int64")
        if reward is not None and not isinstance(reward, RewardConfig):
            raise TypeError(f"reward must be a RewardConfig or None, got {reward!r}")
        check_choice("gates", gates, GATES)
        check_choice("time_limit", time_limit, TIME_LIMITS)
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))

        self.task = task
        self.topology = chosen.topology
        self.num_envs = num_envs
        self.num_slots = num_slots
        self.max_epochs = max_epochs
        self.gates = gates
        self.reward_config = reward if reward is not None else RewardConfig()
        self.counterfactual_every = counterfactual_every
        self.time_limit = time_limit
        self._budget = chosen.parameter_budget
        self._loss_limit = chosen.loss_limit
        self._host_lr, self._seed_lr = chosen.host_lr, chosen.seed_lr
        self._population = chosen.make_hosts(
            num_envs,
            num_slots,
            self.device,
            batches_per_epoch=batches_per_epoch,
            minibatch_size=minibatch_size,
            validation_size=validation_size,
        )
        self.batches_per_epoch = self._population.batches_per_epoch
        self.minibatch_size = self._population.minibatch_size
        self.validation_size = self._population.validation_size
        self._slot_numbers = torch.arange(num_slots, device=self.device)
        self._rows = torch.arange(num_envs, device=self.device)
        self._make_specs()
        self.set_seed(seed)
        self._forget()

    def _make_specs(self) -> None:
        rows, slots = self.num_envs, self.num_slots
        sizes = head_sizes(slots)

        def real(*shape: int) -> Unbounded:
            return Unbounded((rows, *shape), dtype=torch.float32, device=self.device)

        def flag(*shape: int) -> Binary:
            return Binary(shape=(rows, *shape), dtype=torch.bool, device=self.device)

        def whole(low: int, high: int, *shape: int) -> Bounded:
            return Bounded(low, high, (rows, *shape), dtype=torch.int64, device=self.device)

        def choice(size: int) -> Categorical:
            return Categorical(size, (rows,), dtype=torch.int64, device=self.device)

        def composite(**specs: object) -> Composite:
            return Composite(**specs, shape=(rows,), device=self.device)

        self.observation_spec = composite(
            observation=Bounded(
                LOW,
                HIGH,
                (rows, len(feature_names(slots))),
                dtype=torch.float32,
                device=self.device,
            ),
            blueprint_indices=whole(-1, len(BLUEPRINTS) - 1, slots),
            last_action_success=flag(1),
            last_action_op=choice(len(Op)),
            action_mask=composite(
                **{
                    head: flag(len(Op), slots) if head == "slot" else flag(size)
                    for head, size in sizes.items()
                }
            ),
            metrics=composite(
                epoch=whole(0, self.max_epochs, 1),
                val_accuracy=real(1),
                val_loss=real(1),
                diverged=flag(1),
                seed_params=real(1),
                host_gradient_norm=real(1),
                executed_op=choice(len(Op)),
                stage=whole(0, len(Stage) - 1, slots),
                alpha=real(slots),
                contribution=real(slots),
                gradient_norm=real(slots),
            ),
            reward_terms=composite(**{term: real(1) for term in REWARD_TERMS}),
        )
        self.action_spec = composite(
            action=composite(**{head: choice(size) for head, size in sizes.items()})
        )
        self.reward_spec = real(1)
        self.done_spec = composite(done=flag(1), terminated=flag(1), truncated=flag(1))

    def _set_seed(self, seed: int | None) -> None:
        """Start all random streams anew; takes effect at each row's next reset."""
        self._seed = 0 if seed is None else seed
        self._episode = torch.full_like(self._rows, -1)

    def _forget(self) -> None:
        """Rows that have never been reset."""
        population = self._population
        self._slots = Slots.dormant(self.num_envs, self.num_slots, self.device)
        blank = torch.zeros(self.num_envs, device=self.device)
        self._history = History.starting(blank, blank)
        self._epoch = torch.zeros_like(self._rows)
        self._keys = torch.zeros_like(self._rows)
        self._success = torch.ones_like(self._rows, dtype=torch.bool)
        self._chosen_op = torch.full_like(self._rows, Op.WAIT)
        self._executed_op = self._chosen_op
        self._diverged = torch.zeros_like(self._success)
        self._host_norm = blank
        self._terms = dict.fromkeys(REWARD_TERMS, blank)
        self._host_size = population.host_size

    # -- reset ------------------------------------------------------------------------------

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        """Fresh hosts in the rows that ``_reset`` marks (all without it)."""
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            mask = torch.ones_like(self._success)
        mask = mask.view(self.num_envs)
        rows = mask.nonzero().squeeze(1)

        self._episode = self._episode + mask
        keys = fold(torch.full_like(self._rows, self._seed), self._rows, self._episode)
        self._keys = torch.where(mask, keys, self._keys)
        self._population.reset_hosts(rows, fold(self._keys[rows], Stream.HOST))
        self._slots.empty(mask[:, None].expand(-1, self.num_slots), Stage.DORMANT)
        self._epoch = torch.where(mask, 0, self._epoch)
        self._success = self._success | mask
        self._chosen_op = torch.where(mask, Op.WAIT, self._chosen_op)
        self._executed_op = torch.where(mask, Op.WAIT, self._executed_op)
        self._host_norm = torch.where(mask, 0.0, self._host_norm)
        self._terms = {k: torch.where(mask, 0.0, term) for k, term in self._terms.items()}

        validation = self._population.validate(self._growth(), rows, ablate=False)
        loss, accuracy = self._history.loss.clone(), self._history.accuracy.clone()
        diverged = self._diverged.clone()
        loss[rows], accuracy[rows], diverged[rows] = self._shown(validation)
        self._diverged = diverged
        self._history = self._history.replaced(mask, History.starting(loss, accuracy))
        return self._observe().update(self._done_flags())

    # -- step -------------------------------------------------------------------------------

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = check_action(tensordict.get("action", None), self.num_envs, self.num_slots)
        before = self._slots.stage, self._slots.alpha, self._slots.contribution
        accuracy_before = self._history.accuracy

        applied = self._act(action)
        advance_alpha(self._slots)
        alpha_change = self._slots.alpha - before[1]
        self._slots.alpha_velocity = torch.where(self._slots.has_module, alpha_change, 0.0)
        self._train()
        advance_clocks(self._slots)
        self._validate()

        done = self._done_flags()
        self._terms = reward_terms(
            Outcome(
                accuracy_before=accuracy_before,
                accuracy=self._history.accuracy,
                stage_before=before[0],
                stage=self._slots.stage,
                alpha_before=before[1],
                alpha=self._slots.alpha,
                params_share=(self._slots.alpha * self._seed_params()).sum(1) / self._host_size,
                op=applied.op,
                fossilized=applied.fossilized,
                pruned=applied.pruned,
                contribution_before=before[2],
                contribution=self._slots.contribution,
                last_epoch=self._epoch == self.max_epochs,
                terminated=done["terminated"].squeeze(1),
            ),
            self.reward_config,
        )
        reward = torch.stack(list(self._terms.values())).sum(0)
        return self._observe().update(done).set("reward", reward[:, None])

    def _act(self, action: dict[str, Tensor]) -> Applied:
        """Carry out what is legal of the action, and plant seeds and gates."""
        legal = legal_slots(self._slots, self._host_norm, strict=self.gates != "permissive")
        applied = apply_action(self._slots, action, legal, self._population.offered)
        self._success, self._executed_op = applied.success, applied.op
        self._chosen_op = action["op"].clone()
        keys = fold(self._keys[:, None], Stream.SEED, self._epoch[:, None], self._slot_numbers)
        self._population.plant(applied.germinated, self._slots.blueprint, keys)
        self._population.reset_gates(applied.gated)
        return applied

    def _train(self) -> None:
        """One epoch of every row, random only by its own seed and epoch."""
        keys = fold(self._keys, Stream.SHUFFLE, self._epoch)
        host_norm, seed_norm = self._population.train_epoch(self._growth(), keys)
        self._host_norm, self._slots.gradient_norm = host_norm, seed_norm

    def _validate(self) -> None:
        """Count the epoch, validate, and record history and contributions."""
        self._epoch = self._epoch + 1
        due = self._epoch % self.counterfactual_every == 0
        validation = self._population.validate(self._growth(), self._rows, ablate=bool(due.any()))
        loss, validation.accuracy, self._diverged = self._shown(validation)
        validation.ablated &= due[:, None]
        record_contributions(self._slots, validation)
        self._history = self._history.recorded(loss, validation.accuracy)

    def _shown(self, validation: Validation) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and accuracy as the agent sees them, and whether the row has diverged."""
        diverged = ~validation.loss.isfinite()
        loss = torch.where(diverged, self._loss_limit, validation.loss).clamp(max=self._loss_limit)
        return loss, torch.where(diverged, 0.0, validation.accuracy), diverged

    # -- what comes out ---------------------------------------------------------------------

    def _growth(self) -> Growth:
        slots = self._slots
        fossil = slots.stage == Stage.FOSSILIZED
        rate = torch.full_like(slots.alpha, self._seed_lr).masked_fill(fossil, self._host_lr)
        return Growth(slots.stage, slots.blueprint, slots.algorithm, slots.alpha, rate)

    def _seed_params(self) -> Tensor:
        """``[N, S]``."""
        return self._population.count_seed_params(self._slots.blueprint, self._slots.algorithm)

    def _done_flags(self) -> TensorDict:
        over = (self._epoch >= self.max_epochs)[:, None]
        terminated = over & (self.time_limit == "terminate")
        return TensorDict(
            {"done": over, "terminated": terminated, "truncated": over & ~terminated},
            batch_size=self.batch_size,
            device=self.device,
        )

    def _observe(self) -> TensorDict:
        """Observation, masks and metrics of the state that holds now."""
        slots, history = self._slots, self._history
        seed_params = self._seed_params().sum(1)
        legal = legal_slots(slots, self._host_norm, strict=self.gates == "strict")
        observation = observe(
            history,
            slots,
            epoch_progress=self._epoch / self.max_epochs,
            params_utilization=params_utilization(seed_params, self._budget),
            last_action_success=self._success,
            last_action_op=self._chosen_op,
        )
        metrics = {
            "epoch": self._epoch[:, None],
            "val_accuracy": history.accuracy[:, None],
            "val_loss": history.loss[:, None],
            "diverged": self._diverged[:, None],
            "seed_params": seed_params[:, None],
            "host_gradient_norm": self._host_norm.nan_to_num(nan=torch.inf)[:, None],
            "executed_op": self._executed_op,
            "stage": slots.stage,
            "alpha": slots.alpha,
            "contribution": slots.contribution,
            "gradient_norm": slots.gradient_norm.nan_to_num(nan=torch.inf),
        }
        return TensorDict(
            {
                "observation": observation,
                "blueprint_indices": slots.blueprint,
                "last_action_success": self._success[:, None],
                "last_action_op": self._chosen_op,
                "action_mask": action_masks(legal, self._population.offered),
                "metrics": metrics,
                "reward_terms": {name: term[:, None] for name, term in self._terms.items()},
            },
            batch_size=self.batch_size,
            device=self.device,
        ).clone()  # what others do to it in place must not reach the environment's state
