"""Takes shards and reads what the last owner left: the only place where a shard's whole state is read.

Owns: the take and the recovery reads. Must not: decide which shards to take (membership does).
Called by: membership.

What is found again: runs whose steps were in flight (their steps start anew), runs that are stuck (the code may be
fixed), the next due time, messages that didn't leave the outbox, and the log that the views don't count yet. Messages
in the inbox come by themselves: the new consumer group reads them from the first one.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable

from streamflow.pure.codec import DECODE_ERRORS
from streamflow.pure.errors import StoreError
from streamflow.pure.events import decode_transition
from streamflow.pure.machine import Due
from streamflow.pure.record import Status
from streamflow.pure.views import ShardViews
from streamflow.runtime.clock import ServerClock
from streamflow.runtime.relay import Relay
from streamflow.runtime.shard import OwnedShard
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Answer, Kernel, Taken

_log = logging.getLogger("streamflow.takeover")

CHUNK = 64
"""Shards that are recovered in one pipeline."""
LOG_ENTRIES = 1000
OUTBOX_ENTRIES = 10_000

Entry = tuple[bytes, list[bytes]]


class Takeover:
    def __init__(
        self, store: Store, kernel: Kernel, relay: Relay, clock: ServerClock, *, member: str, session: str
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._relay = relay
        self._clock = clock
        self._member = member
        self._session = session

    async def take(self, wanted: dict[int, str], workflows: Iterable[str]) -> list[OwnedShard]:
        """Take shards whose tokens are still the ones in `wanted`, and recover them. Those that somebody else was
        faster with are left out. `workflows` are the registered names: their stuck runs are tried again.
        """
        names = list(workflows)
        numbers = list(wanted)
        owned: list[OwnedShard] = []
        for first in range(0, len(numbers), CHUNK):
            chunk = numbers[first : first + CHUNK]
            calls = [
                self._kernel.take(number, wanted[number], secrets.token_hex(16), self._member, self._session)
                for number in chunk
            ]
            answers: list[Taken | StoreError] = await self._store.send(calls)
            taken: list[OwnedShard] = []
            for number, answer in zip(chunk, answers, strict=True):
                if isinstance(answer, StoreError):
                    _log.error("shard %d can't be taken: %s", number, answer)
                elif answer.answer is Answer.OK:
                    self._clock.observe(answer.clock)
                    taken.append(OwnedShard(number, self._kernel.keys.shard(number), answer.token))
            await self._recover(taken, names)
            owned += taken
        return owned

    async def _recover(self, shards: list[OwnedShard], workflows: list[str]) -> None:
        per_shard = 4 + len(workflows)
        calls: list[Call[object]] = []
        for shard in shards:
            keys = shard.keys
            calls += (
                Call.plain("ZRANGEBYSCORE", keys.agenda, "-inf", "(0"),
                Call.plain("ZRANGEBYSCORE", keys.agenda, 0, "+inf", "WITHSCORES", "LIMIT", 0, 1),
                Call.plain("XRANGE", keys.outbox, "-", "+", "COUNT", OUTBOX_ENTRIES),
                Call.plain("HMGET", keys.views, "offset", "partial"),
                *(Call.plain("ZRANGE", keys.index(Status.STUCK, name), 0, -1) for name in workflows),
            )
        answers = await self._store.send(calls) if calls else []
        for position, shard in enumerate(shards):
            mine = answers[position * per_shard : (position + 1) * per_shard]
            refused = next((answer for answer in mine if isinstance(answer, StoreError)), None)
            if refused is not None:
                _log.error("shard %d can't be recovered whole: %s", shard.number, refused)
                shard.broken = str(refused)
                continue
            in_flight, upcoming, outbox, views, *stuck = mine
            for run_id in (*in_flight, *(run_id for listing in stuck for run_id in listing)):
                shard.inputs[run_id.decode()] = [Due()]
            if upcoming:
                _, due = upcoming
                shard.next_due = int(float(due))
            self._relay.hand_over(shard, [_outbox_message(entry_id, fields) for entry_id, fields in outbox])
            if views[0] is not None:
                try:
                    shard.views = ShardViews.decode(views[1])
                    shard.offset = shard.folded = views[0].decode()
                except DECODE_ERRORS as error:
                    _log.error("shard %d: the stored views can't be read, rebuild them: %s", shard.number, error)
            shard.workflows.update(workflows)
        await self._catch_up([shard for shard in shards if not shard.broken])

    async def _catch_up(self, shards: list[OwnedShard]) -> None:
        """Fold what was committed after the last stored checkpoint."""
        behind = shards
        while behind:
            calls: list[Call[list[Entry]]] = [
                Call.plain("XRANGE", shard.keys.log, f"({shard.offset}", "+", "COUNT", LOG_ENTRIES) for shard in behind
            ]
            answers = await self._store.send(calls)
            again: list[OwnedShard] = []
            for shard, entries in zip(behind, answers, strict=True):
                if isinstance(entries, StoreError):
                    shard.broken = str(entries)
                    continue
                for entry_id, fields in entries:
                    fold_entry(shard.views, fields)
                    shard.offset = entry_id.decode()
                    shard.unfolded += 1
                if len(entries) == LOG_ENTRIES:
                    again.append(shard)
            behind = again


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
