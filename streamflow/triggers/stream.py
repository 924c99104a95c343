"""Deliveries from a stream of a Redis or Valkey server, which may be another one than streamflow's.

Owns: what an entry is as a delivery, and when it is acknowledged. Must not: delete or trim entries: they are the
producer's. Called by: user code (makes sources), `serving.py`.

An entry is acknowledged when what it is for is stored. One whose process has died is claimed by another one when it was
idle for `idle` seconds; if the first is alive after all, both do the same, which counts once.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import TYPE_CHECKING

import anyio
import msgspec

from streamflow.errors import StoreError, UsageError
from streamflow.model.durations import seconds_of
from streamflow.server_url import redacted
from streamflow.triggers.pulled import PulledSource
from streamflow.triggers.receiver import Hung, Receiver, received_now
from streamflow.triggers.secret import Secret

if TYPE_CHECKING:
    from datetime import timedelta

    from streamflow.store.foreign_stream import Entry, ForeignStream

PAUSE = 1.0
"""Seconds before entries that could not be stored are tried again."""


class Stream(PulledSource):
    """Made by `stream`."""

    kind = "stream"

    def __init__(self, key: str, url: str | Secret | None, group: str, field: str, idle: float) -> None:
        self.key = key
        self._url = url
        self._group = group
        self._field = field.encode()
        self._idle_ms = round(idle * 1000)

    @property
    def about(self) -> str:
        url = self._url
        where = "" if url is None else f" of {url!r}" if isinstance(url, Secret) else f" of {redacted(url)}"
        return f"stream {self.key}{where}"

    async def serve(self, receiver: Receiver) -> None:
        # Imported here, because a module of flows needs nothing of the server.
        from streamflow.store.foreign_stream import open_stream

        url = self._url.read() if isinstance(self._url, Secret) else self._url or receiver.client.store.url
        consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        async with open_stream(url, self.key, self._group or receiver.trigger.name, consumer) as stream:
            look, receiver.problem = 0.0, ""
            while True:
                entries: list[Entry] = []
                if time.monotonic() >= look:
                    look = time.monotonic() + self._idle_ms / 2000
                    entries = await stream.claim(self._idle_ms)
                await self._process_all(stream, receiver, entries or await stream.read())

    async def _process_all(self, stream: ForeignStream, receiver: Receiver, entries: list[Entry]) -> None:
        """Until all are acknowledged: those that can't be stored now are tried again."""
        while entries:
            left: list[Entry] = []

            async def process(entry: Entry, left: list[Entry] = left) -> None:
                if not await self._process(receiver, entry):
                    left.append(entry)
                    return
                await stream.acknowledge(entry[0])

            async with anyio.create_task_group() as group_of_tasks:
                for entry in entries:
                    group_of_tasks.start_soon(process, entry)
            entries = left
            if entries:
                await anyio.sleep(PAUSE)

    async def _process(self, receiver: Receiver, entry: Entry) -> bool:
        """Whether it may be acknowledged."""
        entry_id, fields = entry
        if fields is None:  # deleted meanwhile
            return True
        texts = {name.decode(errors="replace"): value for name, value in fields.items()}
        body = fields.get(self._field)
        if body is None:
            body = msgspec.json.encode({name: value.decode(errors="replace") for name, value in texts.items()})
        field = self._field.decode()
        headers = {name.lower(): value.decode(errors="replace") for name, value in texts.items() if name != field}
        try:
            await receiver.receive(received_now(f"{self.key}/{entry_id.decode()}", body, headers))
        except (StoreError, Hung):
            return False
        return True


def stream(
    key: str,
    /,
    *,
    url: str | Secret | None = None,
    group: str = "",
    field: str = "payload",
    idle: float | timedelta = 60.0,
) -> Stream:
    """Entries of a stream, from its first one on, through a consumer group.

    `url`: of its server, by default streamflow's; as `sf.triggers.secret(…)` if it has a password. `group`: by default
    the trigger's name. `field`: the field that is the payload; the others are the headers. Of an entry without it the
    payload is a JSON object of all fields. `idle`: seconds or a timedelta after which what a process has taken and not
    acknowledged goes to another one. Raises `UsageError`.
    """
    if not key:
        raise UsageError("a stream needs a key")
    if isinstance(url, str) and redacted(url) != url:
        raise UsageError("the url of a stream has a password: give it as sf.triggers.secret('VARIABLE')")
    seconds = seconds_of(idle) or 0.0
    if seconds <= 0:
        raise UsageError(f"idle must be more than 0 seconds, or a timedelta, got {idle!r}")
    return Stream(key, url, group, field, seconds)
