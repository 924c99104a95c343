"""Which processes serve which triggers, and what is wrong with them, as they say themselves.

Owns: the reports, which are fields of one hash of the namespace, and when one is too old. Must not: serve. Called by:
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
from streamflow.triggers.quarantine import pairs_of
from streamflow.triggers.receiver import Receiver

EVERY_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Seconds without a report after which a process counts as gone, or as one that hangs."""
FORGOTTEN_SECONDS = 600.0
"""Seconds after which others remove the report of a process that was killed."""
LEAVE_SECONDS = 2.0


class Served(msgspec.Struct, array_like=True):
    """A trigger in a process. `received`: deliveries that were stored or quarantined since the process began; `last`:
    when the last one was (ms since the epoch, 0 for none)."""

    name: str
    kind: str
    source: str
    received: int
    quarantined: int
    last: int
    problem: str


class _Report(msgspec.Struct, array_like=True):
    host: str
    pid: int
    at: int
    triggers: list[Served]


class ServedHere(msgspec.Struct, frozen=True):
    """A row of `trigger status`. `age`: seconds since the process has reported."""

    host: str
    pid: int
    age: float
    served: Served

    @property
    def problem(self) -> str:
        if self.age > STALE_SECONDS:
            return f"no report for {self.age:.0f} s: the process was killed, or hangs"
        return self.served.problem


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
            report = _Report(socket.gethostname(), os.getpid(), _now(), triggers)
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
    found = [
        ServedHere(report.host, report.pid, max(0, _now() - report.at) / 1000, one)
        for _, report in await _read(client)
        for one in report.triggers
    ]
    return sorted(found, key=lambda row: (row.served.name, row.host, row.pid))


async def _read(client: Client) -> list[tuple[str, _Report]]:
    reply: Any = await client.store.one(Call.plain("HGETALL", client.keys.triggers))
    found: list[tuple[str, _Report]] = []
    for field, value in pairs_of(reply):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # of another release
            found.append((field.decode(), msgspec.msgpack.decode(value, type=_Report)))
    return found


async def _store(client: Client, fields: Iterable[tuple[str, bytes]]) -> None:
    puts = [Put(client.keys.triggers, field, value) for field, value in fields]
    if puts:
        await client.store.one(client.kernel.store_records(puts))


def _is_forgotten(report: _Report) -> bool:
    return _now() - report.at > FORGOTTEN_SECONDS * 1000


def _now() -> int:
    return time.time_ns() // 1_000_000
