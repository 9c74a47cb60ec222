"""Side effects of a module, found by running it, not by the names of its layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Behaviour:
    """Side effects of a module in training.

    Attributes:
        changed: names of the buffers that change, such as the statistics of batch norm.
        draws: does it draw random numbers, as dropout does?
    """

    changed: frozenset[str] = frozenset()
    draws: bool = False


def examples_like(example: Tensor, count: int) -> Tensor:
    """Some examples to try a module on, ``[count, …]``: always the same random numbers.

    Args:
        example: an input ``[1, …]``, which is repeated where its numbers are whole.
        count: how many.
    """
    examples = torch.cat([example] * count)
    if examples.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        examples = torch.randn(examples.shape, generator=generator, dtype=examples.dtype)
    return examples


def observe(module: nn.Module, example: Tensor) -> Behaviour:
    """Run copies of a module on two examples, in training and in evaluation.

    Args:
        module: it stays as it is.
        example: an input ``[1, …]``; numbers that aren't whole are replaced by random ones.

    Raises:
        ValueError: if it can't take two examples, draws random numbers from somewhere else than
            torch's generator, or in evaluation, or puts another tensor into the place of a buffer.
    """
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(0)
        examples = examples_like(example, 2)
        start = torch.get_rng_state()
        trials = [copy.deepcopy(module).train() for _ in range(2)]
        before = {name: (buffer, buffer.clone()) for name, buffer in trials[0].named_buffers()}
        given = []
        for trial in trials:
            torch.set_rng_state(start)
            given.append(run_on(trial, examples))
        draws = not torch.get_rng_state().equal(start)
        if not _same(*given):
            raise ValueError(
                "random numbers must come from torch's generator alone, but the module gives "
                "something else each time with it in the same state"
            )
        after = dict(trials[0].named_buffers())
        for name, (buffer, _) in before.items():
            if after.get(name) is not buffer:
                raise ValueError(
                    f"buffers must change in place, as by self.{name}.copy_(…), but the module "
                    f"puts another tensor into the place of {name!r}"
                )
        changed = {name for name, (_, values) in before.items() if not _same(after[name], values)}
        torch.set_rng_state(start)
        run_on(trials[0].eval(), examples)
        if not torch.get_rng_state().equal(start):
            raise ValueError(
                "a module must not draw random numbers in evaluation; let it ask self.training"
            )
    finally:
        torch.set_rng_state(state)
    return Behaviour(frozenset(changed), draws)


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards each of its submodules is in training or in evaluation as it was."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def run_on(module: nn.Module, examples: Tensor) -> Any:
    """Outputs of a module for examples ``[B, …]``, without gradients.

    Raises:
        ValueError: if it fails, with their shape.
    """
    try:
        with torch.no_grad():
            return module(examples.clone())
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"a module must take any number of examples, got an error for {len(examples)} of shape "
            f"{list(examples.shape[1:])}: {error}; an example is [1, …], with its batch dimension"
        ) from None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
