"""Large payloads of a client's calls: joined when they are read, stored before a message refers to them.

Owns: the client's way to the storage of the namespace, and what happens when it has none. Must not: know runs.
Called by: client, histories, subscriptions.

A client that can't use the storage still can start and signal runs: it sends the payload itself, and the run's owner
stores it. What it reads it has to fetch, so that raises `ArchiveError`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from streamflow.archive.payloads import Payloads, open_payloads
from streamflow.errors import ArchiveError, UsageError
from streamflow.events import AnyEvent, Transition, decode_transition
from streamflow.model.references import cut, has_mark, join, references_in, week_of

T = TypeVar("T")

_log = logging.getLogger("streamflow.storage")
_encode = msgspec.msgpack.Encoder().encode
UPLOAD = 10.0
"""Seconds that a call waits for the storage to take a payload; then it sends the payload itself."""
REST = 60.0
"""Seconds for which it then doesn't try again."""


class ClientPayloads:
    """Of one session. `url`: of the namespace's archive, or where it is for this client."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self._namespace = namespace
        self._payloads: Payloads | None = None
        self._storing: Payloads | None = None
        self._rests_until = 0.0

    async def joined(self, values: Sequence[bytes]) -> list[bytes]:
        """The values with what their references stand for. Raises `ArchiveError`, `ArchiveDamaged`."""
        wanted = list({one: None for value in values if has_mark(value) for one in references_in(value)})
        if not wanted:
            return list(values)
        try:
            payloads = self._payloads = self._payloads or open_payloads(self.url, self._namespace)
        except UsageError as error:
            raise ArchiveError(str(error)) from None
        if payloads is None:
            raise ArchiveError(f"a payload is in the storage of namespace {self._namespace}, which has none any more")
        found = await payloads.fetch(wanted)
        return [join(value, found) for value in values]

    async def joined_event(self, event: AnyEvent) -> AnyEvent:
        data = _encode(event)
        if not has_mark(data):
            return event
        [transition] = await self.joined_transitions([Transition(0, [event])])
        return transition.events[0]

    async def joined_transitions(self, history: Sequence[Transition]) -> list[Transition]:
        return [decode_transition(data) for data in await self.joined([_encode(one) for one in history])]

    async def smaller(self, body: bytes, limit: int, depth: int) -> bytes:
        """The body of a message with references in the place of its large payloads, which are stored. `limit`: of the
        namespace, not 0."""
        if len(body) < limit or time.monotonic() < self._rests_until:
            return body
        small, parts = cut(body, limit, week_of(time.time_ns() // 1_000_000), depth)
        if not parts:
            return body
        try:
            self._storing = self._storing or open_payloads(self.url, self._namespace, timeout=UPLOAD)
            if self._storing is None:
                return body
            await self._storing.store(parts)
        except (ArchiveError, UsageError) as error:
            self._rests_until = time.monotonic() + REST
            _log.warning("large payloads are sent to the server, because storage doesn't take them: %s", error)
            return body
        return small
