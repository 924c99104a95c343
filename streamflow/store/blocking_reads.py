"""Blocking reads of a queue's partitions, on a dedicated connection.

Owns: XREADGROUP and how to interrupt it. Must not: know what the entries mean.
Called by: `worker/reader.py`.

One XREADGROUP over many streams works on one server only; on a cluster its streams would have to share a slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamflow.errors import StoreUnavailable
from streamflow.store.connection import LOST, Call, Store, redacted, stream_entries

_GONE = ("NOGROUP", "UNBLOCKED", "WRONGTYPE")

Entry = tuple[str, str, dict[bytes, bytes] | None]
"""Stream, entry id, fields (None when the entry was deleted while it was pending)."""


class GroupGone(Exception):
    """A stream's consumer group doesn't exist any more: the keys were deleted."""


class QueueConnection:
    """A dedicated connection that reads streams as one consumer of a consumer group.

    `group` has the same name in every stream. A read waits at most `block_ms`.
    """

    def __init__(self, store: Store, group: str, block_ms: int, consumer: str) -> None:
        self._store = store
        self._group = group
        self._consumer = consumer
        self._block_ms = block_ms
        self._link = store.link()
        self._link.wants_id = True
        self._blocked = False

    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        """New entries of all streams, or with `pending` those that were read before and not acknowledged.

        At most `count` entries of each stream. Waits for new entries, unless `wait` is False.

        Raises `StoreUnavailable` when the connection is lost, `GroupGone` when one of the groups is missing.
        """
        block = ["BLOCK", self._block_ms] if wait and not pending else []
        starts = ["0" if pending else ">"] * len(streams)
        group = ("GROUP", self._group, self._consumer)
        command = ["XREADGROUP", *group, "COUNT", count, *block, "STREAMS", *streams, *starts]
        self._blocked = bool(block)
        try:
            (reply,) = await self._link.exchange([command], self._block_ms / 1000 if block else 0.0)
        except LOST as error:
            self._store.note_refusal(error)
            raise StoreUnavailable(f"could not read streams from {redacted(self._store.url)}: {error}") from error
        finally:
            self._blocked = False
        if isinstance(reply, Exception):
            text = str(reply)
            if not self._store.note_refusal(reply) and any(word in text for word in _GONE):
                raise GroupGone(text) from reply
            raise StoreUnavailable(f"could not read streams: {text}") from reply
        return [
            (stream.decode(), entry_id.decode(), fields)
            for stream, entries in stream_entries(reply)
            for entry_id, fields in entries
        ]

    async def interrupt(self) -> None:
        """Make a blocked `read` return at once, without entries."""
        client_id = self._link.client_id
        if client_id is not None and self._blocked and self._link.is_open:
            await self._store.send([Call.plain("CLIENT", "UNBLOCK", client_id)])
