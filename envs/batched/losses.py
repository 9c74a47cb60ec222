"""Losses of a small network's outputs and their gradients, and scores, compiled by Numba.

Outputs are ``[classes, answers]``, B examples innermost. A loss of classes takes a logit of each
class; the others take one number an answer, ``[1, answers]``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from envs.batched.attention import exponentials
from envs.batched.products import Array, kernel


class Loss(IntEnum):
    """Losses, as :mod:`torch.nn` has them."""

    CROSS_ENTROPY = 0
    LOGISTIC = 1  # binary cross-entropy with logits
    SQUARED = 2


_CROSS_ENTROPY, _LOGISTIC = int(Loss.CROSS_ENTROPY), int(Loss.LOGISTIC)


class Criterion(NamedTuple):
    """A loss, and the score of an answer.

    Attributes:
        loss: a :class:`Loss`.
        weights: floats: of each class for CROSS_ENTROPY; of the answer yes for LOGISTIC, one for
            each answer of an example.
        smoothing: share of an answer that CROSS_ENTROPY gives to all classes alike, in [0, 1].
        spread: squared error for which SQUARED gives the score 0.
    """

    loss: int
    weights: Array
    smoothing: float
    spread: float


@kernel
def loss_of(criterion: Criterion, outputs: Array, targets: Array, grad: Array) -> float:
    """Mean loss; ``grad`` is set to its gradient.

    Args:
        criterion: which loss.
        outputs: ``[classes, answers]``.
        targets: floats ``[answers]``: a class, below 0 for none, or a number.
        grad: shaped like ``outputs``.
    """
    if criterion.loss == _CROSS_ENTROPY:
        return _cross_entropy(criterion, outputs, targets, grad)
    count, total = outputs.size, 0.0
    values, to_values = outputs.ravel(), grad.ravel()
    if criterion.loss == _LOGISTIC:
        batch = count // len(criterion.weights)
        for i in range(count):
            x, t, weight = values[i], targets[i], criterion.weights[i // batch]
            small = np.exp(-abs(x))
            loss_of_yes = max(-x, 0) + np.log1p(small)  # −ln σ(x)
            not_sure = (small if x > 0 else 1) / (1 + small)  # σ(−x)
            weighted = 1 + (weight - 1) * t
            total += (1 - t) * x + weighted * loss_of_yes
            to_values[i] = ((1 - t) - weighted * not_sure) / count
        return total / count
    for i in range(count):
        error = values[i] - targets[i]
        total += error * error
        to_values[i] = 2 * error / count
    return total / count


@kernel
def _cross_entropy(criterion: Criterion, logits: Array, targets: Array, grad: Array) -> float:
    """Of q = (1 − ε) · the target + ε / C of each class: Σ w·q·(−ln p) / Σ w of the targets."""
    classes, batch = logits.shape
    weights, smoothing = criterion.weights, criterion.smoothing
    most, mass = logits[0].copy(), np.zeros(batch, logits.dtype)
    for c in range(1, classes):
        for b in range(batch):
            most[b] = logits[c, b] if logits[c, b] > most[b] else most[b]
    for c in range(classes):
        share = grad[c]
        for b in range(batch):
            share[b] = logits[c, b] - most[b]
        exponentials(share)
        for b in range(batch):
            mass[b] += share[b]
    total, whole, of_all = 0.0, 0.0, 0.0
    for b in range(batch):
        whole += weights[int(targets[b])] if targets[b] >= 0 else 0.0
    whole = whole if whole > 0 else 1.0  # without a target there is no loss
    for c in range(classes):
        of_all += smoothing / classes * weights[c]
    for b in range(batch):
        target = int(targets[b])
        weight = (1 - smoothing) * weights[target] if target >= 0 else 0.0
        if target >= 0:
            normaliser = np.log(mass[b]) + most[b]
            total += weight * (normaliser - logits[target, b])
            if smoothing > 0:
                total += of_all * normaliser
                for c in range(classes):
                    total -= smoothing / classes * weights[c] * logits[c, b]
            mass[b] = (weight + of_all) / (mass[b] * whole)
        else:
            mass[b] = 0
    for c in range(classes):
        for b in range(batch):
            grad[c, b] *= mass[b]
    for b in range(batch):
        target = int(targets[b])
        if target >= 0:
            grad[target, b] -= (1 - smoothing) * weights[target] / whole
            if smoothing > 0:
                for c in range(classes):
                    grad[c, b] -= smoothing / classes * weights[c] / whole
    return total / whole


@kernel
def score(criterion: Criterion, outputs: Array, targets: Array) -> tuple[float, float]:
    """Sum of the answers' scores, and of their squares.

    A class or a yes or no that is right scores 1, a wrong one 0; a number 1 − its squared error in
    units of ``spread``, or 0 if it isn't finite.
    """
    if criterion.loss == _CROSS_ENTROPY:
        right = float(_count_correct(outputs, targets))
        return right, right
    values, total, square = outputs.ravel(), 0.0, 0.0
    for i in range(len(values)):
        if criterion.loss == _LOGISTIC:
            each = 1.0 if (values[i] > 0) == (targets[i] > 0.5) else 0.0
        else:
            error = float(values[i] - targets[i])
            each = 1 - error * error / criterion.spread
            each = each if np.isfinite(each) else 0.0
        total += each
        square += each * each
    return total, square


@kernel
def _count_correct(logits: Array, targets: Array) -> int:
    """Examples whose largest logit is the target's; NaN counts as the largest, as in torch."""
    classes, batch = logits.shape
    most, best, correct = logits[0].copy(), np.zeros(batch, np.int32), 0
    for c in range(1, classes):
        for b in range(batch):  # without branches, so that it is vectorised
            larger = (most[b] == most[b]) & (not logits[c, b] <= most[b])
            most[b] = logits[c, b] if larger else most[b]
            best[b] = c if larger else best[b]
    for b in range(batch):
        correct += best[b] == targets[b]
    return correct
