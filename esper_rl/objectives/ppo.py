"""Clipped PPO for factored discrete actions whose later heads may depend on the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
    dispatch,
)
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.modules import recurrent_mode, set_recurrent_mode
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.utils import distance_loss

from esper_rl.errors import check_choice
from esper_rl.objectives.actors import DRAWS, action_key, last_part, without_shared
from esper_rl.objectives.checks import (
    require_column,
    require_entries,
    require_estimable,
    require_finite,
    require_legal,
    require_options,
    require_valid,
)
from esper_rl.objectives.diagnostics import (
    HEAD_SCALARS,
    OP_SCALARS,
    POLICY_SCALARS,
    PolicyEvaluation,
    explained_variance,
    policy_diagnostics,
    residuals_by_op,
)
from esper_rl.policy.modules import as_set

RATIOS: tuple[str, ...] = ("joint", "per_head")
"""Values of the loss's ``ratio``."""


class FactoredClipPPOLoss(ClipPPOLoss):
    """Clipped PPO whose ratio is that of the heads that mattered.

    The action has several discrete heads. The first, the **op**, decides which of the others
    have any effect (the relevance table). The ratio is exp(Σ over relevant heads of new − old
    log-probability): exactly that of the action that was carried out. Log-probabilities are those
    of the stored actions, with masks of the stored op. One pass of the actor's trunk serves
    log-probabilities, entropies and value.

    The entropy bonus is −``entropy_coeff`` · Σ_head weight · mean entropy over all steps.

    ``ratio="per_head"`` is another algorithm, known from other code: each head's ratio is clipped
    alone, and the heads' terms are summed.

    With one head, or a table of all True over independent heads, it equals
    :class:`~torchrl.objectives.ClipPPOLoss`. Nothing in it depends on what the heads mean.

    Args:
        actor: deterministic modules and one probabilistic one a head, in order, each with its
            log-probability key: ``ProbabilisticActor`` or ``ProbabilisticTensorDictModule``.
        critic: writes the value; modules that it begins with and the actor has too run once.
            None, with ``critic_coeff`` None, leaves the value out.
        heads: names of the heads, the op first; the last part of each action key.
        relevance: bool ``[ops, heads]``: does the head matter when the op is taken?
        entropy_weights: by head; default: the actor's own ``entropy_weights``, or 1 for each.
        clip_epsilon: of the ratio, one number or (low, high).
        entropy_coeff: base of the entropy bonus; a buffer, so it can be scheduled.
        critic_coeff: weight of the value loss; a buffer too. 0 leaves the value out.
        ratio: ``"joint"`` or ``"per_head"``.
        normalize_entropy: divide a head's entropy in the bonus by log(number of legal choices),
            so that it lies in [0, 1]; where there is one choice only it counts as 0.
        loss_critic_type: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        **kwargs: of the parent: ``entropy_bonus``, ``log_explained_variance``,
            ``normalize_advantage``, ``normalize_advantage_exclude_dims``, ``advantage_norm``,
            ``reduction``, ``device``.

    The output has the parent's entries, as scalars over all valid steps, ``loss_objective``,
    ``loss_critic``, ``loss_entropy``, ``entropy``, ``kl_approx``, ``clip_fraction``, ``ESS``,
    ``max_ratio``, ``mean_ratio``, ``explained_variance``, and

    - ``head_entropy/HEAD``: mean over all steps, nats;
    - ``normalized_entropy/HEAD``: the same divided by log(number of legal choices), over the
      steps where there is a choice (nan where there was none);
    - ``relevant_entropy/HEAD``, ``relevant_normalized_entropy/HEAD``, ``head_kl/HEAD``,
      ``head_clip_fraction/HEAD``: over the steps where the head mattered (nan where there was
      none);
    - ``op_critic_loss/INDEX``, ``op_residual_variance/INDEX``: mean square and variance of the
      value's error over the steps with that op;
    - ``explained_variance_soft``: of the baseline, where the actor writes one (its key can be set
      by ``set_keys(baseline=…)``).

    It takes a TensorDict, or its entries by name, nested names joined by ``_``.

    Raises:
        ValueError: if heads, table or weights don't fit the actor; in ``forward``, if the number
            of ops doesn't fit the table, or an advantage's shape the batch; on an unknown
            ``ratio``.
        TypeError: if the table isn't bool, ``entropy_coeff`` a mapping, or an option unknown.
        NotImplementedError: for options of the parent that can't work here.
        KeyError: in ``forward``, naming an entry that the batch lacks.

    Examples:
        >>> from envs import MorphogenesisEnv
        >>> from envs.actions import CAUSAL_RELEVANCE
        >>> from esper_rl import PolicyConfig, make_actor_critic
        >>> env = MorphogenesisEnv(num_envs=2, max_epochs=3)
        >>> ac = make_actor_critic(PolicyConfig.v2(), env)
        >>> loss = FactoredClipPPOLoss(
        ...     ac.actor, ac.critic, heads=ac.heads, relevance=CAUSAL_RELEVANCE
        ... )
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):
        baseline: NestedKey = "baseline"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(
        self,
        actor: ProbabilisticTensorDictSequential,
        critic: TensorDictModuleBase | None,
        *,
        heads: Sequence[str],
        relevance: Tensor,
        entropy_weights: Mapping[str, float] | None = None,
        clip_epsilon: float | tuple[float, float] = 0.2,
        entropy_coeff: float = 0.01,
        critic_coeff: float | None = 0.5,
        loss_critic_type: str = "l2",
        ratio: str = "joint",
        normalize_entropy: bool = False,
        **kwargs: object,
    ) -> None:
        check_choice("ratio", ratio, RATIOS)
        require_options(kwargs)
        if isinstance(entropy_coeff, Mapping):
            raise TypeError(
                "entropy_coeff must be one number, the base, got a mapping; give the weights of "
                "the heads as entropy_weights"
            )
        super().__init__(
            actor,
            critic,
            clip_epsilon=clip_epsilon,
            entropy_coeff=entropy_coeff,
            critic_coeff=critic_coeff,
            loss_critic_type=loss_critic_type,
            functional=False,
            **kwargs,
        )
        self.heads = tuple(heads)
        self._draws = [module for module in actor.module if isinstance(module, DRAWS)]
        found = tuple(last_part(action_key(draw)) for draw in self._draws)
        if found != self.heads:
            raise ValueError(f"heads must be those that the actor draws, {found}, got {self.heads}")
        if relevance.dtype != torch.bool:
            raise TypeError(f"relevance must be a bool tensor, got {relevance.dtype}")
        if relevance.dim() != 2 or relevance.shape[1] != len(self.heads):
            raise ValueError(
                f"relevance must be of shape [ops, {len(self.heads)}], a row an op and a column a "
                f"head, got {list(relevance.shape)}"
            )
        weights = entropy_weights
        if weights is None:
            weights = getattr(actor, "entropy_weights", dict.fromkeys(self.heads, 1.0))
        if set(weights) != set(self.heads):
            unknown = sorted(set(weights) - set(self.heads))
            missing = sorted(set(self.heads) - set(weights))
            raise ValueError(
                f"entropy_weights must name each of the heads {self.heads}, got unknown {unknown}, "
                f"missing {missing}"
            )
        device = self.entropy_coeff.device
        self.register_buffer("relevance", relevance.to(device))
        self.register_buffer(
            "entropy_weights", torch.tensor([weights[head] for head in self.heads], device=device)
        )
        self.ratio = ratio
        self.normalize_entropy = normalize_entropy
        self._critic_tail = without_shared(critic, actor)
        self._callers_mode: bool | None = None

    def _set_in_keys(self) -> None:
        """All that a batch may hold, so that the loss also takes its entries by name."""
        super()._set_in_keys()
        more = [self.tensor_keys.advantage, *self._loss_mask_keys()]
        more += [self.tensor_keys.value_target] if self._has_critic else []
        self._in_keys: list[NestedKey] = sorted({*self._in_keys, *more}, key=str)

    _out_keys: list[NestedKey] | None

    @property
    def out_keys(self) -> list[NestedKey]:
        """All entries of the output; nothing is nested, so that any logger takes it."""
        if self._out_keys is None:
            keys = [*ClipPPOLoss.out_keys.fget(self), *POLICY_SCALARS]
            keys += [f"{name}/{head}" for name in HEAD_SCALARS for head in self.heads]
            if self._has_critic:
                ops = range(len(self.relevance))
                keys += [f"{name}/{op}" for name in OP_SCALARS for op in ops]
                if self.log_explained_variance:
                    keys += ["explained_variance"]
                    keys += ["explained_variance_soft"] if self._writes_baseline else []
            else:
                keys.remove("loss_critic")
            self._out_keys = list(dict.fromkeys(keys))
        return self._out_keys

    @out_keys.setter
    def out_keys(self, keys: list[NestedKey]) -> None:
        self._out_keys = keys

    @property
    def _writes_baseline(self) -> bool:
        key = self.tensor_keys.baseline
        return any(key in module.out_keys for module in self.actor_network.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # TorchRL's losses run their forward in recurrent mode, whatever the caller has set.
        self._callers_mode = recurrent_mode()
        try:
            return super().__call__(*args, **kwargs)
        finally:
            self._callers_mode = None

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss terms and diagnostics of a batch ``[N]`` or ``[..., T]``.

        More than one batch dimension means that the last one is time, where no recurrent mode is
        set around the call (:class:`torchrl.modules.set_recurrent_mode`). In recurrent mode a flat
        batch ``[T]``, such as a sample of slices, is one sequence whose pieces begin where
        ``is_init`` says; without, every step goes on from its own stored memory.
        """
        with set_recurrent_mode(self._callers_mode), as_set(tensordict):
            return self._terms(tensordict.clone(False))

    def _terms(self, tensordict: TensorDictBase) -> TensorDictBase:
        keys = self._stored_keys()
        require_entries(tensordict, [*self.actor_network.in_keys, *keys, *keys.values()])
        valid = self._mark_padding(tensordict)
        require_valid(valid)
        advantage = self._advantage(tensordict)
        require_finite(self.tensor_keys.advantage, advantage.unsqueeze(-1), valid)

        now = self._evaluate(tensordict, keys)
        require_legal(now.log_prob, valid, [action_key(draw) for draw in self._draws])
        log_ratios = torch.where(now.relevant, now.log_prob - now.old_log_prob, 0.0)
        out = TensorDict(
            {"loss_objective": self._reduce_loss(-self._gain(log_ratios, advantage), tensordict)}
        )
        if self.entropy_bonus:
            entropy = now.normalized_entropy if self.normalize_entropy else now.entropy
            bonus = (self.entropy_weights * entropy).sum(-1)
            out.set("loss_entropy", self._reduce_loss(-self.entropy_coeff * bonus, tensordict))
        if self._has_critic:
            self._add_critic(out, tensordict, valid)
        with torch.no_grad():
            out.update(
                policy_diagnostics(now, log_ratios[valid], valid, self.heads, self._clip_bounds)
            )
        return out

    def make_value_estimator(self, value_type: Any = None, **hyperparams: object) -> None:
        """Choose the estimator that fills in advantages a batch lacks, as the parent does.

        Raises:
            NotImplementedError: see :func:`~esper_rl.objectives.checks.require_estimable`.
        """
        drawn = [action_key(draw) for draw in self._draws]
        require_estimable(value_type, self.critic_network, drawn)
        super().make_value_estimator(value_type, **hyperparams)

    def _gain(self, log_ratios: Tensor, advantage: Tensor) -> Tensor:
        """The clipped surrogate of every step, from ``log_ratios [..., heads]``."""
        per_head = self.ratio == "per_head"
        log_ratio = log_ratios if per_head else log_ratios.sum(-1, keepdim=True)
        advantage = advantage.unsqueeze(-1)
        clipped = log_ratio.clamp(*self._clip_bounds)
        gain = torch.minimum(log_ratio.exp() * advantage, clipped.exp() * advantage)
        return gain.sum(-1)

    def _stored_keys(self) -> dict[NestedKey, NestedKey]:
        """The log-probability key of each action key; both may be set by ``set_keys``."""
        actions, log_probs = self.tensor_keys.action, self.tensor_keys.sample_log_prob
        if not isinstance(actions, list):
            actions, log_probs = [actions], [log_probs]
        keys = dict(zip(actions, log_probs, strict=True))
        drawn = [action_key(draw) for draw in self._draws]
        if set(keys) != set(drawn):
            raise ValueError(
                f"the action keys must be those that the actor draws, {drawn}, got {list(keys)}"
            )
        return keys

    def _mark_padding(self, tensordict: TensorDictBase) -> Tensor:
        """Bool, shaped like the batch: which steps count (see the parent's loss masks).

        Where some don't, the actor is told under the collectors' key, whichever the mask's was.
        """
        valid = torch.ones(tensordict.shape, dtype=torch.bool, device=self.relevance.device)
        masks = [tensordict.get(key, None) for key in self._loss_mask_keys()]
        for mask in masks:
            if mask is not None:
                valid = valid & self._expand_loss_mask(mask, valid)
                tensordict.set(("collector", "mask"), valid)
        return valid

    def _advantage(self, tensordict: TensorDictBase) -> Tensor:
        """The batch's advantage, or the value estimator's; shaped like the batch."""
        key = self.tensor_keys.advantage
        advantage = tensordict.get(key, None)
        missing = advantage is None
        if missing:
            if not self._can_estimate(tensordict):
                raise KeyError(
                    f"the batch lacks the entry {key!r}, and the loss can't estimate it without "
                    "a critic and all that it reads under 'next' too; compute advantages first"
                )
            self.value_estimator(tensordict)
            advantage = tensordict.get(key)
        require_column(key, advantage, tensordict)
        return self._maybe_normalize_advantage(advantage, tensordict, update_norm=missing).squeeze(
            -1
        )

    def _can_estimate(self, tensordict: TensorDictBase) -> bool:
        if self.critic_network is None:
            return False
        present = tensordict.keys(True)
        return all(unravel_key(("next", key)) in present for key in self.critic_network.in_keys)

    def _standardize_advantage(self, advantage: Tensor, tensordict: TensorDictBase) -> Tensor:
        # The parent leaves out padding under one of its two mask keys only.
        valid = tensordict.get(("collector", "mask"), None)
        if valid is not None:
            tensordict = tensordict.copy().set("shifted_valid", valid)
        return super()._standardize_advantage(advantage, tensordict)

    def _evaluate(
        self, tensordict: TensorDictBase, stored: Mapping[NestedKey, NestedKey]
    ) -> PolicyEvaluation:
        """Log-probabilities of the stored actions; leaves the trunk's output in the batch."""
        new, old, entropy, choices = [], [], [], []
        for module in self.actor_network.module:
            if not isinstance(module, DRAWS):
                module(tensordict)
                continue
            # The stored action stays in place, so masks that depend on it are its own.
            distribution = module.get_dist(tensordict)
            action = action_key(module)
            new.append(distribution.log_prob(tensordict.get(action)))
            old.append(tensordict.get(stored[action]).detach())
            entropy.append(distribution.entropy())
            choices.append(distribution.logits.isfinite().sum(-1))
            if module is self._draws[0]:
                self._require_row_per_op(distribution.logits.shape[-1])
        op = tensordict.get(action_key(self._draws[0]))
        return PolicyEvaluation(
            log_prob=torch.stack(new, -1),
            old_log_prob=torch.stack(old, -1),
            entropy=torch.stack(entropy, -1),
            choices=torch.stack(choices, -1),
            relevant=self.relevance[op],
        )

    def _require_row_per_op(self, ops: int) -> None:
        if len(self.relevance) != ops:
            raise ValueError(
                f"relevance must have {ops} rows, one for each choice of head {self.heads[0]!r}, "
                f"got {len(self.relevance)}"
            )

    def _add_critic(self, out: TensorDict, tensordict: TensorDictBase, valid: Tensor) -> None:
        require_entries(tensordict, [self.tensor_keys.value_target])
        target = tensordict.get(self.tensor_keys.value_target)
        require_column(self.tensor_keys.value_target, target, tensordict)
        require_finite(self.tensor_keys.value_target, target, valid)
        for module in self._critic_tail:
            module(tensordict)
        value = tensordict.get(self.tensor_keys.value)
        error = distance_loss(target, value, loss_function=self.loss_critic_type).squeeze(-1)
        out.set("loss_critic", self._reduce_loss(self.critic_coeff * error, tensordict))
        target, value = target.detach().squeeze(-1)[valid], value.detach().squeeze(-1)[valid]
        if self.log_explained_variance:
            out.set("explained_variance", explained_variance(value, target))
            if self._writes_baseline:  # the fresh one, from this pass of the trunk
                baseline = tensordict.get(self.tensor_keys.baseline).detach().squeeze(-1)[valid]
                out.set("explained_variance_soft", explained_variance(baseline, target))
        op = tensordict.get(action_key(self._draws[0]))[valid]
        out.update(residuals_by_op(value, target, op, len(self.relevance)))
