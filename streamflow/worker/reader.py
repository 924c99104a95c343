"""Reads a worker's queues: takes only as many entries as the worker has free slots, from all partitions in turn.

Owns: which partitions are read and how many entries are asked for. Must not: run steps, or acknowledge entries
(`claims` does). Called by: the worker (runs the loops), claims and executor (report that a slot is free).

A queue has a partition in each shard. Who adds entries to one rings on its channel (`lua/shared/attempts.lua`), and the
partition comes to the end of the list of those that are read. It leaves the list before it is read, and comes back if
it has given all entries that a read may have: there may be more. So no entry waits forever for a worker with a free
slot, because

- a ring that comes while the partition is read, or while this worker is full, puts it on the list,
- rings may be lost before a channel is subscribed: all partitions are looked at *after* that, and after reconnections,
- partitions whose read has failed come back to the list.

`tests/unit/worker/test_bell_model.py` goes through all orders of events, and shows that none of these can be left out.
After an error this worker's own pending entries are read again: an answer that was lost may have carried some, and `>`
never returns them again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

import anyio
import msgspec

from streamflow.errors import ArchiveDamaged, Failure, StoreError, StoreUnavailable
from streamflow.loops import retry_forever
from streamflow.machine.sealed import hide
from streamflow.machine.transition import Outcome
from streamflow.model.codec import DECLINED, DECODE_ERRORS, UnfitArguments
from streamflow.model.references import has_mark, references_in
from streamflow.steps.executor import StepExecutor
from streamflow.steps.suspects import Suspects
from streamflow.store.cluster_subscription import open_subscription
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import ClaimRef, Kernel, QueuePeek, split_attempt, split_step
from streamflow.store.queue_reads import PENDING, Entry, GroupGone, QueuePage, QueueReads
from streamflow.store.queues import partitions_claimed_by
from streamflow.store.servers import send_to_each
from streamflow.wire import QueuedStep, decode_job, partition_name, stream_order
from streamflow.worker.claims import Claim, Claims, Partition
from streamflow.worker.large_arguments import LargeArguments
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import App

if TYPE_CHECKING:
    from streamflow.store.durability import Confirmation

_log = logging.getLogger("streamflow.worker")

RETRY_BROKEN = 5.0
"""Seconds until a partition that can't be read (a key of another type, a permission) is tried again."""
ASK_AGAIN = 0.25
"""Seconds after which a server that did not answer is read again."""
WIDEST = 256
"""Partitions that are read at once, at most, when all before them were empty."""
SILENCE = 5.0
"""Seconds without a ring after which it is asked whether the connection is there, and after as many more given up."""
ROUND_EVERY = 5.0
ROUNDS = 12
"""Every so many seconds one of so many parts of the partitions is looked at although nothing has rung."""
PATIENCE = 2.0
"""Seconds for which a server is waited for while others have answered."""


class QueueReader:
    def __init__(
        self,
        app: App,
        store: Store,
        kernel: Kernel,
        reads: QueueReads,
        claims: Claims,
        executor: StepExecutor,
        suspects: Suspects,
        *,
        slots: int,
    ) -> None:
        self._app = app
        self._store = store
        self._kernel = kernel
        self._reads = reads
        self._claims = claims
        self._executor = executor
        self._suspects = suspects
        self._slots = slots
        self._partitions: dict[str, Partition] = {
            kernel.keys.queue(*partition).stream: partition for partition in claims.partitions
        }
        self._streams = {stream.encode(): stream for stream in self._partitions}
        """By channel."""
        self._queues = list(dict.fromkeys(queue for queue, _ in claims.partitions))
        self._shards = sorted({shard for _, shard in claims.partitions})
        self._bell = open_subscription(store, self._rung, self.look_everywhere, SILENCE)
        self._unheard = anyio.Event()
        """Set when channels may have to be subscribed."""
        self._ready: dict[str, None] = {}
        """Streams that may have entries, in the order in which they are read."""
        self._unseen: set[int] = set()
        """Shards whose partitions have to be looked at, because rings may have been missed."""
        self._look = anyio.Event()
        self._round = 0
        self._broken: dict[str, str] = {}
        """Streams that can't be read, and why: left out, so that the others can be."""
        self._broken_since = 0.0
        self.reads = False
        """The loop runs, and what it or the look at the partitions has asked last has not failed."""
        self._width = 0
        """Partitions that are read at once because fewer were empty."""
        self._work = anyio.Event()
        """Set when there may be something to read."""
        self._slot_freed = anyio.Event()
        self._check_pending = False
        self._histories: dict[str, int] = {}
        """By stream: its history before the last read, where steps wait until their decisions are safe."""
        self._large = LargeArguments(store, kernel.keys)
        self._confirming: set[asyncio.Task[None]] = set()
        """Waits until decisions are safe: one that a server doesn't confirm holds up no other server's."""
        self._paused: Set[str] = frozenset()
        """Queues of which nothing new begins: their partitions stay on the list."""
        self._held = False
        """Nothing is taken, because it isn't known yet what is paused."""
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

    @property
    def paused(self) -> Set[str]:
        """The queues from which nothing is taken."""
        return self._paused

    def hold(self) -> None:
        """Take nothing before `pause` has said what is paused."""
        self._held, self._paused = True, set(self._queues)

    def pause(self, queues: Set[str]) -> None:
        """Take nothing from these queues from now on, and from others again. What was taken goes on."""
        before = set[str]() if self._held else self._paused
        for queue in sorted(queues - before):
            _log.warning("queue %s is paused: no attempts are taken from it", queue)
        for queue in sorted(before - queues):
            _log.warning("queue %s goes on", queue)
        if queues != self._paused:
            self._work.set()
        self._held, self._paused = False, set(queues)

    async def stop(self) -> None:
        """Take no more entries; when this returns, those that were read are claims."""
        self._stopped = True
        for waiting in self._confirming:
            waiting.cancel()
        self._slot_freed.set()
        self._work.set()
        await self._done.wait()

    # --- which partitions are to be read ------------------------------------------------------------------------------

    async def run_bell(self) -> None:
        await self._bell.run()

    def _rung(self, channel: bytes, _: bytes) -> None:
        stream = self._streams.get(channel)
        if stream is not None:
            self._add([stream])

    def _add(self, streams: Iterable[str]) -> None:
        for stream in streams:
            if stream not in self._broken:
                self._ready[stream] = None
        self._work.set()

    def ask(self, partition: Partition) -> None:
        """Read this partition although nothing has rung."""
        self._add([self._kernel.keys.queue(*partition).stream])

    def look_everywhere(self) -> None:
        """Look at all partitions: the channels are subscribed again, and what rang meanwhile has not been heard. A
        server may also have lost what it had answered."""
        if not all(self._bell.is_confirmed(stream) for stream in self._partitions):
            self._unheard.set()
        self._unseen.update(self._shards)
        self._look.set()
        self._read_again()

    async def run_subscribing(self) -> None:
        self._unheard.set()
        await retry_forever(
            self.subscribe_once, _log, "could not subscribe to queues", on_failure=lambda: self._unheard.set()
        )

    async def subscribe_once(self) -> None:
        await self._unheard.wait()
        self._unheard = anyio.Event()
        await self._bell.add_all(self._partitions)
        self._unseen.update(self._shards)
        self._look.set()

    async def run_looking(self) -> None:
        await retry_forever(self.look_once, _log, "could not look at queues", on_failure=self._look_failed)

    def _look_failed(self) -> None:
        self.reads = False
        self._look.set()

    async def look_once(self) -> None:
        """Wait until partitions have to be looked at, or some have their turn: those where attempts wait are read."""
        with anyio.move_on_after(ROUND_EVERY):
            await self._look.wait()
        if not self._look.is_set():
            self._round = (self._round + 1) % ROUNDS
            self._unseen.update(shard for shard in self._shards if shard % ROUNDS == self._round)
        self._look = anyio.Event()
        shards, self._unseen = sorted(self._unseen), set()
        if not shards:
            return
        try:
            calls = [(self._kernel.keys.shard(n).owner, self._kernel.peek_queues(n, self._queues)) for n in shards]
            answers: list[list[QueuePeek] | StoreError] = await send_to_each(self._store, calls, PATIENCE)
        except BaseException:
            self._unseen.update(shards)
            raise
        missed: StoreError | None = None
        for shard, answer in zip(shards, answers, strict=True):
            if isinstance(answer, StoreError):
                self._unseen.add(shard)
                missed = answer
                continue
            for queue, found in zip(self._queues, answer, strict=True):
                if found.waiting:
                    self._add([self._kernel.keys.queue(queue, shard).stream])
        if missed is not None:
            if len(self._unseen) == len(shards):
                raise missed
            await anyio.sleep(ASK_AGAIN)
            self._look.set()
        self.reads = not self._done.is_set()

    # --- reading ------------------------------------------------------------------------------------------------------

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
        self._work.set()

    async def _read_or_create_groups(self) -> None:
        try:
            await self.run_once()
        except GroupGone as error:
            _log.info("the consumer group of a queue is missing, creating it: %s", error)
            self._read_again()
            await self.create_groups(error.streams)
        self.reads = True

    async def create_groups(self, streams: Iterable[str]) -> None:
        """Create the consumer group where it is missing; it reads a stream from the first entry. A partition where that
        isn't possible is left alone for `RETRY_BROKEN` seconds."""
        asked = list(streams)
        calls = [self._kernel.create_group(*self._partitions[stream]) for stream in asked]
        try:
            answers = await self._store.send(calls)
        except StoreError as error:
            _log.warning("could not create the consumer groups of the queues, will retry: %s", error)
            return
        for stream, answer in zip(asked, answers, strict=True):
            queue, number = self._partitions[stream]
            if not isinstance(answer, StoreError):
                if self._broken.pop(stream, None) is not None:
                    self._check_pending = True
                self._add([stream])
                continue
            if stream not in self._broken:
                _log.error(
                    "partition %d of queue %s can't be read and is left alone, will retry every %g s: %s",
                    number,
                    queue,
                    RETRY_BROKEN,
                    answer,
                )
            self._broken[stream] = str(answer)
            self._ready.pop(stream, None)
        self._broken_since = time.monotonic()

    async def run_once(self) -> None:
        """Take as many entries as there are free slots; wait for a slot, or for a ring."""
        if self._broken and time.monotonic() - self._broken_since > RETRY_BROKEN:
            await self.create_groups(list(self._broken))
        if self._check_pending:
            self._check_pending = False
            await self._take_pending()
            return
        if not self._ready:
            await self._wait()
            if not self._ready and self._reads.is_waiting:
                await self._take_late()
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
        await self._take(free)

    async def _wait(self, limit: float = math.inf) -> None:
        """Until there may be something to read, or so many seconds."""
        self._work = anyio.Event()
        if self._reads.is_waiting:
            limit = min(limit, ASK_AGAIN)
        elif self._broken:
            limit = min(limit, RETRY_BROKEN)
        if not self._stopped:
            with anyio.move_on_after(limit):
                await self._work.wait()

    def _free(self) -> int:
        """Steps that can begin at once. A thread that still runs after its time-out keeps its slot: an attempt taken
        for that slot would wait here forever, while other workers have free ones."""
        return self._slots - self._claims.running - self._executor.lingering

    async def _take(self, free: int) -> None:
        """Take entries from the next partitions of the list: as many of these as there are free slots, and more when
        they were all empty, because others are quicker."""
        streams = self._next_streams(max(free, self._width))
        if not streams:
            await self._wait(ASK_AGAIN)
            return
        for stream in streams:
            del self._ready[stream]
        count = max(1, free // len(streams))
        self._note_histories(streams)
        try:
            page = await self._reads.read(streams, count)
        except BaseException:
            self._add(streams)
            raise
        found = Counter(stream for stream, _, _ in page.entries)
        # More may be in those that have given as many as they might, or that an earlier read has asked.
        self._add(stream for stream in streams if found[stream] >= count)
        self._add(found.keys() - set(streams))
        self._width = 0 if page.entries else min(WIDEST, 2 * len(streams))
        await self._taken(page, free)
        if page.unread and not page.entries:
            await self._wait(ASK_AGAIN)

    def _next_streams(self, most: int) -> list[str]:
        """Not those of paused queues, nor of servers that confirm nothing now: steps of theirs could not begin, and
        would take all slots."""
        streams = iter(self._ready)
        if self._paused:
            streams = (one for one in streams if self._partitions[one][0] not in self._paused)
        if (confirmation := self._store.confirmation) is not None:
            streams = (one for one in streams if not confirmation.is_late(self._store.server_of(one)))
        return list(itertools.islice(streams, most))

    async def _take_late(self) -> None:
        """What a server has answered that was late."""
        page = await self._reads.read([], 1)
        self._add({stream for stream, _, _ in page.entries})
        await self._taken(page, self._free())

    def _note_histories(self, streams: Iterable[str]) -> None:
        if self._store.confirmation is not None:
            for stream in streams:
                self._histories[stream] = self._store.history_of(stream)

    def _stream_of(self, claim: Claim) -> str:
        return self._kernel.keys.queue(*claim.partition).stream

    async def _taken(self, page: QueuePage, free: int) -> None:
        self._add(page.unread)
        if page.unsure:
            self._check_pending = True
        await self._claim(page.entries[: max(0, free)])
        await self._requeue(page.entries[max(0, free) :])

    async def _take_pending(self) -> None:
        """Read again what this worker has read before and doesn't have: an answer was lost, or a server has forgotten
        what was settled."""
        claimed, is_complete = await partitions_claimed_by(
            self._store, self._kernel.keys, self._claims.partitions, self._claims.consumer
        )
        streams = [self._kernel.keys.queue(*partition).stream for partition in claimed]
        streams = [stream for stream in streams if stream not in self._broken]
        if streams:
            self._note_histories(streams)
            page = await self._reads.read(streams, PENDING, pending=True)
            await self._claim(page.entries)
            is_complete = is_complete and not page.unread and not page.unsure
        if not is_complete:
            raise StoreUnavailable("a server has not answered what this worker has claimed")

    async def _requeue(self, entries: list[Entry]) -> None:
        """Several partitions got entries at the same moment: those beyond the free slots are for other workers."""
        calls: list[Call[int]] = []
        for stream, entry, fields in entries:
            claim = ClaimRef(entry, (fields or {}).get(b"step", b"").decode(errors="replace"))
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

    async def _claim(self, entries: list[Entry]) -> None:
        """Make a claim of each entry, and start its step: as soon as the decision is as safe as the namespace's
        durability asks for."""
        ready: list[tuple[Claim, QueuedStep, bytes]] = []
        for stream, entry, fields in entries:
            partition = self._partitions[stream]
            if self._claims.has(partition, entry):
                continue
            fields = fields or {}  # None: it was deleted while it was pending, and only has to be acknowledged
            run_id, seq = split_step(fields.get(b"step", b""))
            created, attempt = split_attempt(fields.get(b"attempt", b""))
            if not (run_id and seq and created and attempt):
                claim = Claim(partition, entry, run_id or "-", 0, seq, 0)
                self._claims.add(claim)
                self._claims.report(claim, None)
                continue
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
            ready.append((claim, job, fields.get(b"details", b"")))
        if self._store.confirmation is None:
            for one in ready:
                self._submit(*one)
            return
        by_server: dict[int, list[tuple[Claim, QueuedStep, bytes]]] = {}
        for one in ready:
            by_server.setdefault(self._store.server_of(self._stream_of(one[0])), []).append(one)
        for some in by_server.values():
            histories = {
                stream: self._histories.get(stream) for stream in {self._stream_of(claim) for claim, _, _ in some}
            }
            waiting = asyncio.create_task(self._begin_when_safe(self._store.confirmation, some, histories))
            hide(waiting)
            self._confirming.add(waiting)
            waiting.add_done_callback(self._confirming.discard)

    async def _begin_when_safe(
        self,
        confirmation: Confirmation,
        ready: list[tuple[Claim, QueuedStep, bytes]],
        histories: Mapping[str, int | None],
    ) -> None:
        """When it is cancelled, because the worker stops, they are requeued."""
        try:
            await confirmation.wait(math.inf, *histories)
        except StoreError as error:
            _log.warning("could not wait until decisions are safe, reading their attempts again: %s", error)
            histories = {}
        for claim, job, details in ready:
            stream = self._stream_of(claim)
            if histories.get(stream) != self._store.history_of(stream):  # what was decided may be lost
                self._claims.forget(claim)
                self._read_again()
            elif not claim.ended:  # meanwhile
                self._submit(claim, job, details)

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
        args = queued.args.copy()
        if has_mark(data := bytes(args)) and references_in(data):
            fetching = asyncio.create_task(self._submit_when_fetched(claim, queued, newest))
            hide(fetching)
            self._confirming.add(fetching)
            fetching.add_done_callback(self._confirming.discard)
            return
        details = msgspec.Raw(newest) if newest else queued.details
        # Copies: a Raw is a window into the whole answer of the server, and a step may run for long.
        job = StepJob(
            claim.seq,
            claim.attempt,
            step,
            args,
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

    async def _submit_when_fetched(self, claim: Claim, queued: QueuedStep, newest: bytes) -> None:
        """When it is cancelled, because the worker stops, the attempt is requeued."""
        try:
            args = await self._large.whole(bytes(queued.args), f"step {claim.step}, attempt {claim.attempt},")
        except ArchiveDamaged as error:
            self._refuse(claim, type(error).__name__, str(error), permanent=False)
            return
        if not claim.ended:  # meanwhile
            self._submit(claim, msgspec.structs.replace(queued, args=msgspec.Raw(args)), newest)

    def _refuse(self, claim: Claim, kind: str, text: str, *, permanent: bool) -> None:
        failure = Failure(kind, text)
        self._claims.report(claim, Outcome(claim.seq, claim.attempt, 0.0, None, failure, permanent))

    def _decline(self, claim: Claim, kind: str, text: str) -> None:
        """This worker's code doesn't fit the attempt, as in the middle of a deploy: the run has it run elsewhere or
        later, and it counts for nothing."""
        _log.warning("step %s, attempt %d, is declined, and its run tries again: %s", claim.step, claim.attempt, text)
        outcome = Outcome(claim.seq, claim.attempt, 0.0, None, Failure(kind, text), kinds=(kind, DECLINED))
        self._claims.report(claim, outcome)
