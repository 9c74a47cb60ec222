"""Diagnostics of a loss beside its terms: scalars over the valid steps of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensordict import TensorDict
from torch import Tensor, finfo


@dataclass
class PolicyEvaluation:
    """The current policy on a batch's stored actions; everything is ``[..., heads]``.

    Attributes:
        log_prob, old_log_prob: of the stored choice, now and when it was drawn.
        entropy: of the head, in nats.
        choices: int64, how many were legal.
        relevant: bool, did the head matter?
    """

    log_prob: Tensor
    old_log_prob: Tensor
    entropy: Tensor
    choices: Tensor
    relevant: Tensor

    @property
    def normalized_entropy(self) -> Tensor:
        """In [0, 1]; 0 where there is one choice only."""
        return self.entropy / self.choices.clamp(min=2).log()


def add_policy_diagnostics(
    out: TensorDict,
    now: PolicyEvaluation,
    log_ratios: Tensor,
    valid: Tensor,
    heads: Sequence[str],
    clip_bounds: tuple[Tensor, Tensor],
) -> None:
    """Write what :class:`~esper_rl.FactoredClipPPOLoss` says of the policy.

    Args:
        out: where to.
        now: of all steps.
        log_ratios: ``[valid steps, heads]``, 0 where a head didn't matter.
        valid: bool, shaped like the batch.
        heads: their names.
        clip_bounds: of the log-ratio, below and above.
    """
    log_ratio = log_ratios.sum(-1)
    ratio = log_ratio.exp()
    low, high = clip_bounds
    out.set("kl_approx", -log_ratio.mean())
    out.set("clip_fraction", ((log_ratio < low) | (log_ratio > high)).float().mean())
    effective = 2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)
    out.set("ESS", effective.exp() / len(log_ratio))
    out.set("max_ratio", ratio.max())
    out.set("mean_ratio", ratio.mean())
    entropies, relevant = now.entropy[valid], now.relevant[valid]
    normalized, free = now.normalized_entropy[valid], now.choices[valid] > 1
    out.set("entropy", entropies.sum(-1).mean())
    for i, head in enumerate(heads):
        here = relevant[:, i]
        changes = log_ratios[here, i]
        out.set(("head_entropy", head), entropies[:, i].mean())
        out.set(("normalized_entropy", head), normalized[free[:, i], i].mean())
        out.set(("relevant_entropy", head), entropies[here, i].mean())
        out.set(("head_kl", head), -changes.mean())
        outside = (changes < low) | (changes > high)
        out.set(("head_clip_fraction", head), outside.float().mean())


def add_residuals_by_op(
    out: TensorDict, value: Tensor, target: Tensor, op: Tensor, num_ops: int
) -> None:
    """Write mean square and variance of the value's error over the steps with each op.

    Args:
        out: where to.
        value, target: ``[valid steps]``.
        op: int64 ``[valid steps]``.
        num_ops: how many there are.
    """
    for index in range(num_ops):
        residual = (target - value)[op == index]
        out.set(("op_critic_loss", str(index)), residual.square().mean())
        out.set(("op_residual_variance", str(index)), (residual - residual.mean()).square().mean())


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 − Var(target − value) / Var(target), over all steps."""
    spread = target.var(correction=0)
    return 1 - (target - value).var(correction=0) / (spread + finfo(target.dtype).eps)
