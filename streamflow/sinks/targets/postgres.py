"""Events into PostgreSQL: a table of events and one of runs, each event exactly once.

Owns: the transaction of a batch, and what becomes of an event that the database refuses. Must not: acknowledge
anything, delete or change a row that it has not written. Called by: `streamflow.sinks`, `streamflow sink postgres`.

One transaction has the events, what they change of their runs, and the position of the shard. An event that comes
again, because this process was killed between commit and acknowledgement or its shard moved to another one, is there
by its id: it is not inserted, and changes its run no second time. The row of the position is written first, so two
processes that write the same shard take turns.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from msgspec import Meta

from streamflow.errors import UsageError
from streamflow.sinks import postgres_schema as sql
from streamflow.sinks.columns import columns_of, json_without_nul
from streamflow.sinks.run_rows import run_rows
from streamflow.sinks.sink import Sink, TargetError, required
from streamflow.text import recordable

if TYPE_CHECKING:
    from streamflow.client.subscription import EventBatch

STATEMENT_SECONDS = 60
"""After so long the server gives up a statement, a lock that it waits for included."""
BATCH_SECONDS = 150.0
CONNECTION: dict[str, Any] = {
    "connect_timeout": 10,
    "application_name": "streamflow sink",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""So that a server which is gone without a word is noticed. What the URL says has precedence."""
LOCK = 0x73660051
"""Advisory lock of who creates tables."""
TOO_COMPLEX = "54"
"""Class of SQLSTATE: a limit of the server, such as a value that is nested too deep."""

_log = logging.getLogger("streamflow.sinks.postgres")


class Postgres(Sink):
    """Write events into tables of PostgreSQL, each exactly once.

    URL is a connection string of libpq, as in postgresql://etl@db/warehouse; what it leaves out comes from PGHOST,
    PGPASSWORD, ~/.pgpass and so on. The tables events, runs and positions are created in the schema --into if they
    aren't there. An event and the position in its shard's log are written in one transaction.

    \b
    Example:
      streamflow sink postgres postgresql://etl@db/warehouse
    """

    max_events = 2000

    def __init__(
        self,
        url: Annotated[
            str, Meta(title="URL", description="Connection string", extra={"env": "STREAMFLOW_SINK_POSTGRES"})
        ] = "",
        *,
        into: Annotated[str, Meta(title="NAME", description="Schema of the tables")] = "streamflow",
        schema: Annotated[bool, Meta(description="Only print the statements that create the tables")] = False,
    ) -> None:
        self._url = url
        self._schema = sql.checked_schema(into)
        self._only_ddl = schema
        self._connection: Any = None
        self._psycopg: Any = None

    @property
    def ddl(self) -> str:
        """The statements that create the tables."""
        return sql.DDL.format(schema=self._schema)

    async def instead(self) -> str | None:
        return self.ddl if self._only_ddl else None

    async def open(self) -> None:
        psycopg = self._psycopg = required("psycopg", "postgres")
        try:
            given = psycopg.conninfo.conninfo_to_dict(self._url)
        except psycopg.ProgrammingError:
            raise UsageError("the connection string can't be read: use postgresql://user@host/database") from None
        try:
            self._connection = await psycopg.AsyncConnection.connect(
                **{**CONNECTION, **given}, autocommit=True, prepare_threshold=None
            )
            await self._connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
            await self._create_tables()
        except psycopg.Error as error:
            raise TargetError(_said(error)) from error

    async def write(self, batch: EventBatch) -> None:
        psycopg = self._psycopg
        rows = [columns_of(event) for event in batch.events]
        try:
            with anyio.fail_after(BATCH_SECONDS):
                try:
                    await self._insert(batch, rows)
                except psycopg.Error as error:
                    if not _is_of_data(psycopg, error):
                        raise
                    await self._replace_refused(rows)
                    await self._insert(batch, rows)
        except TimeoutError:
            raise TargetError(f"no answer within {BATCH_SECONDS:g} s") from None
        except psycopg.Error as error:
            raise TargetError(_said(error)) from error

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with anyio.move_on_after(5):
                await connection.close()

    async def _create_tables(self) -> None:
        """Only if one is missing: this user may not be allowed to."""
        names = [f"{self._schema}.{table}" for table in sql.TABLES]
        query = "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(%s::text[]) AS name"
        [complete] = await (await self._connection.execute(query, (names,))).fetchone()
        if complete:
            return
        async with self._connection.transaction():
            await self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            await self._connection.execute(self.ddl)
        _log.info("created what was missing in the schema %s", self._schema)

    async def _insert(self, batch: EventBatch, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        events = json_without_nul(rows).decode()
        connection, names = self._connection, {"schema": self._schema}
        turn = (self.group, batch.shard, batch.offset, rows[-1]["at"])
        async with connection.transaction():
            await connection.execute(sql.TAKE_TURN.format(**names), turn)
            cursor = await connection.execute(sql.INSERT_EVENTS.format(**names), (events,))
            inserted = {event_id for (event_id,) in await cursor.fetchall()}
            if not inserted:
                return
            new = [event for event in batch.events if event.id in inserted]
            runs = run_rows(new, {row["id"]: row for row in rows})
            await connection.execute(sql.UPDATE_RUNS.format(**names), (json_without_nul(runs).decode(),))
            await connection.execute(sql.COUNT.format(**names), (len(new), self.group, batch.shard))

    async def _replace_refused(self, rows: list[dict[str, Any]]) -> None:
        """The data of events that the database can't read, however that came to be: their rows say it instead."""
        for row in rows:
            data = json_without_nul(row["data"])
            try:
                await self._connection.execute("SELECT %s::jsonb", (data.decode(),))
            except self._psycopg.Error as error:
                if not _is_of_data(self._psycopg, error):
                    raise
                reason = _said(error)
                _log.warning("the data of event %s is left out, because Postgres refuses it: %s", row["id"], reason)
                row["data"] = {"refused": reason, "bytes": len(data)}


def _is_of_data(psycopg: Any, error: Any) -> bool:
    return isinstance(error, psycopg.DataError) or (error.sqlstate or "").startswith(TOO_COMPLEX)


def _said(error: Exception) -> str:
    """The first line of what the server or libpq says, which has no password."""
    return recordable(str(error).strip().partition("\n")[0], 500)
