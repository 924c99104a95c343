"""A command's client: connected to a server that has answered.

Owns: how long a command waits for a server's first answer, and the error when there is none.
Must not: read options, decide what a command does. Called by: all commands that need a server.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, cast

from streamflow.errors import StoreMisconfigured, StoreUnavailable, StreamflowError

if TYPE_CHECKING:
    from streamflow.client.client import Client
    from streamflow.store.connection import Store

_log = logging.getLogger("streamflow.store")

FIRST_ANSWER_SECONDS = 2.0
"""How long a server may take for its first answer, and with Sentinels, which may be about to replace it, as long as the
store has patience. After that, the store's own patience applies."""


@contextlib.asynccontextmanager
async def open_client(redis: str | None, namespace: str | None) -> AsyncGenerator[Client]:
    """A client of a server that answers. Raises `StoreUnavailable` when it doesn't, as `check_server`."""
    from streamflow.client.client import connect

    async with connect(redis, namespace=namespace) as client:
        await check_server(client.store)
        yield client


async def check_server(store: Store) -> None:
    """Return once the server answers INFO, which it does even while it loads its data. Raises `StoreUnavailable` after
    2 to 3 seconds; with Sentinels that name a primary, which doesn't answer, when the store has no patience left.
    Raises `StoreMisconfigured` for a server of a cluster with the URL of a single one."""
    from streamflow.server_url import redacted, sentinels_of
    from streamflow.store.sentinels import NoPrimary

    try:
        await _answers(store, FIRST_ANSWER_SECONDS)
    except StoreUnavailable as error:
        left = store.patience - FIRST_ANSWER_SECONDS
        if sentinels_of(store.url) is None or isinstance(error.__cause__, NoPrimary) or left <= 0:
            raise
        _log.warning("the primary of %s doesn't answer, waiting up to %g s for a failover", redacted(store.url), left)
        await _answers(store, left)


async def _answers(store: Store, seconds: float) -> None:
    import anyio

    from streamflow.server_url import cluster_of, redacted
    from streamflow.store.connection import Call

    with anyio.move_on_after(seconds + 1):
        try:
            [info] = await store.send([Call.plain("INFO", "server")], patience=seconds)
        except StreamflowError:
            raise
        except Exception as error:  # what answers speaks another protocol
            raise StoreUnavailable(f"{redacted(store.url)} is not a Redis or Valkey server: {error}") from error
        facts = cast("dict[str, object]", info if isinstance(info, dict) else {})
        if "cluster" in (facts.get("redis_mode"), facts.get("server_mode")) and cluster_of(store.url) is None:
            from streamflow.store.inspection import PART_OF_CLUSTER

            raise StoreMisconfigured(f"{redacted(store.url)}: {PART_OF_CLUSTER}")
        return
    raise StoreUnavailable(f"no answer from {redacted(store.url)} within {seconds + 1:g} s. {store.advice(None)}.")


async def server_time_ms(client: Client) -> int:
    """Now, in ms since the epoch, by the server's clock."""
    from streamflow.store.connection import Call

    seconds, micros = await client.store.one(Call.plain("TIME", near=client.keys.members))
    return int(seconds) * 1000 + int(micros) // 1000
