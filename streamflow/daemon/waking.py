"""Wakes runs that were moved out of memory: when something comes for them, and when they are due.

Owns: reading a run's object, and putting the run back on the server. Must not: decide what a run does then (it is
loaded as every other one), or delete objects. Called by: the owner (a message for a run that has no record, a bucket
that is due), the daemon (runs the loop, says what waits in its heartbeat).

    a message, an outcome of a child    the run is put off (`put_off.py`) until `wake` has put it back
    a due time                          the agenda has one entry for each bucket: all of it that is due is put back, and
                                        then stands on the agenda itself
    a terminate                         as a message; if storage answers that it has no whole object of the run,
                                        it comes back with nothing but the note that its history is lost, and ends

Runs that are due at the same time are put back `AT_ONCE` at a time, those that are due first before the others, buckets
in the order in which they became due. What fails is tried again, after pauses that grow, for as long as it takes, and
holds up nothing but itself: nothing of a run that sleeps is ever given up, unless somebody has terminated it. A daemon
that dies here leaves each run either asleep or awake, never both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio

from streamflow.daemon.context import Context
from streamflow.daemon.put_off import FIRST_PAUSE, LONGEST_PAUSE, SHOWN_AFTER, Need
from streamflow.daemon.shard import OwnedShard
from streamflow.errors import ArchiveDamaged, ArchiveError, StoreError
from streamflow.loops import retry_forever
from streamflow.machine.lost import is_parent, lost_run, possible_parents
from streamflow.machine.sealed import hide
from streamflow.model.record import ParentLink, incarnation_of
from streamflow.model.sleeping import Sleeper, decode_sleeper
from streamflow.store.connection import Call
from streamflow.store.kernel import Reply
from streamflow.wire import StorageWait

if TYPE_CHECKING:
    from streamflow.daemon.owner import Owner
    from streamflow.daemon.parked_objects import ParkedObjects

_log = logging.getLogger("streamflow.hibernation")

AT_ONCE = 16
"""Runs that are put back at the same time because they are due."""
BUCKETS = 4
"""Buckets of which so many are read at the same time."""
AWAKE = "awake"
"""In `RunWork.found`: it was looked whether the run sleeps, and it does no more."""
WHAT = "its history, which was moved out of memory"
MOST_SHOWN = 20


class _Bucket:
    """A bucket that is due, until nothing in it is."""

    def __init__(self, shard: OwnedShard) -> None:
        self.shard = shard
        self.since = time.monotonic()
        self.try_at = 0.0
        self.pause = FIRST_PAUSE
        self.failing: dict[str, str] = {}
        """Run ids, and why they can't be put back."""


class Waking:
    def __init__(self, context: Context, owner: Owner, objects: ParkedObjects) -> None:
        self._store = context.store
        self._kernel = context.kernel
        self._clock = context.clock
        self._namespace = context.namespace
        self._owner = owner
        self._objects = objects
        self._due: dict[tuple[int, str], _Bucket] = {}
        """In the order in which they became due."""
        self._wanted = anyio.Event()
        self._room = asyncio.Semaphore(AT_ONCE)

    # --- because something has come -----------------------------------------------------------------------------------

    def need(self, shard: OwnedShard, run_id: str) -> Need:
        """What a run waits for that has no record, in a shard in which some sleep."""

        async def fetch() -> dict[Any, Any]:
            await self.wake(shard, run_id)
            return {AWAKE: True}

        async def fetch_or_write_off() -> dict[Any, Any]:
            await self.wake_or_write_off(shard, run_id)
            return {AWAKE: True}

        return Need(WHAT, fetch, fetch_or_write_off)

    async def wake_all(self, shard: OwnedShard, run_ids: Iterable[str]) -> None:
        """Put those of these runs back that sleep, before the shard is worked for. One that can't be put back now
        sleeps on: the shard doesn't wait for storage, but for `AT_ONCE` runs at a time until it has not answered."""

        async def put_back(run_id: str) -> None:
            async with self._room:
                try:
                    await self.wake(shard, run_id)
                except ArchiveError as error:
                    _log.error(
                        "run %s of shard %d stays as a server had it that was set back: %s", run_id, shard.number, error
                    )

        await asyncio.gather(*map(put_back, run_ids))

    async def wake(self, shard: OwnedShard, run_id: str) -> None:
        """Put a run back, if it sleeps. Raises `StoreError`, and `ArchiveError` with the name of the object if that is
        damaged or missing."""
        sleeper = await self._find(shard, run_id)
        if sleeper is not None:
            try:
                await self._put_back(shard, run_id, sleeper)
            except ArchiveDamaged as error:
                raise ArchiveError(str(error)) from None  # also that is tried again: nothing else has the run

    async def wake_or_write_off(self, shard: OwnedShard, run_id: str) -> None:
        """`wake` of a run that is to be terminated: if its object is damaged or missing, it comes back without its
        history. Storage that doesn't answer raises as ever."""
        sleeper = await self._find(shard, run_id)
        if sleeper is not None:
            try:
                await self._put_back(shard, run_id, sleeper)
            except ArchiveDamaged as error:
                await self._restore(shard, run_id, sleeper, await self._write_off(run_id, sleeper, str(error)), {})

    async def _find(self, shard: OwnedShard, run_id: str) -> Sleeper | None:
        line: bytes | None = await self._store.one(Call.plain("HGET", shard.keys.asleep(run_id), run_id))
        return None if line is None else _sleeper(run_id, line)

    async def _put_back(self, shard: OwnedShard, run_id: str, sleeper: Sleeper) -> None:
        storage = await self._objects.current()
        if storage is None:
            raise ArchiveError(f"run {run_id} was moved out of memory, and the namespace has no archive any more")
        run = await storage.get(run_id, sleeper)
        if await self._restore(shard, run_id, sleeper, run.record, run.published):
            self._objects.woken(storage.name_of(run_id, sleeper))

    async def _restore(
        self, shard: OwnedShard, run_id: str, sleeper: Sleeper, record: list[bytes], published: dict[str, bytes]
    ) -> bool:
        """Returns whether the run is awake by this."""
        call = self._kernel.wake_run(shard.number, shard.token, run_id, sleeper.line, record, list(published.items()))
        [answer] = await self._store.send([call], confirmed=True)
        if isinstance(answer, StoreError):
            raise answer
        code, _ = answer
        if code is Reply.FENCED:
            if not shard.dropped:
                self._owner.lost(shard)
        elif code is Reply.OK:
            shard.asleep -= 1
            self._owner.woken += 1
            shard.hibernate_at = min(shard.hibernate_at, self._clock.now_ms() + self._owner.hibernate_after_ms)
            return True
        return False

    async def _write_off(self, run_id: str, sleeper: Sleeper, why: str) -> list[bytes]:
        """What is put back of a run whose object is lost. Raises `StoreError`."""
        namespace = self._namespace
        parent: ParentLink | None = None
        for candidate in possible_parents(run_id, namespace.partition):
            peek = self._kernel.peek_runs(namespace.shard_of(candidate.run_id), [candidate.run_id], asleep=True)
            [(header, _)] = await self._store.one(peek)
            if header and is_parent(link := candidate._replace(created=incarnation_of(header)), sleeper.parent):
                parent = link
        lost = lost_run(run_id, sleeper, namespace.partition, parent, why)
        _log.error("run %s is terminated, and comes back without its history: %s", run_id, lost.why)
        return lost.record

    # --- because it is due --------------------------------------------------------------------------------------------

    def due(self, shard: OwnedShard, bucket: str) -> None:
        """Something in this bucket is due. Called again as long as it is."""
        if (shard.number, bucket) not in self._due or self._due[shard.number, bucket].shard is not shard:
            self._due[shard.number, bucket] = _Bucket(shard)
            self._wanted.set()

    async def run(self) -> None:
        await retry_forever(self.run_once, _log, "could not wake runs that are due")

    async def run_once(self) -> None:
        """Wait until a bucket is due, or is to be tried again, and put back what is due of the first ones."""
        while True:
            self._wanted = anyio.Event()
            now = time.monotonic()
            self._due = {key: one for key, one in self._due.items() if not one.shard.dropped}
            ready = [(key, one) for key, one in self._due.items() if one.try_at <= now]
            if ready:
                break
            with anyio.move_on_after(min((one.try_at for one in self._due.values()), default=now + 3600) - now):
                await self._wanted.wait()
        tasks = [asyncio.ensure_future(self._wake_bucket(key[1], one)) for key, one in ready[:BUCKETS]]
        for task in tasks:
            hide(task)
        try:
            done = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for (key, one), is_done in zip(ready, done, strict=False):
            if self._due.get(key) is one:
                del self._due[key]
                if not is_done:
                    self._due[key] = one  # behind the others

    async def _wake_bucket(self, name: str, one: _Bucket) -> bool:
        """Put back what is due of a bucket. Returns whether all of it is; else `try_at` says when to try again."""
        shard = one.shard
        try:
            lines: dict[bytes, bytes] = await self._store.one(Call.plain("HGETALL", shard.keys.bucket(name)))
            now = self._clock.now_ms()
            due: list[tuple[int, str, Sleeper]] = []
            for field, line in lines.items():
                run_id = field.decode(errors="replace")
                try:
                    sleeper = decode_sleeper(line)
                except ValueError:
                    continue  # what comes for it fails with the reason
                if 0 < sleeper.due <= now:
                    due.append((sleeper.due, run_id, sleeper))
            errors = await asyncio.gather(*(self._try(shard, run_id, sleeper) for _, run_id, sleeper in sorted(due)))
        except StoreError as error:
            one.failing, errors, due, now = {"": str(error)}, [], [], 0
        else:
            one.failing = {run_id: error for (_, run_id, _), error in zip(sorted(due), errors, strict=True) if error}
        if due and not all(errors):
            self._owner.plan_due(shard, now)  # they are on the agenda now
        if not one.failing:
            return True
        run_id, reason = next(iter(one.failing.items()))
        _log.warning(
            "%d runs of shard %d are due and can't be put back into memory, the next try is in %.0f s; run %s: %s",
            len(one.failing),
            shard.number,
            one.pause,
            run_id or "(all)",
            reason,
        )
        one.try_at = time.monotonic() + one.pause
        one.pause = min(2 * one.pause, LONGEST_PAUSE)
        return False

    async def _try(self, shard: OwnedShard, run_id: str, sleeper: Sleeper) -> str:
        """Why the run can't be put back; empty: it is back, or not needed."""
        async with self._room:
            if shard.dropped:
                return ""
            try:
                await self._put_back(shard, run_id, sleeper)
            except StoreError as error:
                return str(error)
            return ""

    def waits(self) -> list[StorageWait]:
        """Runs that are due and can't be put back, some of them, the longest first."""
        now = time.monotonic()
        return [
            StorageWait(one.shard.number, run_id, WHAT, round(now - one.since, 1), error[:300])
            for one in self._due.values()
            if now - one.since > SHOWN_AFTER or one.failing
            for run_id, error in one.failing.items()
            if run_id
        ][:MOST_SHOWN]

    @property
    def failing(self) -> int:
        """How many runs that are due can't be put back."""
        return sum(len(one.failing) for one in self._due.values())


def _sleeper(run_id: str, line: bytes) -> Sleeper:
    try:
        return decode_sleeper(line)
    except ValueError:
        raise ArchiveError(
            f"what the server has of run {run_id}, which was moved out of memory, can't be read"
        ) from None
