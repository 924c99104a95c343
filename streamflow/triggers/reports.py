"""Which processes serve which triggers, and what is wrong with them, as they say themselves.

Owns: writing and reading the reports (`store/served_triggers.py`), and removing old ones. Must not: serve. Called by:
`serving.py` (writes), the command `trigger status` (reads).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import anyio
import msgspec

from streamflow.client.client import Client
from streamflow.errors import StoreError
from streamflow.store.connection import Call
from streamflow.store.kernel import Put
from streamflow.store.served_triggers import Report, Served, ServedHere, decode_reports, rows_of
from streamflow.triggers.quarantine import pairs_of
from streamflow.triggers.receiver import Receiver

EVERY_SECONDS = 5.0
FORGOTTEN_SECONDS = 600.0
"""Seconds after which others remove the report of a process that was killed."""
LEAVE_SECONDS = 2.0


@contextlib.asynccontextmanager
async def reporting(client: Client, receivers: Sequence[Receiver]) -> AsyncGenerator[None]:
    """In the block, this process reports every few seconds; at its end the report is removed."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_reporting, client, name, receivers)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
            with anyio.move_on_after(LEAVE_SECONDS, shield=True), contextlib.suppress(StoreError):
                await _store(client, [(name, b"")])


async def _keep_reporting(client: Client, name: str, receivers: Sequence[Receiver]) -> None:
    look = 0.0
    while True:
        with contextlib.suppress(StoreError):  # what is wrong with the server, the triggers say
            triggers = [served(receiver) for receiver in receivers]
            report = Report(socket.gethostname(), os.getpid(), _now(), triggers)
            await _store(client, [(name, msgspec.msgpack.encode(report))])
            if time.monotonic() >= look:
                look = time.monotonic() + FORGOTTEN_SECONDS
                await _store(client, [(field, b"") for field, report in await _read(client) if _is_forgotten(report)])
        await anyio.sleep(EVERY_SECONDS)


def served(receiver: Receiver) -> Served:
    source = receiver.trigger.source
    return Served(
        receiver.trigger.name,
        source.kind,
        source.about,
        receiver.received,
        receiver.quarantined,
        receiver.last,
        receiver.problem,
    )


async def read_reports(client: Client) -> list[ServedHere]:
    """By trigger. Raises the errors of the client."""
    return rows_of(await _read(client), _now())


async def _read(client: Client) -> list[tuple[str, Report]]:
    reply: Any = await client.store.one(Call.plain("HGETALL", client.keys.triggers))
    return decode_reports(pairs_of(reply))


async def _store(client: Client, fields: Iterable[tuple[str, bytes]]) -> None:
    puts = [Put(client.keys.triggers, field, value) for field, value in fields]
    if puts:
        await client.store.one(client.kernel.store_records(puts))


def _is_forgotten(report: Report) -> bool:
    return _now() - report.at > FORGOTTEN_SECONDS * 1000


def _now() -> int:
    return time.time_ns() // 1_000_000
