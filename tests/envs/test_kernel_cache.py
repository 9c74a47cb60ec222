"""When kernels are compiled, and where there is no place to keep them."""

from __future__ import annotations

import pytest
from numba.core import caching

from envs.batched import products
from envs.batched.compiled import train_rows, validate_rows
from tests.support.populations import all_rows, make_every_population, minibatches


def test_kernels_work_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a read-only installation of a user without a home that can be written."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    products._say_that_it_is_not_cached.cache_clear()
    for _ in range(2):
        assert products.cached_kernel(lambda x: x + 1)(1) == 2
    (record,) = caplog.records
    assert "NUMBA_CACHE_DIR" in record.getMessage()


def test_another_layout_of_what_is_given_compiles_nothing_anew() -> None:
    """Of which a compilation takes half a minute."""
    results, signatures = [], []
    for turned in (False, True):
        made, growth = make_every_population()
        for name, entry in vars(growth).items():
            setattr(growth, name, entry.t().contiguous().t() if turned else entry.contiguous())
        made.train_on(growth, minibatches(len(made.params)))
        made.validate(growth, all_rows(made), ablate=True)
        results.append(made.params)
        signatures.append([kernel.signatures for kernel in (train_rows, validate_rows)])
    assert signatures[0] == signatures[1]
    assert results[0].equal(results[1])
