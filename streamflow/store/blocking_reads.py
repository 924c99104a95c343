"""Blocking reads of many inboxes, or of a queue's partitions, on a dedicated connection.

Owns: XREADGROUP and how to interrupt it. Must not: know what the entries mean.
Called by: `daemon/inbox.py`, `worker/reader.py`.

One XREADGROUP over many streams works on one server only; on a cluster its streams would have to share a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from redis import exceptions as redis_errors

from streamflow.errors import StoreUnavailable
from streamflow.store.connection import Call, Store, redacted

CONSUMER = "owner"
"""The consumer name of every owner: the consumer group of an owner's session has no other consumer."""

Entry = tuple[str, str, dict[bytes, bytes] | None]
"""Stream, entry id, fields (None when the entry was deleted while it was pending)."""


class GroupGone(Exception):
    """A stream's consumer group doesn't exist any more: another daemon acquired the shard, or the keys were deleted."""


class InboxConnection:
    """A dedicated connection that reads streams as one consumer of a consumer group.

    `group` has the same name in every stream: a daemon's is that of its session, with one consumer; a worker is one
    `consumer` of many. A read waits at most `block_ms`.
    """

    def __init__(self, store: Store, group: str, block_ms: int, consumer: str = CONSUMER) -> None:
        self._store = store
        self._group = group
        self._consumer = consumer
        self._block_ms = block_ms
        self._client = store.dedicated(timeout=block_ms / 1000 + 5)
        self._client_id: int | None = None
        self._blocked = False

    async def read(self, streams: Sequence[str], count: int, *, pending: bool, wait: bool = True) -> list[Entry]:
        """New entries of all streams, or with `pending` those that were read before and not acknowledged.

        At most `count` entries of each stream. Waits for new entries, unless `wait` is False.

        Raises `StoreUnavailable` when the connection is lost, `GroupGone` when one of the groups is missing.
        """
        block = ["BLOCK", self._block_ms] if wait and not pending else []
        starts = ["0" if pending else ">"] * len(streams)
        try:
            if self._client_id is None:
                self._client_id = int(await self._client.client_id())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            self._blocked = bool(block)
            group = ("GROUP", self._group, self._consumer)
            command = ["XREADGROUP", *group, "COUNT", count, *block, "STREAMS", *streams, *starts]
            reply = cast("Any", await self._client.execute_command(*command))  # pyright: ignore[reportUnknownMemberType]
        except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError) as error:
            self._client_id = None
            raise StoreUnavailable(f"could not read streams from {redacted(self._store.url)}: {error}") from error
        except redis_errors.ResponseError as error:
            if "NOGROUP" in str(error) or "UNBLOCKED" in str(error) or "WRONGTYPE" in str(error):
                raise GroupGone(str(error)) from error
            raise StoreUnavailable(f"could not read streams: {error}") from error
        finally:
            self._blocked = False
        return [
            (stream.decode(), entry_id.decode(), fields)
            for stream, entries in reply or ()
            for entry_id, fields in entries
        ]

    async def interrupt(self) -> None:
        """Make a blocked `read` return at once, without entries."""
        if self._client_id is not None and self._blocked:
            await self._store.send([Call.plain("CLIENT", "UNBLOCK", self._client_id)])
