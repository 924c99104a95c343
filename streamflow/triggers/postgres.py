"""Deliveries from a table of PostgreSQL into which applications insert what is to be started, with their own rows.

Owns: what a row is as a delivery, and when it is deleted. Must not: read other tables. Called by: user code (makes
sources), `serving.py`.

A row is locked while it is processed, and deleted when what it is for is stored, in one transaction: if this process
dies in between, the row is there, and another process takes it, under the same key. NOTIFY is only the bell.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import msgspec

from streamflow.errors import UsageError
from streamflow.model.durations import seconds_of
from streamflow.text import recordable
from streamflow.triggers import postgres_outbox as sql
from streamflow.triggers.postgres_connection import checked_channel, checked_url, listen, open_connection
from streamflow.triggers.pulled import (
    MAX_BODY,
    STORE_PAUSE,
    PulledSource,
    SourceFailed,
    checked_max_body,
    is_stored,
    process_at_once,
)
from streamflow.triggers.quarantine import BEGINNING_BYTES
from streamflow.triggers.receiver import Receiver, received_now
from streamflow.triggers.secret import Secret

if TYPE_CHECKING:
    from datetime import timedelta

BATCH = 64


class _Row(NamedTuple):
    """`size`: bytes of the payload, which may be more than `payload` has."""

    id: int
    key: str
    size: int
    payload: str
    headers: str


class Postgres(PulledSource):
    """Made by `postgres`."""

    kind = "postgres"

    def __init__(self, channel: str, url: str | Secret, table: str, poll: float, max_body: int) -> None:
        self.channel = channel
        self.table = table
        self._url = url
        self._poll = poll
        self._max_body = max_body

    @property
    def about(self) -> str:
        where = f" of {self._url!r}" if isinstance(self._url, Secret) else ""
        return f"rows for {self.channel} in the table {self.table}{where}"

    async def serve(self, receiver: Receiver) -> None:
        async with open_connection(self._url) as connection:
            [found] = await (await connection.execute(sql.EXISTS, (self.table,))).fetchone()
            if not found:
                raise SourceFailed(
                    f"there is no table {self.table}: create it with what `streamflow trigger postgres-schema` prints"
                )
            await listen(connection, self.channel)
            receiver.problem = ""
            while True:
                taken, left = await self._process_some(receiver, connection)
                if left:
                    await anyio.sleep(STORE_PAUSE)
                # What has rung meanwhile ends the wait at once; with more rows to take it is only removed.
                waiting = {"timeout": 0} if left or taken == BATCH else {"timeout": self._poll, "stop_after": 1}
                async with aclosing(connection.notifies(**waiting)) as rings:
                    async for _ in rings:
                        pass

    async def _process_some(self, receiver: Receiver, connection: Any) -> tuple[int, int]:
        """How many rows were taken, and how many of these have to come again."""
        names = {"table": self.table}
        values = {
            "channel": self.channel,
            "most": self._max_body,
            "beginning": BEGINNING_BYTES,
            "limit": BATCH,
        }
        async with connection.transaction():
            cursor = await connection.execute(sql.TAKE.format(**names), values)
            rows = [_Row(*row) for row in await cursor.fetchall()]
            left = await process_at_once(lambda row: self._process(receiver, row), rows)
            done = [row for row in rows if row not in left]
            for row in done:
                if row.size > self._max_body:
                    reason = f"its payload has {row.size} bytes, more than max_body={self._max_body}"
                    await connection.execute(sql.REFUSE.format(**names), (reason, row.id))
            processed = [row.id for row in done if row.size <= self._max_body]
            if processed:
                await connection.execute(sql.DELETE.format(**names), (processed,))
        return len(rows), len(left)

    async def _process(self, receiver: Receiver, row: _Row) -> bool:
        delivery_id = f"{self.channel}/{recordable(row.key, 4000)}"
        body = row.payload.encode()
        if row.size > self._max_body:
            where = f"the table {self.table}, as the row with the id {row.id}"
            return await is_stored(receiver.set_aside_long(delivery_id, body, row.size, self._max_body, where))
        return await is_stored(receiver.receive(received_now(delivery_id, body, _headers(row.headers))))


def _headers(text: str) -> dict[str, str]:
    """Of an object; of anything else none."""
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
    return {
        name.lower(): value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in found.items()
    }


def postgres(
    channel: str,
    /,
    *,
    url: str | Secret = "",
    table: str = sql.TABLE,
    poll: float | timedelta = 5.0,
    max_body: int = MAX_BODY,
) -> Postgres:
    """Rows that applications insert into `table` for this channel, each of which is one delivery.

    `streamflow trigger postgres-schema` prints the statements that create the table. `url`: a connection string of
    libpq; as `sf.triggers.secret(…)` if it has a password; what it leaves out comes from PGHOST, PGPASSWORD and so on.
    `poll`: seconds or a timedelta after which the table is looked at when nothing was announced. `max_body`: bytes, at
    most 2 MB; a row with a longer payload stays, and the beginning goes into the quarantine. Raises `UsageError`.

    >>> @app.trigger(sf.triggers.postgres("orders", url=sf.triggers.secret("DATABASE_URL")))
    """
    seconds = seconds_of(poll) or 0.0
    if seconds <= 0:
        raise UsageError(f"poll must be more than 0 seconds, or a timedelta, got {poll!r}")
    return Postgres(
        checked_channel(channel), checked_url(url), sql.checked_table(table), seconds, checked_max_body(max_body)
    )
