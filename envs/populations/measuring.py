"""Validation of a network by a function of someone's own, also without some of its seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from envs.networks.behaviour import modes_kept
from envs.networks.growing import Blend, GrowingNetwork

Measure = Callable[[], tuple[float, float]]
"""Validates a network: mean loss, and a score from 0 to 100."""

_SEEDS = 2**63 - 1


@contextmanager
def seeded(key: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch that follow from ``key``; afterwards they are where they were."""
    states = _generators(device)
    torch.manual_seed(key & _SEEDS)
    try:
        yield
    finally:
        _set_generators(states, device)


def measure(
    network: GrowingNetwork,
    mean: Callable[[list[float]], list[float]],
    validate: Measure,
    compare: Measure | None,
    sets: Sequence[Sequence[int]],
) -> tuple[float, float, list[float]]:
    """Validate a network, then without the seeds of some sets of slots.

    The network is in evaluation mode then. The random numbers of torch are the same in all these
    calls, and afterwards as after the first one.

    Args:
        network: as it is; nothing of it is changed.
        mean: of numbers, over all processes.
        validate: of the whole network.
        compare: a cheaper one for the comparison; None: the same.
        sets: of slots that are left out.

    Returns:
        Loss, score, and the points that are lost without each of the sets.

    Raises:
        RuntimeError: if the network is trained in it.
        TypeError: if it gives anything but two numbers.
        ValueError: for a score that isn't from 0 to 100.
    """
    device = next(network.parameters()).device
    alphas = {id(each.alpha) for each in network.slots if isinstance(each, Blend)}
    everything = (*network.parameters(), *network.buffers())
    kept = [tensor for tensor in everything if id(tensor) not in alphas]
    versions = [tensor._version for tensor in kept]  # count changes in place

    def measured(function: Measure) -> list[float]:
        network.eval()
        given = function()
        if [tensor._version for tensor in kept] != versions:
            raise RuntimeError(
                "validate must leave the network as it is, but it has changed parameters or "
                "buffers; call no optimizer.step() and no network.train() there"
            )
        return mean(_numbers(given))

    start = _generators(device)
    with modes_kept(network), torch.no_grad():
        loss, score = measured(validate)
        after, whole, lost = _generators(device), score, list[float]()
        if sets and compare is not None:
            _set_generators(start, device)
            _, whole = measured(compare)
        for slots in sets:
            _set_generators(start, device)
            with network.without(slots):
                lost.append(whole - measured(compare or validate)[1])
        _set_generators(after, device)
    return loss, score, lost


def _numbers(given: Any) -> list[float]:
    """Loss and score as a validation gave them; a score may be nan where the loss isn't finite."""
    try:
        loss, score = (float(each) for each in given)
    except (TypeError, ValueError) as error:
        raise TypeError(f"validate must give two numbers, loss and score, got {given!r}") from error
    if math.isnan(score) and not math.isfinite(loss):
        score = 0.0
    if not 0 <= score <= 100:
        raise ValueError(
            "the score that validate gives must be from 0 to 100, such as the percentage of right "
            f"answers, got {score}"
        )
    return [loss, score]


def _generators(device: torch.device) -> list[Tensor]:
    """States of the generators that code for this device draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_generators(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
