"""Processes whose clock is ahead: libfaketime's library steps the time of day, and leaves the monotonic clock alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

LIBRARY = "libfaketime.so.1"


def later(days: int) -> dict[str, str]:
    """The environment of a process that begins so much later. Without the library the test is skipped, but not in CI,
    which installs it."""
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))
    if not found:
        assert not os.environ.get("CI"), "CI installs libfaketime: see .ci/run"
        pytest.skip("libfaketime is not installed")
    return {"LD_PRELOAD": str(found[-1]), "FAKETIME": f"+{days}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
