"""A PostgreSQL for the tests of one process, and a schema of its own for each test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.postgres import PostgresServer, postgres_of_this_process


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    yield from postgres_of_this_process()


@pytest.fixture
def schema() -> str:
    return f"t{uuid.uuid4().hex[:12]}"
