"""Durations in buckets, and the coarser counts that metrics are made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.views.histogram import Timings


@given(st.lists(st.floats(0, 1e9), max_size=50))
def test_counts_by_power_are_exact_and_the_sum_is_near(milliseconds: list[float]) -> None:
    timings = Timings()
    for ms in milliseconds:
        timings.add(ms)
    counts = timings.by_power()
    assert sum(counts) == len(milliseconds)
    for power in range(0, 60, 3):
        assert sum(counts[: power + 1]) == sum(int(ms * 1000) < 2**power for ms in milliseconds)
    total = sum(int(ms * 1000) for ms in milliseconds) / 1000
    assert timings.sum_ms == pytest.approx(total, rel=1 / 16)
