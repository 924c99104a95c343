"""Fixtures of the tests of machines."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["live", "replayed"])
def crash(request: pytest.FixtureRequest) -> bool:
    """For a `Run` of `machine_driver.py`: with one machine, and with one that is made again before every transition."""
    return request.param
