"""Fixtures of the manual. They start servers, daemons and workers; the tests use the public API only."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
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
