"""Takes shards and reads what the last owner left: the only place where a shard's whole state is read.

Owns: the take and the recovery reads. Must not: decide which shards to take (membership does).
Called by: membership.

What is found again: runs whose steps were in flight (`Owner._restart_running_steps` starts those steps again when it
loads the run), runs that are stuck (the code may be fixed), the next due time, messages that didn't leave the outbox,
and the log that the views don't count yet. Messages in the inbox come by themselves: the new consumer group reads them
from the first one.
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
"""Entries of a log or outbox that are read at once."""

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

    async def take(self, wanted: dict[int, str]) -> list[OwnedShard]:
        """Take shards whose tokens are still the ones in `wanted`, and recover them.

        Those that another daemon took first, or that can't be read completely, are left out: nobody works for them
        until they are taken again. Stuck runs of workflows that this app registers are tried again.
        """
        names = list(self._app.workflows)
        numbers = list(wanted)
        known: list[bytes] = await self._store.one(Call.plain("HKEYS", self._kernel.keys.workflows))
        everything = {name.decode(errors="replace") for name in known} | set(names)
        owned: list[OwnedShard] = []
        for first in range(0, len(numbers), CHUNK):
            chunk = numbers[first : first + CHUNK]
            calls = [
                self._kernel.acquire_shard(number, wanted[number], secrets.token_hex(16), self._member, self._session)
                for number in chunk
            ]
            answers: list[Acquired | StoreError] = await self._store.send(calls)
            taken: list[OwnedShard] = []
            for number, answer in zip(chunk, answers, strict=True):
                if isinstance(answer, StoreError):
                    _log.error("shard %d can't be taken: %s", number, answer)
                elif answer.code is Reply.OK:
                    self._clock.observe(answer.clock)
                    shard = OwnedShard(number, self._kernel.keys.shard(number), answer.token)
                    shard.workflows.update(everything)
                    taken.append(shard)
            owned += await self._recover(taken, names)
        return owned

    async def _recover(self, shards: list[OwnedShard], workflows: list[str]) -> list[OwnedShard]:
        """Read what the last owner left. Gives the shards of which everything could be read."""
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
        whole: list[OwnedShard] = []
        for position, shard in enumerate(shards):
            mine = answers[position * per_shard : (position + 1) * per_shard]
            refused = next((answer for answer in mine if isinstance(answer, StoreError)), None)
            if refused is not None:
                _log.error("shard %d can't be read, and stands still: %s", shard.number, refused)
                continue
            in_flight, upcoming, views, *stuck = mine
            for run_id in (*in_flight, *(run_id for listing in stuck for run_id in listing)):
                shard.inputs[run_id.decode(errors="replace")] = [Due()]
            if upcoming:
                _, due = upcoming
                shard.next_due = int(float(due))
            self._restore_views(shard, *views)
            whole.append(shard)
        whole = await self._catch_up(whole)
        return await self._empty_outboxes(whole)

    def _restore_views(
        self,
        shard: OwnedShard,
        offset: bytes | None,
        partial: bytes | None,
        base_offset: bytes | None,
        base: bytes | None,
    ) -> None:
        """The stored part, or the part under the trimmed log, from which the log leads on; else count from zero."""
        for at, data in ((offset, partial), (base_offset, base)):
            if at is None or data is None:
                continue
            try:
                shard.views = ShardViews.decode(data)
            except DECODE_ERRORS as error:
                _log.error("shard %d: the views stored at %s can't be read: %s", shard.number, at, error)
            else:
                shard.offset = shard.folded = at.decode()
                return

    async def _catch_up(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Fold what was committed after the last stored checkpoint."""

        def fold(shard: OwnedShard, entries: list[Entry]) -> None:
            for entry_id, fields in entries:
                fold_entry(shard.views, fields)
                shard.offset = entry_id.decode()
                shard.unfolded += 1

        return await self._read_on(shards, lambda shard: shard.keys.log, lambda shard: shard.offset, fold)

    async def _empty_outboxes(self, shards: list[OwnedShard]) -> list[OwnedShard]:
        """Hand all messages that didn't leave to the relay, oldest first: a later one makes them look delivered."""
        positions: dict[int, str] = {}

        def hand_over(shard: OwnedShard, entries: list[Entry]) -> None:
            self._relay.hand_over(shard, [_outbox_message(entry_id, fields) for entry_id, fields in entries])
            if entries:
                positions[shard.number] = entries[-1][0].decode()

        return await self._read_on(
            shards, lambda shard: shard.keys.outbox, lambda shard: positions.get(shard.number, "0-0"), hand_over
        )

    async def _read_on(
        self,
        shards: list[OwnedShard],
        stream: Callable[[OwnedShard], str],
        position: Callable[[OwnedShard], str],
        take_in: Callable[[OwnedShard, list[Entry]], None],
    ) -> list[OwnedShard]:
        """Read each shard's stream from its position to the end, page by page. Gives the shards that could be read."""
        fine = {shard.number: shard for shard in shards}
        behind = shards
        while behind:
            pages: list[list[Entry] | StoreError] = await self._store.send(
                [Call.plain("XRANGE", stream(one), f"({position(one)}", "+", "COUNT", PAGE) for one in behind]
            )
            again: list[OwnedShard] = []
            for shard, entries in zip(behind, pages, strict=True):
                if isinstance(entries, StoreError):
                    _log.error("shard %d can't be read, and stands still: %s", shard.number, entries)
                    del fine[shard.number]
                    continue
                take_in(shard, entries)
                if len(entries) == PAGE:
                    again.append(shard)
            behind = again
        return list(fine.values())


def fold_entry(views: ShardViews, fields: dict[bytes, bytes]) -> None:
    """Fold one log entry: its fields are run ids, its values transitions. What can't be read is skipped and logged."""
    for run_id, data in fields.items():
        try:
            views.fold(run_id.decode(), decode_transition(data))
        except DECODE_ERRORS as error:
            _log.error("a log entry of run %s can't be read and is not counted: %s", run_id[:64], error)


def _outbox_message(entry_id: bytes, fields: dict[bytes, bytes]) -> tuple[str, int, str, str, bytes]:
    target = fields.get(b"target", b"")
    return (
        entry_id.decode(),
        int(target) if target.isdigit() else -1,
        fields.get(b"kind", b"").decode(errors="replace"),
        fields.get(b"run", b"").decode(errors="replace"),
        fields.get(b"body", b""),
    )
