"""Objects with one row an environment: choosing, indexing, copying, saving."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from envs.batched_state import Rows


@dataclass
class Inner(Rows):
    matrix: Tensor


@dataclass
class Outer(Rows):
    vector: Tensor
    inner: Inner
    named: dict[str, Tensor]


def make(value: float, rows: int = 4) -> Outer:
    return Outer(
        vector=torch.full((rows,), value),
        inner=Inner(torch.full((rows, 3), value)),
        named={"a": torch.full((rows,), value), "b": torch.full((rows, 2, 2), value)},
    )


def tensors(rows: Outer) -> list[Tensor]:
    return [rows.vector, rows.inner.matrix, *rows.named.values()]


MASK = torch.tensor([True, False, False, True])


def test_replace_takes_whole_rows_from_the_other():
    rows, other = make(1.0), make(2.0)
    before = tensors(rows)
    rows.replace(MASK, other)
    for mine in tensors(rows):
        assert mine.flatten(1 if mine.dim() > 1 else 0).float().tolist()
        assert (mine[MASK] == 2).all()
        assert (mine[~MASK] == 1).all()
    assert all((tensor == 1).all() for tensor in before)  # tensors are replaced, not written into


def test_replace_by_entries_where_all_fields_have_them():
    inner, other = Inner(torch.zeros(2, 3)), Inner(torch.ones(2, 3))
    mask = torch.tensor([[True, False, False], [False, False, True]])
    inner.replace(mask, other)
    assert inner.matrix.equal(mask.float())


def test_a_copy_is_not_changed_with_its_original():
    rows = make(1.0)
    second = rows.copy()
    assert type(second) is Outer
    rows.replace(MASK, make(2.0))
    rows.inner.matrix = torch.zeros(4, 3)
    assert all((tensor == 1).all() for tensor in tensors(second))


@pytest.mark.parametrize("index", [slice(1, 3), [3, 0], torch.tensor([2]), MASK])
def test_indexing(index):
    rows = make(1.0)
    rows.vector = torch.arange(4.0)
    rows.inner.matrix = torch.arange(4.0)[:, None].expand(4, 3)
    some = rows[index]
    assert some.vector.equal(torch.arange(4.0)[index])
    assert some.inner.matrix[:, 1].equal(some.vector)
    assert some.named["b"].shape == (len(some.vector), 2, 2)


def test_a_saved_state_is_carried_on():
    rows, other = make(1.0), make(2.0)
    saved = copy.deepcopy(rows.state_dict())
    assert set(saved) == {"vector", "inner", "named"}
    rows.replace(MASK, other)
    rows.load_state_dict(saved)
    assert all((tensor == 1).all() for tensor in tensors(rows))
    assert type(rows.inner) is Inner


BAD = {
    "missing": (lambda s: s.pop("inner"), r"entries .*'inner'.*, got other ones: \['inner'\]"),
    "unknown": (lambda s: s.update(extra=1), r"got other ones: \['extra'\]"),
    "shape": (
        lambda s: s["inner"].update(matrix=torch.ones(4, 2)),
        r"inner.matrix must be torch.float32 of shape \[4, 3\], got .* \[4, 2\]",
    ),
    "dtype": (
        lambda s: s.update(vector=torch.ones(4, dtype=torch.int64)),
        "vector must be torch.float32 .*, got torch.int64",
    ),
    "no tensor": (lambda s: s.update(vector=3), "vector must be .*, got int"),
    "name": (lambda s: s["named"].pop("a"), "named must have the entries"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_state_that_does_not_fit_is_refused_whole(case):
    spoil, says = BAD[case]
    rows = make(1.0)
    state = copy.deepcopy(make(2.0).state_dict())
    spoil(state)
    with pytest.raises(ValueError, match=says):
        rows.load_state_dict(state)
    assert all((tensor == 1).all() for tensor in tensors(rows))
