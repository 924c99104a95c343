"""What running steps emit (`sf.emit`), on its way to the server.

Owns: what attempts have emitted and the server doesn't have yet, its bounds, and sending it. Must not: know who runs an
attempt (step records and claims do), run steps (executor), read what was emitted (client).
Called by: `sf.emit`, in whatever thread; the executor, when an attempt has ended; the daemon or worker runs the loop.

The first chunk is sent at once, over a connection that nothing else uses; what is emitted within the next 10 ms is one
batch, or 25 ms where it is much. So a step that emits ten thousand a second costs the server forty calls, and no commit
waits behind them.

`emit` never waits. An attempt keeps a megabyte here; when the server doesn't take it in time, the oldest go, and
readers see how many. The outcome of an attempt waits until its chunks are stored, `LONGEST_HOLD` seconds at most:
so a reader who sees the end of a run can read all that its steps have emitted.

Each batch goes with proof of who runs the attempt: one whose daemon or worker was replaced stores nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup
from msgspec import Raw

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.steps.context import Running
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import ChunkBatch, Holder, Kernel

_log = logging.getLogger("streamflow.steps")
_encode = msgspec.msgpack.Encoder().encode

GATHER = 0.01
"""Seconds between two pipelines to a server..."""
GATHER_MANY = 0.025
MANY = 50
"""...and behind one with so many chunks: nobody sees the difference, and it is half of the work."""
BUFFER_BYTES = 1024 * 1024
BUFFER_CHUNKS = 20_000
"""What an attempt may have here that is not stored."""
BATCH_BYTES = 64 * 1024
BATCH_CHUNKS = 2000
"""One call's chunks, about: less than a millisecond of the server."""
PIPELINE_BYTES = 256 * 1024
PIPELINE_CALLS = 200
"""Attempts take turns: however much they emit, a server gets 25 MB a second from a daemon or worker at most."""
PATIENCE = 2.0
"""Seconds for which a pipeline is tried, before it is put together again."""
LONGEST_HOLD = 2.0
"""Seconds for which the outcome of an attempt waits for its chunks."""
LOOK_AGAIN = 0.05
"""Seconds until a batch is sent again that found nobody who may."""
SAY_AGAIN = 60.0
"""Seconds between two lines of the log about chunks that the server refuses."""


class Emitted:
    """What one execution of an attempt has emitted, and the server doesn't have. `add` is called in any thread."""

    __slots__ = (
        *("_lock", "batch", "chunks", "closed", "dealt", "execution", "missed", "number", "over", "queued", "running"),
        *("size", "then", "timer"),
    )

    def __init__(self, running: Running) -> None:
        self.running = running
        self.execution = secrets.token_hex(6)
        self.chunks: deque[tuple[int, bytes]] = deque()
        self.size = 0
        self.missed = 0
        """Chunks that were dropped before those that wait."""
        self.number = 0
        self.batch: ChunkBatch | None = None
        """Sent, and not known to be stored."""
        self.queued = False
        """The sender will look at it."""
        self.dealt = False
        """It is in a lane: never twice, else two batches of it would be under way."""
        self.over = False
        self.closed = False
        self.then: Callable[[], None] | None = None
        """Called when all is stored, or never will be."""
        self.timer: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()

    def add(self, at: int, data: bytes, missed: int = 0) -> bool:
        """Keep a chunk. True if the sender has to be woken."""
        with self._lock:
            if self.closed:
                return False
            self.missed += missed
            self.chunks.append((at, data))
            self.size += len(data)
            while self.size > BUFFER_BYTES or len(self.chunks) > BUFFER_CHUNKS:
                self.size -= len(self.chunks.popleft()[1])
                self.missed += 1
            return self._is_first()

    def end(self) -> bool:
        """Nothing more comes. True if the sender has to be woken."""
        with self._lock:
            self.over = True
            return self._is_first()

    def _is_first(self) -> bool:
        was_queued, self.queued = self.queued, True
        return not was_queued

    def next_batch(self) -> ChunkBatch | None:
        """The one whose fate isn't known, or else the next one; None if there is nothing to send."""
        if self.batch is not None:
            return self.batch
        with self._lock:
            taken: list[tuple[int, Raw]] = []
            size = 0
            while self.chunks and size < BATCH_BYTES and len(taken) < BATCH_CHUNKS:
                at, data = self.chunks.popleft()
                taken.append((at, Raw(data)))
                size += len(data)
            self.size -= size
            over = self.over and not self.chunks
            if not taken and not over:
                self.queued = self.dealt = False
                return None
            missed, self.missed = self.missed, 0
        self.number += 1
        running, job = self.running, self.running.job
        body = _encode(taken)
        self.batch = ChunkBatch(
            running.run_id, job.created, job.seq, job.attempt, self.execution, job.step.name, self.number, len(taken),
            body, missed, over,
        )  # fmt: skip
        return self.batch

    def refused(self, batch: ChunkBatch) -> None:
        """It will never be stored."""
        with self._lock:
            self.missed += batch.missed + batch.count
        self.batch = None

    def close(self) -> None:
        """Drop what is here, and whatever comes."""
        with self._lock:
            self.closed = True
            self.chunks.clear()
            self.batch = None
        if self.timer is not None:
            self.timer.cancel()
        then, self.then = self.then, None
        if then is not None:
            then()


class ChunkSender:
    """`holder_of(running)` says by what the server knows that an attempt is run here, and None while nothing does.

    `limit`: bytes that the server keeps of a run's chunks, about; `seconds`: for how long after the last one.
    """

    def __init__(
        self, store: Store, kernel: Kernel, holder_of: Callable[[Running], Holder | None], limit: int, seconds: float
    ) -> None:
        self.stored = 0
        """Chunks that were stored since the start..."""
        self.missed = 0
        """...and those of which the server knows only that there were so many."""
        self._given = store
        self._store: Store | None = None
        self._kernel = kernel
        self._holder_of = holder_of
        self._limit = limit
        self._seconds = max(1, round(seconds))
        self._lock = threading.Lock()
        self._known: set[Emitted] = set()
        self._ready: deque[Emitted] = deque()
        self._has_ready = anyio.Event()
        self._lanes: dict[int, deque[Emitted]] = {}
        """What waits for each server: one that is away holds up nobody else."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._said = 0.0

    def emit(self, running: Running, data: bytes, missed: int = 0) -> None:
        """Take a chunk of an attempt. May be called from any thread."""
        emitted: Emitted | None = running.emitted
        if emitted is None:
            with self._lock:
                emitted = running.emitted
                if emitted is None:
                    emitted = running.emitted = Emitted(running)
                    self._known.add(emitted)
        if emitted.add(time.time_ns() // 1_000_000, data, missed):
            self._tell(emitted)

    def end(self, running: Running, then: Callable[[], None] | None) -> None:
        """The attempt has ended; `then` is called when all that it has emitted is stored, or after `LONGEST_HOLD`."""
        emitted: Emitted | None = running.emitted
        if emitted is None or emitted.closed:
            if then is not None:
                then()
            return
        if then is None:
            if emitted.end():
                self._tell(emitted)
            return
        emitted.then = then
        emitted.timer = asyncio.get_running_loop().call_later(LONGEST_HOLD, self._let_go, emitted)
        if emitted.end():
            self._tell(emitted)

    def _let_go(self, emitted: Emitted) -> None:
        """Its outcome waits no longer; what is not stored may still be, as long as its holder is the same."""
        then, emitted.then = emitted.then, None
        if then is not None:
            then()

    def _tell(self, emitted: Emitted) -> None:
        self._ready.append(emitted)
        if threading.get_ident() == self._thread:
            self._has_ready.set()
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the daemon or worker has ended, the thread of the step has not
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._has_ready.set()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Never returns. Connects when the first chunk is there."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._lanes.clear()
        for emitted in list(self._known):  # after an error of the loop
            emitted.dealt = False
            if emitted.queued:
                self._ready.append(emitted)
        if self._ready:
            self._has_ready.set()
        try:
            async with anyio.create_task_group() as lanes:
                while True:
                    await self._has_ready.wait()
                    self._has_ready = anyio.Event()
                    self._deal(lanes)
        finally:
            store, self._store = self._store, None
            if store is not None:
                with anyio.CancelScope(shield=True):
                    await store.close()

    def _deal(self, lanes: TaskGroup) -> None:
        if self._store is None:
            self._store = self._given.renewed()
        while self._ready:
            emitted = self._ready.popleft()
            if emitted.dealt:
                continue
            emitted.dealt = True
            server = self._store.server_of(self._kernel.keys.shard(emitted.running.shard).owner)
            lane = self._lanes.get(server)
            if lane is None:
                lane = self._lanes[server] = deque()
                lanes.start_soon(self._run_lane, server, lane)
            lane.append(emitted)

    async def _run_lane(self, server: int, lane: deque[Emitted]) -> None:
        """Until there is nothing more for this server."""
        while lane:
            if sent := await self.send_once(lane):
                await anyio.sleep(GATHER if sent < MANY else GATHER_MANY)
        del self._lanes[server]

    async def send_once(self, lane: deque[Emitted]) -> int:
        """One pipeline with what waits in the lane, as much as fits; what is left, and comes meanwhile, stays there.
        Returns how many chunks it had, 1 at least; 0 if there was nothing to send."""
        assert self._store is not None
        calls: list[Call[Any]] = []
        sent: list[tuple[Emitted, ChunkBatch, Holder]] = []
        size, nobody = 0, list[Emitted]()
        for _ in range(len(lane)):
            if size >= PIPELINE_BYTES or len(calls) >= PIPELINE_CALLS:
                break
            emitted = lane.popleft()
            if emitted.closed:
                self._known.discard(emitted)
                continue
            holder = self._holder_of(emitted.running)
            if holder is None:
                if emitted.running.over and emitted.then is None:
                    self._drop(emitted)
                else:
                    nobody.append(emitted)
                continue
            batch = emitted.next_batch()
            if batch is None:
                if emitted.running.over and emitted.then is None:
                    self._drop(emitted)
                continue
            calls.append(self._kernel.append_chunks(emitted.running.shard, batch, holder, self._limit, self._seconds))
            sent.append((emitted, batch, holder))
            size += len(batch.body)
        if calls:
            try:
                answers: list[Any] = await self._store.send(calls, PATIENCE)
            except StoreUnavailable:
                lane.extend(emitted for emitted, _, _ in sent)
                await anyio.sleep(LOOK_AGAIN)
            else:
                for (emitted, batch, holder), answer in zip(sent, answers, strict=True):
                    self._answered(lane, emitted, batch, holder, answer)
        if nobody:
            lane.extend(nobody)
            await anyio.sleep(LOOK_AGAIN)
        return sum(max(1, batch.count) for _, batch, _ in sent)

    def _answered(
        self, lane: deque[Emitted], emitted: Emitted, batch: ChunkBatch, holder: Holder, answer: str | StoreError
    ) -> None:
        if isinstance(answer, StoreUnavailable):
            lane.append(emitted)  # the same batch again: whether it is stored isn't known
            return
        if answer == "l" and self._holder_of(emitted.running) not in (holder, None):
            lane.append(emitted)  # its shard was handed over, or came back, meanwhile
            return
        if isinstance(answer, StoreError):
            self._say(answer)
            emitted.refused(batch)
        elif answer == "a":
            self.stored += batch.count
            self.missed += batch.missed
            emitted.batch = None
        if answer in ("l", "e", "m") or batch.over:
            self._drop(emitted)
        else:
            lane.append(emitted)

    def _drop(self, emitted: Emitted) -> None:
        self._known.discard(emitted)
        emitted.close()

    def _say(self, error: StoreError) -> None:
        if time.monotonic() - self._said >= SAY_AGAIN or not self._said:
            self._said = time.monotonic()
            _log.warning("what steps emit is lost as long as the server refuses it: %s", error)
