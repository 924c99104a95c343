"""Acquires shards and reads what the last owner left: the only place where a shard's whole state is read.

Owns: acquiring shards, and the reads that recover them. Must not: decide which shards to acquire (membership does).
Called by: membership.

What is recovered: runs whose steps were in flight (`Owner._restart_running_steps` starts those steps again when it
loads the run), runs that are stuck (the code may be fixed), the next due time, messages that were not delivered from
the outbox, and the log entries that the views don't count yet. Messages in the inbox need no recovery: the new consumer
group reads them from the first one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

from streamflow.daemon.context import Context
from streamflow.daemon.relay import Relay
from streamflow.daemon.shard import OwnedShard
from streamflow.errors import StoreError
from streamflow.events import decode_transition
from streamflow.machine.transition import Due
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Status
from streamflow.store.connection import Call
from streamflow.store.kernel import Acquired, Reply
from streamflow.views.shard_views import ShardViews

_log = logging.getLogger("streamflow.takeover")

CHUNK = 64
"""Shards that are recovered in one pipeline."""
PAGE = 1000
"""Entries of a log or outbox in one answer."""

Entry = tuple[bytes, dict[bytes, bytes]]


class Takeover:
    def __init__(self, context: Context, relay: Relay) -> None:
        self._app = context.app
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._member = context.member
        self._session = context.session
        self._relay = relay

    async def acquire(self, wanted: dict[int, str]) -> list[OwnedShard]:
        """Acquire shards whose tokens are still the ones in `wanted`, and recover them.

        Those that another daemon acquired first, or that can't be read completely, are left out: no daemon works for
        them until they are acquired again. Stuck runs of workflows that this app registers are tried again.
        """
        names = list(self._app.workflows)
        numbers = list(wanted)
        known: list[bytes] = await self._store.one(Call.plain("HKEYS", self._kernel.keys.workflows))
        all_names = {name.decode(errors="replace") for name in known} | set(names)
        owned: list[OwnedShard] = []
        for first in range(0, len(numbers), CHUNK):
            chunk = numbers[first : first + CHUNK]
            calls = [
                self._kernel.acquire_shard(number, wanted[number], secrets.token_hex(16), self._member, self._session)
                for number in chunk
            ]
            answers: list[Acquired | StoreError] = await self._store.send(calls)
            acquired: list[OwnedShard] = []
            for number, answer in zip(chunk, answers, strict=True):
                if isinstance(answer, StoreError):
                    _log.error("shard %d could not be acquired, will retry: %s", number, answer)
                elif answer.code is Reply.OK:
                    self._clock.observe(answer.clock)
                    shard = OwnedShard(number, self._kernel.keys.shard(number), answer.token)
                    shard.workflows.update(all_names)
                    acquired.append(shard)
            owned += await self._recover(acquired, names)
        return owned

    async def _recover(self, shards: list[OwnedShard], workflows: list[str]) -> list[OwnedShard]:
        """Read what the last owner left. Returns the shards of which everything could be read."""
        per_shard = 3 + len(workflows)
        calls: list[Call[object]] = []
        for shard in shards:
            keys = shard.keys
            calls += (
                Call.plain("ZRANGEBYSCORE", keys.agenda, "-inf", "(0"),
                Call.plain("ZRANGEBYSCORE", keys.agenda, 0, "+inf", "WITHSCORES", "LIMIT", 0, 1),
                Call.plain("HMGET", keys.views, "offset", "partial", "base_offset", "base"),
                *(Call.plain("ZRANGE", keys.index(Status.STUCK, name), 0, -1) for name in workflows),
            )
        answers = await self._store.send(calls) if calls else []
        readable: list[OwnedShard] = []
        for position, shard in enumerate(shards):
            state = answers[position * per_shard : (position + 1) * per_shard]
            error = next((answer for answer in state if isinstance(answer, StoreError)), None)
            if error is not None:
                _log_unreadable(shard, error)
                continue
            in_flight, upcoming, views, *stuck = state
            for run_id in (*in_flight, *(run_id for listing in stuck for run_id in listing)):
                shard.inputs[run_id.decode(errors="replace")] = [Due()]
            if upcoming:
                _, due = upcoming
                shard.next_due = int(float(due))
            self._restore_views(shard, *views)
            readable.append(shard)
        readable = await self._fold_logs(readable)
        return await self._relay_outboxes(readable)

    def _restore_views(
        self,
        shard: OwnedShard,
        offset: bytes | None,
        partial: bytes | None,
        base_offset: bytes | None,
        base: bytes | None,
    ) -> None:
        """Start from the stored part, or else from the part at which the trimmed log begins, or else from zero."""
        for at, data in ((offset, partial), (base_offset, base)):
            if at is None or data is None:
                continue
            try:
                shard.views = ShardViews.decode(data)
            except DECODE_ERRORS as error:
                _log.error(
                    "the views of shard %d that were stored at log entry %s can't be decoded; its log is counted from "
                    "an older part, or from its beginning: %s",
                    shard.number,
                    at.decode(errors="replace"),
                    error,
                )
            else:
                shard.offset = shard.folded = at.decode()
                return

    async def _fold_logs(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Fold the log entries that were committed after the last stored checkpoint."""

        def fold(shard: OwnedShard, entries: list[Entry]) -> None:
            for entry_id, fields in entries:
                fold_entry(shard.views, fields)
                shard.offset = entry_id.decode()
                shard.unfolded += 1

        return await self._read_streams(shards, lambda shard: shard.keys.log, lambda shard: shard.offset, fold)

    async def _relay_outboxes(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Pass undelivered messages to the relay, oldest first: targets drop those that arrive after a later one."""
        positions: dict[int, str] = {}

        def hand_over(shard: OwnedShard, entries: list[Entry]) -> None:
            self._relay.hand_over(shard, [_outbox_message(entry_id, fields) for entry_id, fields in entries])
            if entries:
                positions[shard.number] = entries[-1][0].decode()

        return await self._read_streams(
            shards, lambda shard: shard.keys.outbox, lambda shard: positions.get(shard.number, "0-0"), hand_over
        )

    async def _read_streams(
        self,
        shards: list[OwnedShard],
        stream: Callable[[OwnedShard], str],
        position: Callable[[OwnedShard], str],
        on_page: Callable[[OwnedShard, list[Entry]], None],
    ) -> list[OwnedShard]:
        """Read each shard's stream from its position to the end, by pages. Returns the shards that could be read."""
        readable = {shard.number: shard for shard in shards}
        unfinished = shards
        while unfinished:
            pages: list[list[Entry] | StoreError] = await self._store.send(
                [Call.plain("XRANGE", stream(shard), f"({position(shard)}", "+", "COUNT", PAGE) for shard in unfinished]
            )
            more: list[OwnedShard] = []
            for shard, entries in zip(unfinished, pages, strict=True):
                if isinstance(entries, StoreError):
                    _log_unreadable(shard, entries)
                    del readable[shard.number]
                    continue
                on_page(shard, entries)
                if len(entries) == PAGE:
                    more.append(shard)
            unfinished = more
        return list(readable.values())


def _log_unreadable(shard: OwnedShard, error: StoreError) -> None:
    _log.error("shard %d can't be read, so its runs make no progress, will retry: %s", shard.number, error)


def fold_entry(views: ShardViews, fields: dict[bytes, bytes]) -> None:
    """Fold one log entry: its fields are run ids, its values transitions. Those that can't be decoded are logged and
    not counted."""
    for run_id, data in fields.items():
        try:
            views.fold(run_id.decode(), decode_transition(data))
        except DECODE_ERRORS as error:
            _log.error(
                "a log entry of run %s can't be decoded and is not counted in the views: %s",
                run_id[:64].decode(errors="replace"),
                error,
            )


def _outbox_message(entry_id: bytes, fields: dict[bytes, bytes]) -> tuple[str, int, str, str, bytes]:
    target = fields.get(b"target", b"")
    return (
        entry_id.decode(),
        int(target) if target.isdigit() else -1,
        fields.get(b"kind", b"").decode(errors="replace"),
        fields.get(b"run", b"").decode(errors="replace"),
        fields.get(b"body", b""),
    )
