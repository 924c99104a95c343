"""A connection to PostgreSQL for a trigger: opened, said of what is wrong, closed whatever happens.

Owns: what a connection string may be, time-outs. Must not: know what is read. Called by: `postgres.py`,
`postgres_notify.py`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import anyio

from streamflow.errors import UsageError
from streamflow.text import recordable
from streamflow.triggers.pulled import SourceFailed, required
from streamflow.triggers.secret import Secret

STATEMENT_SECONDS = 60
CLOSE_SECONDS = 5.0
CONNECTION: dict[str, Any] = {
    "connect_timeout": 10,
    "application_name": "streamflow trigger",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""So that a server which is gone without a word is noticed. What the URL says has precedence."""
LONGEST_NAME = 63
"""Bytes of a channel's name, as of all names in PostgreSQL."""
_PASSWORD = re.compile(r"\bpassword\s*=")


def checked_url(url: str | Secret) -> str | Secret:
    """Raises `UsageError` for a password in code."""
    if isinstance(url, str) and (_PASSWORD.search(url) or ("://" in url and urlsplit(url).password)):
        raise UsageError(
            "the url has a password: give it as sf.triggers.secret('VARIABLE'), or the password as PGPASSWORD"
        )
    return url


def checked_channel(channel: str) -> str:
    """Raises `UsageError`."""
    if not channel or "\0" in channel or len(channel.encode()) > LONGEST_NAME:
        raise UsageError(f"a channel's name has 1 to {LONGEST_NAME} bytes, got {channel!r}")
    return channel


@contextlib.asynccontextmanager
async def open_connection(url: str | Secret) -> AsyncGenerator[Any]:
    """A connection of psycopg, each statement a transaction of its own. Raises `SourceFailed` instead of what psycopg
    raises in the block, and `UsageError` without psycopg."""
    psycopg = required("psycopg", "postgres")
    try:
        given = psycopg.conninfo.conninfo_to_dict(url.read() if isinstance(url, Secret) else url)
    except psycopg.ProgrammingError:
        raise UsageError("the connection string can't be read: use postgresql://user@host/database") from None
    connection: Any = None
    try:
        connection = await psycopg.AsyncConnection.connect(
            **{**CONNECTION, **given}, autocommit=True, prepare_threshold=None
        )
        await connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
        yield connection
    except psycopg.Error as error:
        raise SourceFailed(_said(error)) from None
    finally:
        if connection is not None:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await connection.close()


async def listen(connection: Any, channel: str) -> None:
    sql = required("psycopg.sql", "postgres")
    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))


def _said(error: Exception) -> str:
    """The first line of what the server or libpq says, which has no password."""
    return recordable(str(error).strip().partition("\n")[0], 500)
