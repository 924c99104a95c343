"""What open runs wait for, and who has them.

Owns: the reads for that, and their bounds. Must not: change anything, or say it in words (`screen/waits.py`).
Called by: listings and descriptions of runs, the status.

What a run waits for is in its record, of which the newest part is read, as large as the budget; who has a step is in
the hashes of its shard, its queue and the members. Nothing of it is read together: it is what was so a moment ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from streamflow.client.pipelines import Batcher, settled
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.events import decode_recorded
from streamflow.machine.snapshot import waits_in
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import Header, decode_header
from streamflow.model.reports import decode_details, reported_at
from streamflow.model.start_word import start_word
from streamflow.model.waits import MAX_WHY, QueuePlace, StepHolder, Wait, waits_of
from streamflow.store.connection import Call
from streamflow.store.kernel import Kernel, QueuePeek
from streamflow.store.keys import NamespaceKeys
from streamflow.store.pauses import Pause, paused_queues, paused_workflows, read_pauses
from streamflow.store.queues import clock_of
from streamflow.store.workers import WorkerHeartbeat, decode_worker
from streamflow.wire import Heartbeat, decode_heartbeat

LISTED_BYTES = 32 * 1024
"""Of the record of each run of a listing, about."""
DESCRIBED_BYTES = 256 * 1024
"""Of the record of a run that is described, about."""
FIRST_READ = 10
"""Elements of a record that are read first: most are shorter."""
MAX_LOCATED = 20
"""Steps of a run of which it is found out who has them."""
PATIENCE = 2.0
"""Seconds to wait for who has a run: in a cluster another server than the run's knows the workers."""


class RunOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Who decides for a run: the daemon that owns its shard. `daemon` is empty while nobody does; `host` and `pid` are
    empty and 0 if its name doesn't tell them; `beat_age`: seconds since its heartbeat was sent, None if none was
    found: it is gone, unless a server of the cluster is away."""

    shard: int
    daemon: str = ""
    host: str = ""
    pid: int = 0
    beat_age: float | None = None


class WaitReader:
    """Reads of one namespace."""

    def __init__(self, keys: NamespaceKeys, batcher: Batcher) -> None:
        self._keys = keys
        self._batcher = batcher
        self._kernel = Kernel(keys)

    async def waits(
        self, shard: int, run_id: str, created: int = 0, budget: int = LISTED_BYTES
    ) -> tuple[list[Wait], bool]:
        """What a run waits for, nothing if it has ended or is another one than was `created` then (0: any); and whether
        its record is larger than what was read of it: then what began long ago may be missing."""
        key = self._keys.shard(shard).run(run_id)
        wanted = FIRST_READ
        while True:
            elements: list[bytes] = await self._batcher.call(Call.plain("LRANGE", key, -wanted, -1))
            is_whole = len(elements) < wanted or elements[0][:1].isalpha()  # it begins with the header
            room = budget * len(elements) // max(1, sum(map(len, elements)))
            if is_whole or room <= len(elements):
                break
            wanted = min(room, 16 * wanted)
        if not elements:
            return [], False
        if is_whole:
            head, elements = elements[:2], elements[2:]
        else:
            head = await self._batcher.call(Call.plain("LRANGE", key, 0, 1))
            if len(head) < 2:
                return [], False
            elements = elements[1:]  # which may be the state
        try:
            header = decode_header(head[0])
            if not header.is_open or (created and header.created != created):
                return [], False
            if not header.version:
                begins = start_word(header.start).begins
                return [Wait(kind="start", since=_instant(header.created), until=_instant(begins))], False
            return self.recorded([*head, *elements]), not (is_whole or head[1])
        except DECODE_ERRORS as error:
            return [Wait(kind="message", why=f"its record can't be decoded: {error}"[:200])], True

    @staticmethod
    def recorded(record: Sequence[bytes]) -> list[Wait]:
        """What an open run waits for with this record: header, state, and transitions, the newest ones at least. Raises
        one of `codec.DECODE_ERRORS`."""
        found = waits_of(map(decode_recorded, record[2:]))
        return waits_in(record[1], found) if record[1] else found  # a reducer's snapshot has all that is open

    async def locate(
        self, shard: int, run_id: str, header: Header, waits: Sequence[Wait]
    ) -> tuple[RunOwner, list[Wait]]:
        """Who has the run, and the same waits with who has their steps, as far as that can be read. The first one is
        that its workflow is paused, if it is, also of a run for which nothing has come since."""
        created = header.created
        keys = self._keys.shard(shard)
        steps = [wait for wait in waits if wait.kind == "step"][:MAX_LOCATED]
        local = {wait.seq: f"{run_id}/{wait.seq}" for wait in steps if not wait.queue}
        queued = {wait.seq: (wait.queue, f"{run_id}/{wait.seq}") for wait in steps if wait.queue}
        calls: list[Call[Any]] = [
            Call.plain("TIME", near=keys.owner),
            Call.plain("HGET", keys.owner, "holder"),
            read_pauses(self._keys),
            *(Call.plain("HGET", keys.steps, field) for field in local.values()),
            *(Call.plain("HGET", keys.details, field) for field in local.values()),
            *(Call.plain("HGET", self._keys.queue(queue, shard).steps, field) for queue, field in queued.values()),
        ]
        time, holder, notes, *rest = await self._answers(calls)
        now = clock_of(time) if time else 0
        records = dict(zip(local, rest, strict=False))
        reports = dict(zip(local, rest[len(local) :], strict=False))
        entries = {seq: _entry(answer, created) for seq, answer in zip(queued, rest[2 * len(local) :], strict=True)}
        owner = (holder or b"").decode(errors="replace")
        hosts = {seq: _lent_to(record, created) or owner for seq, record in records.items()}
        daemons = sorted({name for name in (owner, *hosts.values()) if name})
        asked = [(seq, queued[seq][0], entry) for seq, entry in entries.items() if entry]
        calls = [
            *(Call.plain("HGET", self._keys.members, name) for name in daemons),
            *([Call.plain("HGETALL", self._keys.workers)] if queued else []),
            *(self._kernel.peek_queues(shard, [queue], [entry]) for _, queue, entry in asked),
            *(Call.plain("HGET", self._keys.queue(queue, shard).details, entry) for _, queue, entry in asked),
        ]
        answers = await self._answers(calls)
        members = {name: decode_heartbeat(answer) for name, answer in zip(daemons, answers, strict=False) if answer}
        beats = {name: _daemon_age(beat, now) for name, beat in members.items()}
        silent = {(beat.run_id, beat.seq, beat.attempt) for one in members.values() for beat in one.silent}
        answers = answers[len(daemons) :]
        workers: list[WorkerHeartbeat] | None = None
        paused = paused_queues(notes or {})
        if queued:
            found = cast("Mapping[bytes, bytes] | None", answers[0])
            workers = None if found is None else [decode_worker(raw) for raw in found.values()]
            answers = answers[1:]
        peeks = {seq: answer for (seq, _, _), answer in zip(asked, answers, strict=False)}
        details = {seq: answer for (seq, _, _), answer in zip(asked, answers[len(asked) :], strict=True)}
        located: list[Wait] = []
        note = paused_workflows(notes or {}).get(header.workflow)
        if note is not None and not any(wait.kind == "pause" for wait in waits):
            located.append(pause_of_workflow(note))
        for beat in members.values():
            located += [
                Wait(
                    kind="storage",
                    name=one.what,
                    why=one.error[:MAX_WHY],
                    since=_instant(int(now - 1000 * one.seconds)),
                )
                for one in beat.storage_waits
                if (one.shard, one.run_id) == (shard, run_id)
            ]
        stands = next((wait.since for wait in waits if wait.kind == "pause"), None)
        for wait in waits:
            if stands is not None and wait.until is not None and wait.until >= stands:
                pass  # that attempt doesn't begin while the run is paused
            elif wait.seq in local and wait.kind == "step":
                wait = _local(wait, hosts[wait.seq], beats, reports[wait.seq], created, now)
                if (run_id, wait.seq, wait.attempt) in silent:
                    wait = msgspec.structs.replace(wait, silent=True)
            elif wait.seq in queued and wait.kind == "step":
                peek = peeks.get(wait.seq)
                wait = _queued(wait, run_id, peek[0] if peek else None, details.get(wait.seq), workers, now)
                if (pause := paused.get(wait.queue)) is not None and wait.place is not None:
                    place = msgspec.structs.replace(wait.place, paused=pause.says())
                    wait = msgspec.structs.replace(wait, place=place)
            located.append(wait)
        host, pid = _host_and_pid(owner)
        return RunOwner(shard=shard, daemon=owner, host=host, pid=pid, beat_age=beats.get(owner)), located

    async def _answers(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """None in the place of what isn't there, the user may not read, or a server doesn't tell within `PATIENCE`."""
        futures = [self._batcher.call(call) for call in calls]
        try:
            if futures:
                await asyncio.wait(futures, timeout=PATIENCE)
        finally:
            for future in futures:
                future.cancel()  # those that are not done
        answers = await settled([future for future in futures if not future.cancelled()])
        known = iter([None if isinstance(answer, StoreError) else answer for answer in answers])
        return [None if future.cancelled() else next(known) for future in futures]

    async def of_each(
        self, runs: Sequence[tuple[int, str]], budget: int = LISTED_BYTES
    ) -> list[tuple[list[Wait], bool]]:
        """Those of several runs, by shard and id. Of one whose record can't be read, nothing."""
        found = await asyncio.gather(*(self._of_one(shard, run_id, budget) for shard, run_id in runs))
        return list(found)

    async def _of_one(self, shard: int, run_id: str, budget: int) -> tuple[list[Wait], bool]:
        try:
            return await self.waits(shard, run_id, budget=budget)
        except StoreUnavailable:
            raise
        except StoreError:  # somebody has overwritten the key
            return [], True


def pause_of_workflow(note: Pause) -> Wait:
    """What a run waits for whose workflow is paused."""
    return Wait(kind="pause", name="workflow", why=note.says()[:MAX_WHY], since=_instant(note.at))


def _local(
    wait: Wait, host: str, beats: Mapping[str, float | None], report: bytes | None, created: int, now: int
) -> Wait:
    holder = None
    if host and not _is_ahead(wait, now):
        name, pid = _host_and_pid(host)
        holder = StepHolder(kind="daemon", name=host, host=name, pid=pid, beat_age=beats.get(host))
    reported, at = None, 0
    if report:
        of, data = decode_details(report)
        if of in (0, created):
            reported, at = _decoded(data), reported_at(report)
    return msgspec.structs.replace(wait, holder=holder, details=reported, reported=_instant(at))


def _queued(
    wait: Wait,
    run_id: str,
    peek: QueuePeek | None,
    report: bytes | None,
    workers: Sequence[WorkerHeartbeat] | None,
    now: int,
) -> Wait:
    serving: int | None = None
    if workers is not None:
        serving = sum(wait.queue in one.queues and one.is_fresh(now) and not one.draining for one in workers)
    if peek is None:  # its next attempt isn't in the queue yet, or a worker has just ended it
        return msgspec.structs.replace(wait, place=QueuePlace(workers=serving))
    if not peek.consumer:
        before = peek.before if peek.before >= 0 else None
        place = QueuePlace(before=before, waiting=peek.waiting if peek.waiting >= 0 else None, workers=serving)
        return msgspec.structs.replace(wait, place=place)
    holder = StepHolder(kind="worker", name=peek.consumer, beat_age=peek.idle / 1000)
    reported, silent = 0, False
    for one in workers or ():
        if one.name == peek.consumer:
            holder = StepHolder(
                kind="worker", name=one.name, host=one.host, pid=one.pid, beat_age=max(0.0, one.age(now))
            )
            for beat in one.beats if one.sent else ():
                if (beat.run_id, beat.seq, beat.attempt) == (run_id, wait.seq, wait.attempt):
                    reported, silent = one.sent - round(1000 * beat.age), beat.silent
    details = _decoded(report or b"")
    return msgspec.structs.replace(wait, holder=holder, details=details, reported=_instant(reported), silent=silent)


def _is_ahead(wait: Wait, now: int) -> bool:
    """Its next attempt hasn't begun."""
    return wait.until is not None and wait.until.timestamp() * 1000 > now


def _decoded(data: bytes) -> object:
    try:
        return msgspec.msgpack.decode(data) if data else None
    except DECODE_ERRORS:
        return None


def _entry(stored: bytes | None, created: int) -> str:
    """Of an attempt in a queue: `<entry> <created> <attempt> wanted`."""
    words = (stored or b"").decode(errors="replace").split(" ")
    return words[0] if len(words) == 4 and words[1] == str(created) else ""


def _lent_to(stored: bytes | None, created: int) -> str:
    """The daemon that still runs a step for a former owner: `<host> <created> <attempt> wanted`."""
    words = (stored or b"").decode(errors="replace").split(" ")
    return words[0] if len(words) == 4 and words[1] == str(created) and words[3] == "wanted" else ""


def _host_and_pid(member: str) -> tuple[str, int]:
    """A daemon's name is `<host>-<pid>-<random>`."""
    host, pid, *_ = [*member.rsplit("-", 2), ""] if member.count("-") >= 2 else ["", ""]
    return (host, int(pid)) if pid.isdecimal() else ("", 0)


def _daemon_age(beat: Heartbeat, now: int) -> float | None:
    """Its heartbeat tells the daemon's own clock, and by how much that is ahead of the server's."""
    if not beat.clock or not now:
        return None
    return max(0.0, (now + beat.ahead - beat.clock) / 1000)


def _instant(ms: int) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
