"""A stream of somebody else's server: the connection is closed also when that server answers nothing any more."""

from __future__ import annotations

import gc
import os
import signal
import time
import warnings

import pytest

from streamflow.embedded.server import EmbeddedServer
from streamflow.store.foreign_stream import LEAVE_SECONDS, open_stream

pytestmark = pytest.mark.anyio


async def test_leaving_a_server_that_hangs_takes_seconds_and_leaves_no_socket() -> None:
    async with EmbeddedServer() as server:
        gc.collect()
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            async with open_stream(server.url, "orders", "group", "one") as stream:
                assert await stream.claim(1000) == []
                os.kill(server.pid, signal.SIGSTOP)
                begin = time.monotonic()
            took = time.monotonic() - begin
            os.kill(server.pid, signal.SIGCONT)
            del stream
            gc.collect()
        assert LEAVE_SECONDS * 0.9 < took < 3 * LEAVE_SECONDS, "it has waited for the server, and not for long"
        assert [str(one.message) for one in seen if "unclosed" in str(one.message)] == []
