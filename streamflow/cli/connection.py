"""A command's client: connected to a server that has answered.

Owns: how long a command waits for a server's first answer, and the error when there is none.
Must not: read options, decide what a command does. Called by: all commands that need a server.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, cast

from streamflow.errors import StoreMisconfigured, StoreUnavailable, StreamflowError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.store.connection import Store

FIRST_ANSWER_SECONDS = 2.0
"""How long a server may take for its first answer. After that, the store's own patience applies."""


@contextlib.asynccontextmanager
async def open_client(redis: str | None, namespace: str | None) -> AsyncGenerator[Client]:
    """A client of a server that answers. Raises `StoreUnavailable` within about 2 seconds when it doesn't."""
    from streamflow.client.client import connect

    async with connect(redis, namespace=namespace) as client:
        await check_server(client.store)
        yield client


async def check_server(store: Store) -> None:
    """Return once the server answers INFO, which it does even while it loads its data. Raises `StoreUnavailable`, and
    `StoreMisconfigured` for one of a cluster with the URL of a single one."""
    import anyio

    from streamflow.server_url import cluster_of, redacted
    from streamflow.store.connection import Call

    with anyio.move_on_after(FIRST_ANSWER_SECONDS + 1):
        try:
            [info] = await store.send([Call.plain("INFO", "server")], patience=FIRST_ANSWER_SECONDS)
        except StreamflowError:
            raise
        except Exception as error:  # what answers speaks another protocol
            raise StoreUnavailable(f"{redacted(store.url)} is not a Redis or Valkey server: {error}") from error
        facts = cast("dict[str, object]", info if isinstance(info, dict) else {})
        if "cluster" in (facts.get("redis_mode"), facts.get("server_mode")) and cluster_of(store.url) is None:
            from streamflow.store.inspection import PART_OF_CLUSTER

            raise StoreMisconfigured(f"{redacted(store.url)}: {PART_OF_CLUSTER}")
        return
    raise StoreUnavailable(
        f"no answer from {redacted(store.url)} within {FIRST_ANSWER_SECONDS + 1:g} s. {store.advice(None)}."
    )


async def server_time_ms(client: Client) -> int:
    """Now, in ms since the epoch, by the server's clock."""
    from streamflow.store.connection import Call

    seconds, micros = await client.store.one(Call.plain("TIME", near=client.keys.members))
    return int(seconds) * 1000 + int(micros) // 1000
