"""What tests with processes share: a client of the test's namespace, and the journal in which flows note executions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.serving import client

__all__ = ["client"]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.touch()
    return path
