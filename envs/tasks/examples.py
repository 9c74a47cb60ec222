"""Examples as people have them: arrays, tensors, frames and data sets, as tensors or refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from tqdm import tqdm

from envs.hosts import ModuleHost
from envs.populations.objectives import Objective

_AT_ONCE = 256
"""Examples that are taken from a data set between two looks at the clock."""


class Examples(NamedTuple):
    """Inputs ``[M, …]`` and their targets ``[M, …]``."""

    inputs: Tensor
    targets: Tensor


def hold_out(examples: Examples, count: int) -> tuple[Examples, Examples]:
    """Split ``count`` examples, always the same, from the others: (held out, others)."""
    inputs, targets = examples
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    held_out, others = slice(count), slice(count, None)
    return Examples(inputs[held_out], targets[held_out]), Examples(inputs[others], targets[others])


def read_examples(
    name: str,
    given: Any,
    host: ModuleHost,
    objective: Objective,
    class_names: Sequence[str] | None,
) -> Examples:
    """Inputs that a host can take and targets that an objective can take.

    Args:
        name: of the argument, for messages.
        given: see :class:`~envs.tasks.ArrayTask`.
        host, objective: of the task.
        class_names: of targets that are words.

    Raises:
        TypeError: if arrays are of the wrong kind.
        ValueError: if there are none, they don't fit each other, or a number can't be.
    """
    inputs, targets = pair_of(name, given)
    inputs = _tensor(f"{name} inputs", inputs)
    if words_of(targets):
        targets = _numbered(f"{name} targets", targets, class_names or ())
    targets = _tensor(f"{name} targets", targets)
    if inputs.dim() == 0 or targets.dim() == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"{name} must have as many targets as inputs, got shapes {list(inputs.shape)} and "
            f"{list(targets.shape)}"
        )
    if len(targets) == 0:
        raise ValueError(f"{name} must have at least one example, got none")
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    bad = ~inputs.isfinite().reshape(len(inputs), -1).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(f"{name} inputs must be finite, got nan or infinity in example {first}")
    try:
        prepared = host.prepare(inputs[:1])
    except ValueError as error:
        raise ValueError(f"{name} inputs don't fit the host: {error}") from None
    outputs = host.channels_of_outputs_first(host.features(prepared)[-1])
    moved = host.channels_of_outputs_first(targets)
    try:
        read = objective.read(moved, tuple(outputs.shape[1:]))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} targets must be {error}") from None
    return Examples(inputs, read if moved is targets else read.movedim(1, -1))


def pair_of(name: str, given: Any) -> tuple[Any, Any]:
    """Inputs and targets, as arrays of any kind.

    Raises:
        TypeError: if it isn't a pair of them, or a data set of pairs.
    """
    if isinstance(given, TensorDataset):
        given = given.tensors
    elif isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        given = _collect(name, given)
    if not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(
            f"{name} must be inputs and targets, as a pair of arrays or tensors, or a data set "
            f"whose examples are such pairs and have numbers, got {type(given).__name__}"
        )
    return given[0], given[1]


def words_of(targets: Any) -> set[str]:
    """The words that targets are, none where they are numbers."""
    if isinstance(targets, Tensor) or hasattr(targets, "toarray"):
        return set()
    try:
        array = np.asarray(targets)
    except ValueError:  # of several lengths
        return set()
    are_words = array.dtype.kind == "U" or all(isinstance(each, str) for each in array.flat)
    return set(map(str, array.flat)) if are_words else set()


def _numbered(name: str, targets: Any, class_names: Sequence[str]) -> Tensor:
    numbers = {word: number for number, word in enumerate(class_names)}
    words = np.asarray(targets)
    for i, word in enumerate(words.flat):
        if word not in numbers:
            raise ValueError(
                f"{name} must be classes, among {sorted(numbers)}, got {str(word)!r} in example "
                f"{i * len(words) // words.size}"
            )
    return torch.tensor([numbers[word] for word in words.flat]).view(words.shape)


def _collect(name: str, examples: Any) -> tuple[Any, Any]:
    """All examples of a data set, with progress if it takes long."""
    found: list[list[Any]] = []
    try:
        loader: Any = DataLoader(examples, batch_size=_AT_ONCE)
        found = [list(batch) for batch in tqdm(loader, desc=f"reading {name}", delay=5)]
    except TypeError as error:
        raise TypeError(
            f"{name} must have examples of tensors, arrays or numbers: {error}"
        ) from None
    if any(len(batch) != 2 for batch in found):
        raise TypeError(f"{name} must have examples that are pairs, inputs and targets")
    columns = zip(*found, strict=True)
    inputs, targets = (
        torch.cat(parts) if isinstance(parts[0], Tensor) else list(chain.from_iterable(parts))
        for parts in columns
    )
    return inputs, targets


def _tensor(name: str, values: Any) -> Tensor:
    """Numbers as a tensor: of a tensor, an array or what NumPy makes one of, series and frames."""
    sparse = hasattr(values, "toarray") or (
        isinstance(values, Tensor) and values.layout is not torch.strided
    )
    if sparse:
        how = "to_dense()" if isinstance(values, Tensor) else "toarray()"
        raise TypeError(f"{name} must be dense, got {type(values).__name__}; call {how} on it")
    if isinstance(values, Tensor):
        if values.is_complex():
            raise TypeError(f"{name} must be real numbers, got {values.dtype}")
        return values.detach().cpu()
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O" and array.size:  # such as columns of several kinds
            array = array.astype(np.float64)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"it holds {array.dtype}")
        # In this machine's byte order, and not backwards, which PyTorch doesn't know.
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be an array or tensor of numbers, categories and words a number each: "
            f"{error}"
        ) from None
