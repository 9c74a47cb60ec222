"""Compiled kernels where there is no place to keep them."""

from __future__ import annotations

import pytest
from numba.core import caching

from envs.batched import products


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
