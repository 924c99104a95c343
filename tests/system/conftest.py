"""Fixtures of the tests of daemon, worker and client together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import pytest

import streamflow as sf
from streamflow.client import waiting
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from tests.support.secure import Certificates
from tests.support.serving import Work, client, no_unknown_keys_are_left, running_daemon, work

__all__ = ["Serve", "Work", "client", "no_unknown_keys_are_left", "serve", "work"]


class Serve(Protocol):
    """`async with serve(app, **settings) as (client, daemon)`: a daemon in this process; leaving drains it.

    With `crash=True` leaving kills it instead: its loops are cancelled on the spot, and it does not deregister.
    """

    def __call__(
        self, app: sf.App, *, crash: bool = False, **settings: Any
    ) -> AbstractAsyncContextManager[tuple[sf.Client, Daemon]]: ...


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def without_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client waits for, it learns by notifications only."""
    monkeypatch.setattr(waiting, "SWEEP_SECONDS", 3600.0)


@pytest.fixture
def serve(embedded_server: EmbeddedServer, namespace: str, client: sf.Client) -> Serve:
    @asynccontextmanager
    async def serve(
        app: sf.App, *, crash: bool = False, **settings: Any
    ) -> AsyncGenerator[tuple[sf.Client, Daemon], None]:
        async with running_daemon(app, embedded_server, namespace, crash=crash, **settings) as daemon:
            yield client, daemon

    return serve
