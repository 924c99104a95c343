"""A run's stream: what its steps emit, read while they run.

Owns: where a reader is (offsets), that it misses nothing and learns what is gone, and when a stream ends. Must not:
decode values (`run.py` does). Called by: client.

    subscribe to the run's chunks ── confirmed ── read ── chunks ── all of an ended run: the end
                                                    ↑        └── else wait for a ring, or for the end of the run
                                                    └─────────────────┘

Each append rings; a ring says nothing, so one that comes too often or gets lost does no harm: every few seconds it
is read in any case. The status of the run comes with the chunks, from the same moment, and no step's outcome is
recorded before its chunks are stored: so what is read together with the end is all.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from streamflow.client.pipelines import Batcher
from streamflow.client.rings import Rings
from streamflow.client.waiting import check_found
from streamflow.errors import RunNotFound, StoreMisconfigured, UsageError
from streamflow.model.codec import DECODE_ERRORS
from streamflow.model.record import decode_header
from streamflow.store.kernel import ChunkPage, Kernel

T = TypeVar("T")

READ_BYTES = 256 * 1024
"""Of one read, about."""
LOOK_EVERY = 5.0
"""Seconds after which it is read again also without a ring."""

_OFFSET = re.compile(r"(\d{1,16})-(\d{1,12})-(\d{1,15})")
_chunks_decoder = msgspec.msgpack.Decoder(list[tuple[int, Raw]])


class Chunk(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One chunk of a run's stream, from `run.stream()`."""

    value: T
    """What the step has emitted."""
    offset: str
    """Its place: `run.stream(after=offset)` goes on behind it. Letters, digits and dashes; fit for `Last-Event-ID`."""
    step: str
    """Name of the step that has emitted it."""
    seq: int
    """The number of that call in the run: it tells two calls of one step apart. All attempts of a call have it."""
    attempt: int
    """1 for the first attempt of the call."""
    at: datetime
    """When it was emitted (UTC), by the clock of the machine that runs the step."""
    restarted: bool = False
    """The first chunk of an attempt behind another one of the same call (or of the same attempt, run again because its
    process has died): what that had emitted is void, and its text comes again."""
    missed: int = 0
    """So many chunks of the run, before this one, are gone, or were never stored: the stream is bounded."""


class EmittedChunk(NamedTuple):
    """A chunk before its value is decoded. `entry` is the one that it came in, `number` its own in the run."""

    made: str
    entry: int
    number: int
    step: str
    seq: int
    attempt: int
    at: int
    data: Raw
    restarted: bool
    missed: int

    @property
    def offset(self) -> str:
        return f"{self.made}-{self.entry}-{self.number}"


class StreamPosition(msgspec.Struct):
    """Where a reader is: the next entry, and the number of the last chunk that it has; of the chunks begun at `made`,
    empty for whichever there are."""

    made: str = ""
    entry: int = 1
    number: int = 0
    has_begun: bool = False
    """Something was read, so the run was there."""


class StreamFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `run.stream_facts()` returns: of what a run's steps have emitted."""

    emitted: int
    """Chunks, also those that never reached the server."""
    kept: int
    """So many of the newest are still there, at most."""
    step: str
    """Which step has emitted last..."""
    at: datetime
    """...and when (UTC)."""


def position_of(offset: str) -> StreamPosition:
    """Behind the chunk with that offset; empty: at the beginning. Raises `UsageError`."""
    if not offset:
        return StreamPosition()
    found = _OFFSET.fullmatch(offset)
    if found is None:
        raise UsageError(f"stream(after=…) must be the offset of a chunk, got {offset[:60]!r}")
    return StreamPosition(found[1], int(found[2]), int(found[3]))


class StreamReader:
    """Reads of one namespace."""

    def __init__(self, kernel: Kernel, batcher: Batcher, rings: Rings) -> None:
        self._kernel = kernel
        self._batcher = batcher
        self._rings = rings

    async def chunks(
        self,
        shard: int,
        run_id: str,
        created: int,
        position: StreamPosition,
        ended: Callable[[], Awaitable[Any]] | None,
    ) -> AsyncGenerator[EmittedChunk]:
        """The chunks behind a position; with `ended`, which returns at the end of the run, until that, else what is
        there. Raises `RunNotFound`, `StoreError`."""
        async with contextlib.AsyncExitStack() as stack:
            bell = None
            if ended is not None:
                bell = await stack.enter_async_context(self._rings.of(self._kernel.keys.shard(shard).chunks(run_id)))
                stack.push_async_callback(_stop, asyncio.create_task(_ring_at(ended, bell)))
            while True:
                if bell is not None:
                    bell.clear()
                read = self._kernel.read_chunks(shard, run_id, position.made, position.entry, READ_BYTES)
                page = await self._batcher.call(read)
                try:
                    created = check_found(page.header, run_id, created)
                except RunNotFound:
                    if not position.has_begun:
                        raise
                    raise gone_meanwhile(run_id) from None
                position.has_begun = True
                for chunk in taken(page, position):
                    yield chunk
                if position.made == page.made and position.entry < page.next:
                    continue
                if bell is None or not decode_header(page.header).is_open:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await bell.wait()

    async def facts(self, shard: int, run_id: str, created: int) -> StreamFacts | None:
        """Of a run's stream; None if it has none."""
        read = self._kernel.read_chunks(shard, run_id, "", 1, 1)
        page = await self._batcher.call(read)
        check_found(page.header, run_id, created)
        if not page.made:
            return None
        last = await self._batcher.call(self._kernel.read_chunks(shard, run_id, page.made, page.next - 1, 1))
        position = StreamPosition(page.made, page.first)
        oldest = next(iter(taken(page, position)), None)
        newest = list(taken(last, StreamPosition(last.made, last.next - 1)))
        if oldest is None or not newest:
            return None
        kept = page.total - oldest.number + 1
        return StreamFacts(emitted=page.total, kept=kept, step=newest[-1].step, at=instant_of(newest[-1].at))


def gone_meanwhile(run_id: str) -> RunNotFound:
    """Only a run that has ended is deleted; whether its last chunks had been read isn't known any more."""
    return RunNotFound(
        f"run {run_id} has ended, and was deleted or archived before all of its stream was read: what its steps had "
        f"emitted last is gone. `streamflow show {run_id}` shows the rest, if it is in the archive",
        run_id,
    )


async def _ring_at(ended: Callable[[], Awaitable[Any]], bell: asyncio.Event) -> None:
    """Errors aren't this one's: the reads go on, and raise them if they don't pass."""
    try:
        with contextlib.suppress(Exception):
            await ended()
    finally:
        bell.set()


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def instant_of(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def taken(page: ChunkPage, position: StreamPosition) -> list[EmittedChunk]:
    """The chunks of a page that are behind the position, which moves behind the page."""
    if page.made != position.made:  # begun again: they had expired, or the server has lost them
        position.entry, position.number = page.first, 0
        position.made = page.made
    elif position.entry > page.next:  # the server has lost its newest writes
        position.entry, position.number = page.next, page.total
    chunks: list[EmittedChunk] = []
    for entry, text in page.entries:
        try:
            head, _, body = text.partition(b"\n")
            start, seq, attempt, restarts, _, step = head.decode().split(" ", 5)
            number, found = int(start), _chunks_decoder.decode(body)
            of, tries = int(seq), int(attempt)
        except (*DECODE_ERRORS, ValueError) as error:
            raise StoreMisconfigured(f"entry {entry} of a run's stream can't be read: {error}") from error
        is_first = restarts == "1"
        for at, data in found:
            if number > position.number:
                missed = number - position.number - 1
                chunks.append(EmittedChunk(page.made, entry, number, step, of, tries, at, data, is_first, missed))
                position.number = number
            is_first = False
            number += 1
        position.entry = entry + 1
    return chunks
