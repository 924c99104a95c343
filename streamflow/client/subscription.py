"""What `client.events(group=…)` returns: committed events of all shards, one after the other or in batches.

Owns: the begin and end of a subscription, whose turn it is among the shards, and what counts as acknowledged.
Must not: decide which shards it has (`consumer.py`), or how their logs are read (`log_reader.py`).
Called by: the client.

Of a shard nothing more is delivered until what was delivered last is acknowledged: so events of a run stay in order,
and a shard that moves to another consumer has nothing under way. A log entry is acknowledged as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import cast, overload

import msgspec

from streamflow.client.committed import CommittedEvent, Decoding, Filter, Join
from streamflow.client.consumer import Consumer, Held, Resume
from streamflow.client.groups import From, Groups, start_of
from streamflow.client.log_reader import LogReader, ShardLog
from streamflow.errors import StoreError, StoreUnavailable, UsageError
from streamflow.model.names import check_name
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel, Missed
from streamflow.store.namespace import Namespace
from streamflow.text import plural
from streamflow.wire import stream_order

_log = logging.getLogger("streamflow.groups")

RETRY_SECONDS = 0.2
CLOSE_SECONDS = 5.0
"""Seconds that the end of a subscription waits for the server."""
SHORTEST_DEAD_AFTER = 0.2


class Lost(msgspec.Struct, frozen=True):
    """Events that were trimmed before the group had acknowledged them, because it was too far behind: those of so many
    log entries of a shard, behind the offset `first` up to `last`."""

    shard: int
    entries: int
    first: str
    last: str


class EventBatch(Sequence[CommittedEvent]):
    """Events of one shard, in order. `offset` is that of the log entry with which it ends: who stores it together with
    what the events have changed, and begins behind it (`resume=`), has each batch exactly once."""

    def __init__(
        self, shard: int, offset: str, events: list[CommittedEvent], held: Held | None, acknowledge: Acknowledge
    ) -> None:
        self.shard = shard
        self.offset = offset
        self.events = events
        self.held = held
        """What this consumer has of the shard: if it loses that, the batch counts no more."""
        self.log_entries = 0
        """Log entries that it has, wanted or not."""
        self.handed_out = 0
        """Events that the subscriber has got of it."""
        self._acknowledge = acknowledge

    async def ack(self) -> bool:
        """Acknowledge all events of the batch, and wait until the server knows it. Asking for the next batch does the
        same within 0.1 seconds. False if this consumer doesn't have the shard any more: another one gets the batch
        again. Raises `StoreError`."""
        self.handed_out = len(self.events)
        return await self._acknowledge(self)

    @overload
    def __getitem__(self, index: int) -> CommittedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[CommittedEvent]: ...
    def __getitem__(self, index: int | slice) -> CommittedEvent | list[CommittedEvent]:
        return self.events[index]

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[CommittedEvent]:
        return iter(self.events)

    def __repr__(self) -> str:
        return f"<{plural(len(self.events), 'event')} of shard {self.shard} up to {self.offset}>"


Acknowledge = Callable[[EventBatch], Awaitable[bool]]


class Subscription:
    """One consumer of a group of subscribers: an asynchronous context manager, and what is iterated in it.

    Created by `client.events`, which describes it.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        kernel: Kernel,
        read_namespace: Callable[[], Awaitable[Namespace]],
        group: str,
        *,
        workflows: Iterable[object] | None,
        kinds: Iterable[object] | None,
        from_: From,
        resume: Resume | None,
        dead_after: float,
        join: Join | None = None,
    ) -> None:
        self._join = join
        self.group = check_name("group", group)
        self.lost: list[Lost] = []
        """What the group has lost since it began or was reset last, as far as this consumer has come upon it."""
        start_of(from_)
        if not isinstance(dead_after, int | float) or not SHORTEST_DEAD_AFTER <= dead_after < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"dead_after={dead_after!r} must be {SHORTEST_DEAD_AFTER} seconds or more")
        if not (resume is None or callable(resume) or isinstance(resume, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"resume={resume!r} must be offsets by shard, or a function that gives the one of a shard")
        self._store = store
        self._kernel = kernel
        self._read_namespace = read_namespace
        self._filter = Filter(workflows, kinds)
        self._from: From = from_
        self._resume = resume
        self._dead_after = dead_after
        self._news = asyncio.Event()
        self._open: dict[int, EventBatch] = {}
        """What was handed out of each shard and isn't acknowledged."""
        self._left_over: list[int] = []
        """Shards of batches whose iteration was left."""
        self._failure: BaseException | None = None
        self._loops: asyncio.Task[None] | None = None
        self._reader: LogReader
        self._consumer: Consumer
        self._decoding: Decoding

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def consumer(self) -> str:
        """The id of this consumer, as `streamflow groups show` has it. Raises `UsageError` before the block."""
        if self._loops is None:
            raise UsageError("the subscription isn't open: use it in `async with`")
        return self._consumer.id

    @property
    def shards(self) -> list[int]:
        """The shards that this consumer reads now."""
        return [] if self._loops is None else sorted(self._consumer.held)

    @property
    def trouble(self) -> str:
        """Why the subscriber doesn't go on, for who looks at its group: `streamflow groups show`, the status. Set it to
        a sentence, and to "" when it is over; it is sent with the next heartbeat."""
        return "" if self._loops is None else self._consumer.trouble

    @trouble.setter
    def trouble(self, text: str) -> None:
        if self._loops is not None:
            self._consumer.trouble = text

    async def __aenter__(self) -> Subscription:
        """When this returns, the group exists, and has a position in every shard. Raises `StoreError`,
        `NamespaceMissing`."""
        if self._loops is not None:
            raise UsageError("the subscription is open already: make another one with client.events()")
        namespace = await self._read_namespace()
        store, kernel = self._store(), self._kernel
        note = await Groups(store, kernel, namespace.shards).make(self.group, self._from)
        self._decoding = Decoding(store, kernel, self._filter, self._join if namespace.large_payload else None)
        self._reader = LogReader(store, kernel, self._news.set)
        self._consumer = Consumer(
            store,
            kernel,
            self._reader,
            self.group,
            note,
            namespace.shards,
            self._dead_after,
            self._resume,
            self._missed,
        )
        self._loops = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            for batch in list(self._open.values()):
                if batch.handed_out == len(batch.events):
                    self._done(batch)
        await self.close()

    async def close(self) -> None:
        """Send what is acknowledged, and give the shards up, so that others get them at once. What was delivered and
        is not acknowledged is delivered again."""
        loops, self._loops = self._loops, None
        if loops is None:
            return
        loops.cancel()
        await asyncio.wait([loops])
        self._open.clear()
        self._consumer.working.clear()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._consumer.leave()
        except (StoreError, TimeoutError) as error:
            _log.warning(
                "consumer %s of group %s could not leave: %s; others take its shards over after %g s",
                self._consumer.id,
                self.group,
                error or "no answer in time",
                self._dead_after,
            )

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(self._consumer.run())
                loops.create_task(self._reader.run())
        except BaseExceptionGroup as group:
            self._failure = _first(group)
            self._news.set()

    # --- iterating ----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[CommittedEvent]:
        return self._events()

    async def _events(self) -> AsyncGenerator[CommittedEvent]:
        opened = self._loops is None
        if opened:
            await self.__aenter__()
        try:
            async with aclosing(self._batches(1, 0.0, whole=False)) as batches:
                async for batch in batches:
                    while batch.handed_out < len(batch.events) and self._open.get(batch.shard) is batch:
                        batch.handed_out += 1
                        yield batch.events[batch.handed_out - 1]
        finally:
            if opened:
                await self.close()

    async def batches(self, max_events: int = 500, max_wait: float = 1.0) -> AsyncGenerator[EventBatch]:
        """Events in batches, each of one shard. A batch is there when it has `max_events`, or when `max_wait` seconds
        have passed since the first of them could be read. A log entry is not divided, so it may have some more.

        A batch is acknowledged when the next one is asked for, or by its `ack()`. Never ends. Raises `GroupRemoved`,
        `StoreError` for what the server refuses; while it can't be reached, it waits.
        """
        if max_events < 1:
            raise UsageError(f"max_events must be an integer >= 1, got {max_events}")
        opened = self._loops is None
        if opened:
            await self.__aenter__()
        try:
            async with aclosing(self._batches(max_events, max_wait, whole=True)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            if opened:
                await self.close()

    async def _batches(self, max_events: int, max_wait: float, *, whole: bool) -> AsyncGenerator[EventBatch]:
        while True:
            batch = await self._next(max_events, max_wait)
            if whole:
                batch.handed_out = len(batch.events)
            try:
                yield batch
            except BaseException:
                self._left_over.append(batch.shard)  # whether it counts is known when somebody asks for more
                self._news.set()
                raise
            self._done(batch)

    async def _next(self, max_events: int, max_wait: float) -> EventBatch:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._loops is None:
                raise UsageError("the subscription is closed: make another one with client.events()")
            while self._left_over:
                batch = self._open.get(self._left_over.pop())
                if batch is not None and batch.handed_out < len(batch.events):
                    return self._rest_of(batch)
                if batch is not None:
                    self._done(batch)
            if not self._consumer.is_sure:
                await self._make_sure()
                continue
            self._news.clear()
            log, pause = self._whose_turn(max_events, max_wait)
            if log is not None:
                batch = await self._take(log, max_events)
                if batch is not None:
                    return batch
                continue
            try:
                async with asyncio.timeout(min(pause, self._consumer.dead_after / 2)):
                    await self._news.wait()
            except TimeoutError:
                pass

    def _rest_of(self, batch: EventBatch) -> EventBatch:
        """What was not handed out of a batch whose iteration was left in the middle of a log entry."""
        rest = EventBatch(batch.shard, batch.offset, batch.events[batch.handed_out :], batch.held, self._acknowledge)
        rest.log_entries = batch.log_entries
        self._open[batch.shard] = rest
        return rest

    async def _make_sure(self) -> None:
        """This process was stopped, or the server away: others may have the shards."""
        try:
            await self._consumer.beat()
        except StoreError as error:
            _log.debug("no heartbeat: %s", error)
            await asyncio.sleep(min(1.0, self._dead_after / 2))

    def _whose_turn(self, max_events: int, max_wait: float) -> tuple[ShardLog | None, float]:
        """The log of which something is delivered next; if there is none, seconds until there may be one."""
        now, pause = time.monotonic(), self._dead_after
        for log in self._reader.filled.values():
            if log.number in self._open:
                continue
            rest = log.since + max_wait - now
            if log.parts >= max_events or rest <= 0 or self._reader.is_full:
                return log, 0.0
            pause = min(pause, rest)
        return None, pause

    async def _take(self, log: ShardLog, max_events: int) -> EventBatch | None:
        """Events of a shard; None if nothing of what was read is wanted, or the shard is another's now."""
        held = self._consumer.held.get(log.number)
        batch = EventBatch(log.number, log.taken, [], held, self._acknowledge)
        self._open[log.number] = batch
        self._consumer.working.add(log.number)
        try:
            while log.entries and len(batch.events) < max_events:
                entry, fields, _ = log.entries[0]
                events = await self._decoding.events(log.number, entry, fields)
                if log.gone:
                    break
                self._reader.take(log)
                batch.offset = entry
                batch.log_entries += 1
                batch.events += events
        except StoreUnavailable as error:  # for what the log doesn't have
            if not batch.events:
                _log.warning("payloads of shard %d can't be read, will retry: %s", log.number, error)
                await asyncio.sleep(RETRY_SECONDS)
        except BaseException:
            self._done(batch, counts=False)
            raise
        if log.gone or not batch.events:
            self._done(batch, counts=not log.gone)
            return None
        return batch

    # --- acknowledging ------------------------------------------------------------------------------------------------

    def _done(self, batch: EventBatch, *, counts: bool = True) -> None:
        if self._open.get(batch.shard) is not batch:
            return
        del self._open[batch.shard]
        self._consumer.working.discard(batch.shard)
        if counts and batch.log_entries and batch.held is not None:
            self._consumer.done(batch.held, batch.offset, batch.log_entries)

    async def _acknowledge(self, batch: EventBatch) -> bool:
        self._done(batch)
        await self._consumer.flush()
        return batch.held is not None and stream_order(batch.held.known) >= stream_order(batch.offset)

    def _missed(self, shard: int, missed: Missed) -> None:
        self.lost.append(Lost(shard, missed.entries, missed.first, missed.last))
        _log.error(
            "group %s has lost the events of %d log entries of shard %d, up to %s: it was so far behind that they were "
            "trimmed (group_bytes, group_age)",
            self.group,
            missed.entries,
            shard,
            missed.last,
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(cast("BaseExceptionGroup[BaseException]", error)) if isinstance(error, BaseExceptionGroup) else error
