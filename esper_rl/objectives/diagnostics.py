"""Diagnostics of a loss beside its terms: scalars over the valid steps of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


POLICY_SCALARS: tuple[str, ...] = (
    "kl_approx",
    "clip_fraction",
    "ESS",
    "max_ratio",
    "mean_ratio",
    "entropy",
)
HEAD_SCALARS: tuple[str, ...] = (
    "head_entropy",
    "normalized_entropy",
    "relevant_entropy",
    "relevant_normalized_entropy",
    "head_kl",
    "head_clip_fraction",
)
"""Written once a head, as ``NAME/HEAD``."""

OP_SCALARS: tuple[str, ...] = ("op_critic_loss", "op_residual_variance")
"""Written once an op, as ``NAME/INDEX``."""


def policy_diagnostics(
    now: PolicyEvaluation,
    log_ratios: Tensor,
    valid: Tensor,
    heads: Sequence[str],
    clip_bounds: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Compute what :class:`~esper_rl.FactoredClipPPOLoss` says of the policy.

    Args:
        now: of all steps.
        log_ratios: ``[valid steps, heads]``, 0 where a head didn't matter.
        valid: bool, shaped like the batch.
        heads: their names.
        clip_bounds: of the log-ratio, below and above.

    Returns:
        Scalars by name: :data:`POLICY_SCALARS` and, for each head, :data:`HEAD_SCALARS`.
    """
    low, high = clip_bounds

    def outside(log_ratio: Tensor) -> Tensor:
        return ((log_ratio < low) | (log_ratio > high)).float().mean()

    log_ratio = log_ratios.sum(-1)
    ratio = log_ratio.exp()
    effective = 2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)
    entropies, relevant = now.entropy[valid], now.relevant[valid]
    normalized, free = now.normalized_entropy[valid], now.choices[valid] > 1
    found = {
        "kl_approx": -log_ratio.mean(),
        "clip_fraction": outside(log_ratio),
        "ESS": effective.exp() / len(log_ratio),
        "max_ratio": ratio.max(),
        "mean_ratio": ratio.mean(),
        "entropy": entropies.sum(-1).mean(),
    }
    for i, head in enumerate(heads):
        here, chooses = relevant[:, i], free[:, i]
        found[f"head_entropy/{head}"] = entropies[:, i].mean()
        found[f"normalized_entropy/{head}"] = normalized[chooses, i].mean()
        found[f"relevant_entropy/{head}"] = entropies[here, i].mean()
        found[f"relevant_normalized_entropy/{head}"] = normalized[here & chooses, i].mean()
        found[f"head_kl/{head}"] = -log_ratios[here, i].mean()
        found[f"head_clip_fraction/{head}"] = outside(log_ratios[here, i])
    return found


def residuals_by_op(value: Tensor, target: Tensor, op: Tensor, num_ops: int) -> dict[str, Tensor]:
    """Compute mean square and variance of the value's error over the steps with each op.

    Args:
        value, target: ``[valid steps]``.
        op: int64 ``[valid steps]``.
        num_ops: how many there are.

    Returns:
        Scalars by name, :data:`OP_SCALARS` for each op; nan for one that wasn't taken.
    """
    found = {}
    for index in range(num_ops):
        residual = (target - value)[op == index]
        found[f"op_critic_loss/{index}"] = residual.square().mean()
        found[f"op_residual_variance/{index}"] = (residual - residual.mean()).square().mean()
    return found


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 − Var(target − value) / Var(target), over all steps."""
    spread = target.var(correction=0)
    return 1 - (target - value).var(correction=0) / (spread + finfo(target.dtype).eps)
