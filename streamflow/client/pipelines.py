"""Concurrent calls become few pipelines: callers queue, a flight takes all that waits, answers go back one by one.

Owns: the queues, the grouping by shard, the numbering of posts, and what one refused call means for its neighbours.
Must not: know workflows or payloads, wait on a clock. Called by: client, outcomes, listing.

A lone call leaves at the end of the same turn of the event loop; while `MAX_PIPELINES` are on their way, whatever
comes waits for the next one to return. So latency is one round trip, and throughput grows with the load. No task is
made for a call, only for a pipeline: a call costs a future.

Posts are numbered for each shard, and the server remembers only the last number of a client: so there is at most one
post for a shard on its way, and a pipeline that is sent again finds its own number.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from streamflow.errors import StoreError, StoreFull
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Message, Start

T = TypeVar("T")

MAX_PIPELINES = 4
"""Pipelines on their way at the same time; each uses a connection."""

RUNS_PER_SCRIPT = 200
BYTES_PER_SCRIPT = 1_000_000
"""A script stops the whole server while it runs: about 2 ms with so many starts."""

ENTRIES_PER_FLIGHT = 4000
BYTES_PER_FLIGHT = 8_000_000

_START, _PEEK, _POST, _CALL = range(4)


class _Entry:
    """One caller's part of a call. `alone`: a call that it shared was refused, so it gets one for itself."""

    __slots__ = ("alone", "future", "item", "kind", "shard", "size")

    def __init__(self, kind: int, shard: int, item: Any, size: int, future: asyncio.Future[Any]) -> None:
        self.kind = kind
        self.shard = shard
        self.item = item
        self.size = size
        self.future = future
        self.alone = False


class _Group:
    """The entries that share one call."""

    __slots__ = ("entries", "kind", "shard", "size")

    def __init__(self, kind: int, shard: int) -> None:
        self.kind = kind
        self.shard = shard
        self.entries: list[_Entry] = []
        self.size = 0


class Batcher:
    """The way in for all calls of one client. Its methods queue and return a future at once; await it in the same loop.

    Futures raise `StoreError`. A caller may be cancelled at any time: a call that hasn't left is dropped, one that has
    left takes effect, and nobody else notices.
    """

    def __init__(self, store: Store, kernel: Kernel, flights: int = MAX_PIPELINES) -> None:
        self._store = store
        self._kernel = kernel
        self._flights = flights
        self._queue: deque[_Entry] = deque()
        self._posts: dict[int, deque[_Entry]] = {}
        self._posting: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._source = f"client:{secrets.token_hex(16)}"
        self._flying: set[asyncio.Task[None]] = set()
        self._woken = False
        self._closed = False

    def start(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        """Empty when the run was created, else the header of the run that has the id."""
        return self._add(_START, shard, start, len(start.body) + 200)

    def peek(self, shard: int, run_id: str) -> asyncio.Future[tuple[bytes, bytes]]:
        """Header (empty when there is no such run) and last transition (empty while it is open)."""
        return self._add(_PEEK, shard, run_id, 100)

    def call(self, call: Call[T]) -> asyncio.Future[T]:
        """Any other call that is safe to send twice: it shares the pipeline."""
        return self._add(_CALL, 0, call, 100)

    def post(self, shard: int, message: Message) -> asyncio.Future[str]:
        """A letter, as `Kernel.post_messages` answers. Posts to one shard take effect in the order of these calls."""
        future: asyncio.Future[str] = self._future()
        entry = _Entry(_POST, shard, message, len(message.body) + 100, future)
        posts = self._posts.get(shard)
        if posts is None:
            posts = self._posts[shard] = deque()
        posts.append(entry)
        if not self._woken:
            self._wake()
        return future

    async def close(self) -> None:
        """Give up what is queued or on its way: its callers get `StoreError`, and can't know whether it took effect."""
        self._closed = True  # before the flights are cancelled, or the next ones would depart
        flying = list(self._flying)
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
        self._give_up()

    def _give_up(self) -> None:
        self._closed = True
        for entry in [*self._queue, *(entry for posts in self._posts.values() for entry in posts)]:
            _fail(entry, StoreError("the client was closed"))
        self._queue.clear()
        self._posts.clear()

    def _add(self, kind: int, shard: int, item: Any, size: int) -> asyncio.Future[Any]:
        future = self._future()
        self._queue.append(_Entry(kind, shard, item, size, future))
        if not self._woken:
            self._wake()
        return future

    def _future(self) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("the client is closed")
        return asyncio.get_running_loop().create_future()

    def _wake(self) -> None:
        """Depart at the end of this turn of the event loop, so that all who call in it travel together."""
        self._woken = True
        asyncio.get_running_loop().call_soon(self._depart)

    def _depart(self) -> None:
        self._woken = False
        loop = asyncio.get_running_loop()
        while len(self._flying) < self._flights and not self._closed:
            groups = self._take()
            if not groups:
                return
            task = loop.create_task(self._send_pipeline(groups))
            self._flying.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        if self._queue or self._posts:
            self._depart()

    def _take(self) -> list[_Group]:
        """Groups for one pipeline: everything that waits, up to the limits; posts at most half, so that both go on."""
        groups: list[_Group] = []
        room, size = ENTRIES_PER_FLIGHT, BYTES_PER_FLIGHT
        for shard in [shard for shard in self._posts if shard not in self._posting]:
            if room <= ENTRIES_PER_FLIGHT // 2 or size <= BYTES_PER_FLIGHT // 2:
                break
            group = self._take_posts(shard)
            if group.entries:
                room -= len(group.entries)
                size -= group.size
                self._posting.add(shard)
                groups.append(group)
        open_groups: dict[tuple[int, int], _Group] = {}
        queue = self._queue
        while queue and room > 0 and size > 0:
            entry = queue.popleft()
            if entry.future.done():  # its caller was cancelled
                continue
            room -= 1
            size -= entry.size
            key = (entry.kind, entry.shard)
            group = open_groups.get(key)
            if group is None or entry.kind == _CALL or entry.alone or not _has_room(group, entry):
                group = _Group(entry.kind, entry.shard)
                groups.append(group)
                if not entry.alone:
                    open_groups[key] = group
            group.entries.append(entry)
            group.size += entry.size
        return groups

    def _take_posts(self, shard: int) -> _Group:
        """The next posts of a shard, one call. What is left of them waits behind the other shards'."""
        group = _Group(_POST, shard)
        posts = self._posts.pop(shard)
        while posts and (not group.entries or (not posts[0].alone and _has_room(group, posts[0]))):
            entry = posts.popleft()
            if entry.future.done():
                continue
            group.entries.append(entry)
            group.size += entry.size
            if entry.alone:
                break
        if posts:
            self._posts[shard] = posts
        return group

    def _call_for(self, group: _Group) -> Call[Any]:
        if group.kind == _CALL:
            return group.entries[0].item
        items = [entry.item for entry in group.entries]
        if group.kind == _START:
            return self._kernel.start_runs(group.shard, items)
        if group.kind == _PEEK:
            return self._kernel.peek_runs(group.shard, items)
        number = self._numbers[group.shard] = self._numbers.get(group.shard, 0) + 1
        return self._kernel.post_messages(group.shard, self._source, number, items)

    async def _send_pipeline(self, groups: list[_Group]) -> None:
        try:
            replies = await self._store.send([self._call_for(group) for group in groups])
        except asyncio.CancelledError:  # by `close`, or by an event loop that ends
            self._fail_all(groups, StoreError("the client was closed"))
            self._give_up()
            raise
        except Exception as error:  # whatever it is, the callers must hear of it: nobody awaits this task
            self._fail_all(groups, error)
        else:
            for group, reply in zip(groups, replies, strict=True):
                self._settle(group, reply)
        finally:
            self._posting.difference_update(group.shard for group in groups if group.kind == _POST)

    def _settle(self, group: _Group, reply: Any) -> None:
        if isinstance(reply, Exception):
            if len(group.entries) > 1 and not isinstance(reply, StoreFull):
                self._part(group)
            else:
                self._fail_all([group], reply)
            return
        for entry, answer in zip(group.entries, [reply] if group.kind == _CALL else reply, strict=True):
            if not entry.future.done():
                entry.future.set_result(answer)

    def _part(self, group: _Group) -> None:
        """One of them spoiled the call (a key of a foreign type, say). Scripts check first: nothing was written."""
        for entry in group.entries:
            entry.alone = True
        if group.kind == _POST:
            self._posts.setdefault(group.shard, deque()).extendleft(reversed(group.entries))
        else:
            self._queue.extendleft(reversed(group.entries))

    def _fail_all(self, groups: list[_Group], error: Exception) -> None:
        for group in groups:
            for entry in group.entries:
                _fail(entry, error)


def _has_room(group: _Group, entry: _Entry) -> bool:
    return len(group.entries) < RUNS_PER_SCRIPT and group.size + entry.size <= BYTES_PER_SCRIPT


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.future.done():
        # A copy for each: an exception that is raised in a thousand places collects the tracebacks of all.
        own = type(error)(*error.args) if isinstance(error, StoreError) else error
        own.__cause__ = error.__cause__
        entry.future.set_exception(own)


async def settled(futures: Sequence[asyncio.Future[T]]) -> list[T | StoreError]:
    """All answers in order, errors in their places. Cheaper than `asyncio.gather`: no callback for each."""
    answers: list[T | StoreError] = []
    try:
        for future in futures:
            try:
                answers.append(await future)
            except StoreError as error:
                answers.append(error)
    finally:
        for future in futures[len(answers) :]:
            future.cancel()
    return answers
