"""Fixtures of the unit tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["live", "replayed"])
def crash(request: pytest.FixtureRequest) -> bool:
    """For a `Run` of `driving.py`: with one machine, and with one that is made again from the record before every
    transition."""
    return request.param
