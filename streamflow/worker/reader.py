"""Reads a worker's queues: takes only as many entries as the worker has free slots, from all partitions in turn.

Owns: which partitions are read and how many entries are asked for. Must not: run steps, or acknowledge entries
(`claims` does). Called by: the worker (runs the loop), claims and executor (report that a slot is free).

Reads that don't wait ask for exact numbers; only when all partitions are empty, one read waits on all of them, for one
entry each, and entries beyond the free slots are requeued. After an error this worker's own pending entries are read
again: an answer that was lost may have carried some, and `>` never returns them again.
"""

from __future__ import annotations

import logging
import time

import anyio
import msgspec

from streamflow.errors import Failure, StoreError
from streamflow.loops import retry_forever
from streamflow.machine.transition import Outcome
from streamflow.model.codec import DECLINED, DECODE_ERRORS, UnfitArguments
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import Suspects
from streamflow.store.blocking_reads import PENDING, Entry, GroupGone, QueueConnection
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import ClaimRef, Kernel
from streamflow.wire import QueuedStep, decode_job, partition_name, stream_order
from streamflow.worker.claims import Claim, Claims, Partition
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App

_log = logging.getLogger("streamflow.worker")

RETRY_BROKEN = 5.0
"""Seconds until a partition that can't be read (a key of another type, a permission) is tried again."""
MAX_DIGITS = 15
"""Maximum length of a number in an entry: Python refuses to parse very long ones."""


class QueueReader:
    def __init__(
        self,
        app: App,
        store: Store,
        kernel: Kernel,
        connection: QueueConnection,
        claims: Claims,
        executor: StepExecutor,
        suspects: Suspects,
        *,
        slots: int,
    ) -> None:
        self._app = app
        self._store = store
        self._kernel = kernel
        self._connection = connection
        self._claims = claims
        self._executor = executor
        self._suspects = suspects
        self._slots = slots
        self._partitions: dict[str, Partition] = {
            kernel.keys.queue(*partition).stream: partition for partition in claims.partitions
        }
        self._broken: dict[str, str] = {}
        """Streams that can't be read, and why: left out, so that the others can be."""
        self._broken_since = 0.0
        self.reads = False
        """The loop runs, and its last read has not failed."""
        self._turn = 0
        self._slot_freed = anyio.Event()
        self._check_pending = False
        self._stopped = False
        self._done = anyio.Event()

    @property
    def broken(self) -> dict[str, str]:
        """Partitions that can't be read, and why: `partition 3 of queue gpu` -> the server's answer."""
        broken = list(self._broken.items())  # also called in the HTTP server's thread
        return {partition_name(*self._partitions[stream]): reason for stream, reason in broken}

    def slot_freed(self) -> None:
        """A step has ended, or a thread has returned whose attempt had ended before it."""
        self._slot_freed.set()

    async def stop(self) -> None:
        """Take no more entries; when this returns, those that were read are claims."""
        self._stopped = True
        self._slot_freed.set()
        while not self._done.is_set():
            await self._connection.interrupt()  # has no effect on a read that has not begun yet, so it is repeated
            with anyio.move_on_after(0.05):
                await self._done.wait()

    async def run(self) -> None:
        self._read_again()  # what ended the loop before may have lost an answer
        self.reads = True
        await retry_forever(
            self._read_or_create_groups,
            _log,
            "could not read queues",
            on_failure=self._read_failed,
            until=lambda: self._stopped,
        )
        self.reads = False
        self._done.set()

    def _read_failed(self) -> None:
        self.reads = False
        self._read_again()

    def _read_again(self) -> None:
        """A lost answer may have carried entries: read the pending ones before new ones."""
        self._check_pending = True

    async def _read_or_create_groups(self) -> None:
        try:
            await self.run_once()
        except GroupGone as error:
            _log.info("the consumer group of a queue is missing, creating it: %s", error)
            self._read_again()
            await self.create_groups()
        self.reads = True

    async def create_groups(self) -> None:
        """Create the consumer group where it is missing; it reads a stream from the first entry. A partition where that
        isn't possible is left alone for `RETRY_BROKEN` seconds."""
        calls = [self._kernel.create_group(queue, number) for queue, number in self._partitions.values()]
        try:
            answers = await self._store.send(calls)
        except StoreError as error:
            _log.warning("could not create the consumer groups of the queues, will retry: %s", error)
            return
        broken_before = self._broken
        broken: dict[str, str] = {}
        for (stream, (queue, number)), answer in zip(self._partitions.items(), answers, strict=True):
            if isinstance(answer, StoreError):
                broken[stream] = str(answer)
                if stream not in broken_before:
                    _log.error(
                        "partition %d of queue %s can't be read and is left alone, will retry every %g s: %s",
                        number,
                        queue,
                        RETRY_BROKEN,
                        answer,
                    )
        self._broken, self._broken_since = broken, time.monotonic()
        if broken_before.keys() - broken.keys():
            self._check_pending = True

    def _streams(self) -> list[str]:
        return [stream for stream in self._partitions if stream not in self._broken]

    async def run_once(self) -> None:
        """Take as many entries as there are free slots; wait for a slot, or for an entry."""
        if self._broken and time.monotonic() - self._broken_since > RETRY_BROKEN:
            await self.create_groups()
        streams = self._streams()
        if not streams:
            await anyio.sleep(1.0)
            return
        free = self._free()
        if free <= 0:
            self._slot_freed = anyio.Event()
            if not self._claims.running:
                _log.warning(
                    "no attempts are taken until a thread returns or is replaced: all %d slots are held by threads "
                    "that still run although their attempts have ended",
                    self._slots,
                )
            if not self._stopped:
                await self._slot_freed.wait()
            return
        if self._check_pending:
            self._check_pending = False
            self._claim(await self._connection.read(streams, PENDING, pending=True))
            return
        if not await self._take_without_waiting(streams, free) and not self._stopped:
            entries = await self._connection.read(streams, 1, pending=False)
            self._claim(entries[:free])
            await self._requeue(entries[free:])

    def _free(self) -> int:
        """Steps that can begin at once. A thread that still runs after its time-out keeps its slot: an attempt taken
        for that slot would wait here forever, while other workers have free ones."""
        return self._slots - self._claims.running - self._executor.lingering

    async def _take_without_waiting(self, streams: list[str], free: int) -> bool:
        """Whether there were entries."""
        streams = streams[self._turn :] + streams[: self._turn]
        asked = 0
        while asked < len(streams):
            chunk = streams[asked : asked + free]
            entries = await self._connection.read(chunk, max(1, free // len(chunk)), pending=False, wait=False)
            asked += len(chunk)
            if entries:
                self._turn = (self._turn + asked) % len(streams)
                self._claim(entries)
                return True
        return False

    async def _requeue(self, entries: list[Entry]) -> None:
        """Several partitions got entries at the same moment: those beyond the free slots are for other workers."""
        calls: list[Call[int]] = []
        for stream, entry, fields in entries:
            run_id, seq = ((fields or {}).get(name, b"").decode(errors="replace") for name in (b"run", b"seq"))
            claim = ClaimRef(entry, f"{run_id}/{seq}")
            calls.append(self._kernel.requeue_attempts(*self._partitions[stream], self._claims.consumer, [claim]))
        answers = await self._store.send(calls) if calls else []
        for (stream, entry, _), answer in zip(entries, answers, strict=True):
            if isinstance(answer, StoreError):
                queue, number = self._partitions[stream]
                _log.warning(
                    "entry %s of partition %d of queue %s could not be requeued, so this worker will run it: %s",
                    entry,
                    number,
                    queue,
                    answer,
                )
                self._check_pending = True

    def _claim(self, entries: list[Entry]) -> None:
        """Make a claim of each entry, and start its step."""
        for stream, entry, fields in entries:
            partition = self._partitions[stream]
            if self._claims.has(partition, entry):
                continue
            fields = fields or {}  # None: it was deleted while it was pending, and only has to be acknowledged
            run_id = fields.get(b"run", b"").decode(errors="replace")
            numbers = [fields.get(name, b"") for name in (b"created", b"seq", b"attempt")]
            if not run_id or not all(number.isdigit() and len(number) <= MAX_DIGITS for number in numbers):
                claim = Claim(partition, entry, run_id or "-", 0, 0, 0)
                self._claims.add(claim)
                self._claims.report(claim, None)
                continue
            created, seq, attempt = map(int, numbers)
            claim = Claim(partition, entry, run_id, created, seq, attempt)
            self._claims.add(claim)
            try:
                job = decode_job(fields.get(b"body", b""))
            except DECODE_ERRORS as error:
                _log.error(
                    "entry %s of queue %s can't be read, so step %s fails without a retry: %s",
                    entry,
                    partition[0],
                    claim.step,
                    error,
                )
                self._refuse(claim, "PayloadInvalid", f"the queue's entry can't be read: {error}", permanent=True)
                continue
            claim.mark = job.mark
            self._submit(claim, job, fields.get(b"details", b""))

    def _submit(self, claim: Claim, queued: QueuedStep, newest: bytes) -> None:
        """`newest`: details that the previous attempt reported from its worker, empty for none."""
        step = self._app.steps.get(queued.name)
        if step is None:
            text = (
                f"worker {self._claims.consumer} of queue {claim.partition[0]}: {self._app.unknown_step(queued.name)}"
            )
            self._decline(claim, "UnknownStep", text)
            return
        if not step.parameters.takes(queued.args, queued.signature):
            text = (
                f"worker {self._claims.consumer} of queue {claim.partition[0]} has step {queued.name} with the "
                f"parameters ({step.parameters.signature}), the daemon with ({queued.signature})"
            )
            self._decline(claim, UnfitArguments.__name__, text)
            return
        details = msgspec.Raw(newest) if newest else queued.details
        # Copies: a Raw is a window into the whole answer of the server, and a step may run for long.
        job = StepJob(
            claim.seq,
            claim.attempt,
            step,
            queued.args.copy(),
            details.copy(),
            queued.timeout,
            queued.lost,
            queued.blamed,
            claim.created,
            queued.workflow,
            queued.trace,
        )
        tracing = self._executor.tracing
        if tracing is not None and queued.trace:
            entered, _ = stream_order(claim.entry)
            tracing.waited(claim.partition[0], claim.run_id, job, entered)
        self._suspects.submit(claim.partition[1], claim.run_id, job)

    def _refuse(self, claim: Claim, kind: str, text: str, *, permanent: bool) -> None:
        failure = Failure(kind, text)
        self._claims.report(claim, Outcome(claim.seq, claim.attempt, 0.0, None, failure, permanent))

    def _decline(self, claim: Claim, kind: str, text: str) -> None:
        """This worker's code doesn't fit the attempt, as in the middle of a deploy: the run has it run elsewhere or
        later, and it counts for nothing."""
        _log.warning("step %s, attempt %d, is declined, and its run tries again: %s", claim.step, claim.attempt, text)
        outcome = Outcome(claim.seq, claim.attempt, 0.0, None, Failure(kind, text), kinds=(kind, DECLINED))
        self._claims.report(claim, outcome)
