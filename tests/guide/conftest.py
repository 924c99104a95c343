"""Fixtures of the manual. They start servers, daemons and workers; the tests use the public API only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import psycopg
import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from streamflow.triggers.postgres_outbox import ddl
from tests.support.kafka import mock_brokers
from tests.support.postgres import postgres_of_this_process
from tests.support.pulling import receiving
from tests.support.serving import Work, client, no_unknown_keys_are_left, running_daemon, work

__all__ = ["Serve", "Work", "client", "no_unknown_keys_are_left", "serve", "work"]


class Serve(Protocol):
    """`async with serve(app, **settings) as client`: a daemon in this process; leaving drains it.

    With `crash=True` leaving kills it instead: its loops are cancelled on the spot, and it does not deregister.
    """

    def __call__(
        self, app: sf.App, *, crash: bool = False, **settings: Any
    ) -> AbstractAsyncContextManager[sf.Client]: ...


@pytest.fixture
def serve(embedded_server: EmbeddedServer, namespace: str, client: sf.Client) -> Serve:
    @asynccontextmanager
    async def serve(app: sf.App, *, crash: bool = False, **settings: Any) -> AsyncGenerator[sf.Client, None]:
        async with running_daemon(app, embedded_server, namespace, crash=crash, **settings):
            yield client

    return serve


@pytest.fixture
def receive() -> Callable[..., AbstractAsyncContextManager[None]]:
    """`async with receive(client, trigger)` serves a trigger, as `streamflow trigger run` does."""
    return receiving


@pytest.fixture
def redis_url(embedded_server: EmbeddedServer) -> str:
    return embedded_server.url


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Brokers of Kafka, played by librdkafka in this process."""
    with mock_brokers() as names:
        yield names


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A database of PostgreSQL in which `streamflow trigger postgres-schema | psql` was run."""
    for server in postgres_of_this_process():
        with psycopg.connect(server.url) as connection:
            connection.execute(ddl().encode())
        yield server.url
