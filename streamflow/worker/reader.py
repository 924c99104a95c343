"""Takes entries from a worker's queues: only as many as the worker has room for, from all partitions in turn.

Owns: which partitions are read and how many entries are asked for. Must not: run steps, or acknowledge entries
(`claims` does). Called by: the worker (runs the loop), claims (says that there is room).

Reads that don't wait ask for exact numbers; only when all partitions are empty one read waits on all of them, for one
entry each, and what comes beyond the room is given back. After an error this worker's own pending entries are read
again: an answer that was lost may have carried some, and `>` never shows them again.
"""

from __future__ import annotations

import logging
import time

import anyio
import msgspec

from streamflow.errors import Failure, StoreError
from streamflow.loops import retry_forever
from streamflow.machine.transition import Outcome
from streamflow.model.codec import DECODE_ERRORS
from streamflow.steps.executor import StepExecutor
from streamflow.store.blocking_reads import Entry, GroupGone, InboxConnection
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import WORKERS, ClaimRef, Kernel
from streamflow.wire import QueuedStep, decode_job
from streamflow.worker.claims import Claim, Claims, Place
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App

_log = logging.getLogger("streamflow.worker")

PENDING = 10_000
"""Pending entries of a partition that are read again at once; a worker never has so many."""
BROKEN = 5.0
"""Seconds until a partition that can't be read (a key of another type, a permission) is tried again."""
DIGITS = 15
"""Of a number in an entry at most: Python refuses to read very long ones."""


class QueueReader:
    def __init__(
        self,
        app: App,
        store: Store,
        kernel: Kernel,
        connection: InboxConnection,
        claims: Claims,
        executor: StepExecutor,
        *,
        slots: int,
    ) -> None:
        self._app = app
        self._store = store
        self._kernel = kernel
        self._connection = connection
        self._claims = claims
        self._executor = executor
        self._slots = slots
        self._places: dict[str, Place] = {kernel.keys.queue(*place).stream: place for place in claims.places}
        self._broken: set[str] = set()
        """Streams that can't be read: left out, so that the others are."""
        self._broken_since = 0.0
        self._turn = 0
        self._room = anyio.Event()
        self._check_pending = False
        self._stopped = False
        self._done = anyio.Event()

    def room(self) -> None:
        """A step has ended, or a thread has come back whose attempt had been over for long."""
        self._room.set()

    async def stop(self) -> None:
        """Take nothing more; what was read until now is taken in when this returns."""
        self._stopped = True
        self._room.set()
        while not self._done.is_set():
            await self._connection.interrupt()  # in vain when the read begins only now: again
            with anyio.move_on_after(0.05):
                await self._done.wait()

    async def run(self) -> None:
        await retry_forever(
            self._read_or_create_groups,
            _log,
            "could not read queues",
            on_failure=self._read_again,
            until=lambda: self._stopped,
        )
        self._done.set()

    def _read_again(self) -> None:
        """A lost answer may have carried entries: look at the pending ones before new ones."""
        self._check_pending = True

    async def _read_or_create_groups(self) -> None:
        try:
            await self.run_once()
        except GroupGone as error:
            _log.info("a queue has no consumer group, creating it: %s", error)
            self._read_again()
            await self.create_groups()

    async def create_groups(self) -> None:
        """Make the consumer group where it is missing. What waits in a stream is read from the first entry. A partition
        where that isn't possible is left alone for a while."""
        calls: list[Call[object]] = [
            Call.plain("XGROUP", "CREATE", stream, WORKERS, "0", "MKSTREAM") for stream in self._places
        ]
        try:
            answers = await self._store.send(calls)
        except StoreError as error:
            _log.warning("queues can't be set up: %s", error)
            return
        was, self._broken, self._broken_since = self._broken, set(), time.monotonic()
        for (stream, place), answer in zip(self._places.items(), answers, strict=True):
            if isinstance(answer, StoreError) and "BUSYGROUP" not in str(answer):
                self._broken.add(stream)
                if stream not in was:
                    _log.error("partition %d of queue %s can't be read: %s", place[1], place[0], answer)
        if was - self._broken:
            self._check_pending = True

    def _streams(self) -> list[str]:
        return [stream for stream in self._places if stream not in self._broken]

    async def run_once(self) -> None:
        """Take what there is room for; wait for room, or for something to take."""
        if self._broken and time.monotonic() - self._broken_since > BROKEN:
            await self.create_groups()
        streams = self._streams()
        if not streams:
            await anyio.sleep(1.0)
            return
        free = self._free()
        if free <= 0:
            self._room = anyio.Event()
            if not self._claims.running:
                _log.warning("nothing is taken until a thread comes back: attempts are over, but %d go on", self._slots)
            if not self._stopped:
                await self._room.wait()
            return
        if self._check_pending:
            self._check_pending = False
            self._take_in(await self._connection.read(streams, PENDING, pending=True))
            return
        if not await self._take_some(streams, free) and not self._stopped:
            entries = await self._connection.read(streams, 1, pending=False)
            self._take_in(entries[:free])
            await self._give_back(entries[free:])

    def _free(self) -> int:
        """Steps that can begin at once. A thread that goes on after its time-out has a place that nobody else gets:
        what was taken for it would wait here for ever, while other workers have room."""
        return self._slots - self._claims.running - self._executor.lingering

    async def _take_some(self, streams: list[str], free: int) -> bool:
        """Without waiting. Gives whether there was something."""
        streams = streams[self._turn :] + streams[: self._turn]
        asked = 0
        while asked < len(streams):
            some = streams[asked : asked + free]
            entries = await self._connection.read(some, max(1, free // len(some)), pending=False, wait=False)
            asked += len(some)
            if entries:
                self._turn = (self._turn + asked) % len(streams)
                self._take_in(entries)
                return True
        return False

    async def _give_back(self, entries: list[Entry]) -> None:
        """Several partitions got something at one moment: what is beyond the room is for a worker that has some."""
        calls: list[Call[int]] = []
        for stream, entry, fields in entries:
            run_id, seq = ((fields or {}).get(name, b"").decode(errors="replace") for name in (b"run", b"seq"))
            claim = ClaimRef(entry, f"{run_id}/{seq}")
            calls.append(self._kernel.requeue_attempts(*self._places[stream], self._claims.consumer, [claim]))
        for answer in await self._store.send(calls) if calls else ():
            if isinstance(answer, StoreError):
                _log.warning("an entry can't be given back, and waits here: %s", answer)
                self._check_pending = True

    def _take_in(self, entries: list[Entry]) -> None:
        for stream, entry, fields in entries:
            place = self._places[stream]
            if self._claims.has(place, entry):
                continue
            fields = fields or {}  # None: it was deleted while it was pending, and only has to be taken off
            run_id = fields.get(b"run", b"").decode(errors="replace")
            numbers = [fields.get(name, b"") for name in (b"created", b"seq", b"attempt")]
            if not run_id or not all(number.isdigit() and len(number) <= DIGITS for number in numbers):
                claim = Claim(place, entry, run_id or "-", 0, 0, 0)
                self._claims.add(claim)
                self._claims.report(claim, None)
                continue
            created, seq, attempt = map(int, numbers)
            claim = Claim(place, entry, run_id, created, seq, attempt)
            self._claims.add(claim)
            try:
                job = decode_job(fields.get(b"body", b""))
            except DECODE_ERRORS as error:
                _log.error("entry %s of queue %s can't be read: %s", entry, place[0], error)
                self._refuse(claim, "PayloadInvalid", f"the queue's entry can't be read: {error}", permanent=True)
                continue
            self._begin(claim, job, fields.get(b"details", b""))

    def _begin(self, claim: Claim, queued: QueuedStep, details: bytes) -> None:
        step = self._app.steps.get(queued.name)
        if step is None:
            text = f"worker {self._claims.consumer} of queue {claim.place[0]}: {self._app.unknown_step(queued.name)}"
            self._refuse(claim, "UnknownStep", text, permanent=False)
            return
        told = msgspec.Raw(details) if details else queued.details
        # Copies: a Raw is a window into the whole answer of the server, and a step may run for long.
        job = StepJob(claim.seq, claim.attempt, step, queued.args.copy(), told.copy())
        job.timeout = queued.timeout
        job.created = claim.created
        self._executor.submit(claim.place[1], claim.run_id, job)

    def _refuse(self, claim: Claim, kind: str, text: str, *, permanent: bool) -> None:
        failure = Failure(kind, text)
        self._claims.report(claim, Outcome(claim.seq, claim.attempt, 0.0, None, failure, permanent))
