"""Concurrent calls become few pipelines: calls are queued, a pipeline takes all that are queued, each gets its reply.

Owns: the queues, the grouping by shard, the numbering of posts, and what one refused call means for those it shared a
script with. Must not: know workflows or payloads, wait on a clock. Called by: client, waiting, listing.

A single call is sent at the end of the same turn of the event loop; while `MAX_PIPELINES` are under way, further calls
wait until one returns. So latency is one round trip, and throughput grows with the load. No task is created for a call,
only for a pipeline: a call costs a future. Where writes wait until they are safe, as the namespace's durability asks
for, reads have pipelines of their own: those of the writes may be under way for as long as the store has patience.

Posts are numbered for each shard, and the server keeps only the last number of a client: so at most one post for a
shard is under way, and a pipeline that is sent again finds its own number.
"""

from __future__ import annotations

import abc
import asyncio
import secrets
from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, TypeVar

from streamflow.client.recent_starts import RecentStarts
from streamflow.errors import StoreError, StoreFull
from streamflow.model.sleeping import is_asleep
from streamflow.store.connection import Call, OtherHistory, Store
from streamflow.store.kernel import Kernel, Message, OnceMessage, PutOnce, Start, asks_for_buckets

T = TypeVar("T")

MAX_PIPELINES = 4
"""Pipelines under way at the same time; each uses a connection. As many more of reads, where writes wait to be safe."""

RUNS_PER_SCRIPT = 200
BYTES_PER_SCRIPT = 1_000_000
"""A script blocks the whole server while it runs: about 2 ms with this many starts."""

ENTRIES_PER_PIPELINE = 4000
BYTES_PER_PIPELINE = 8_000_000

_START, _PEEK, _POST, _CALL, _REPLACE, _ONCE = range(6)
_WRITES = (_START, _POST, _REPLACE, _ONCE)
CREATED = (b"+", b"=")
"""How the reply to a start begins that has created its run: by this call, or by one before whose reply was lost."""
_ALONE = (_CALL, _REPLACE, _ONCE)
"""What takes no others into its call."""
_REQUESTS = ("cancel", "terminate", "pause", "resume")
"""Kinds of messages that are accepted also when memory is short."""


_header_of = itemgetter(0)
"""Of what is peeked of a run; empty if it isn't there."""


class _Entry:
    """One caller's part of a call. `alone`: it doesn't share one, because a call that it shared was refused, or because
    of its `origin`."""

    __slots__ = ("alone", "future", "item", "kind", "origin", "shard", "size")

    def __init__(
        self, kind: int, shard: int, item: Any, size: int, future: asyncio.Future[Any], origin: Origin | None = None
    ) -> None:
        self.kind = kind
        self.shard = shard
        self.item = item
        self.size = size
        self.future = future
        self.origin = origin
        self.alone = origin is not None


class _Group:
    """The entries that share one call. `history`: that of the shard when starts or posts were sent; `source` and
    `number`: the post's."""

    __slots__ = ("entries", "history", "kind", "number", "shard", "size", "source")

    def __init__(self, kind: int, shard: int) -> None:
        self.kind = kind
        self.shard = shard
        self.entries: list[_Entry] = []
        self.size = 0
        self.history = self.number = 0
        self.source = ""


class Numbers:
    """Those of the last posts, by shard, and who posts. Shared by the parts of one client."""

    def __init__(self) -> None:
        self.source = f"client:{secrets.token_hex(16)}"
        self._last: dict[int, int] = {}

    def next(self, shard: int) -> int:
        number = self._last[shard] = self._last.get(shard, 0) + 1
        return number


Origin = tuple[str, int]
"""The source of a post and its number, where both have to outlive the process: the same post from another process adds
nothing. The posts of one source to a shard must be sent in the order of their numbers."""


class Batcher(abc.ABC):
    """Sends all calls of one client. Its methods queue a call and return a future at once; await it in the same loop.

    Futures raise `StoreError`. A caller may be cancelled at any time: a call that isn't sent yet is dropped, one that
    was sent takes effect, and other callers are not affected.
    """

    @abc.abstractmethod
    def start(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        """Start a run: the reply is the header of the run that has the id, with a `+` before it if it was created."""

    @abc.abstractmethod
    def replace(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        """Start a run in the place of the ended one whose header it names: the reply is as that of `start`."""

    @abc.abstractmethod
    def peek(self, shard: int, run_id: str) -> asyncio.Future[tuple[bytes, bytes]]:
        """Read a run: header (empty when there is no such run) and last transition (empty while it is open)."""

    @abc.abstractmethod
    def call(self, call: Call[T]) -> asyncio.Future[T]:
        """Send any other call that is safe to send twice: it shares the pipeline."""

    @abc.abstractmethod
    def post(self, shard: int, message: Message, origin: Origin | None = None) -> asyncio.Future[str]:
        """Post a message: the reply is a letter of `Kernel.post_messages`. Posts to a shard keep their order."""

    @abc.abstractmethod
    def post_once(self, shard: int, once: OnceMessage) -> asyncio.Future[PutOnce]:
        """Put a message into its run's inbox unless that was done before, with the run's start if it has one. In no
        order with other posts that are under way."""

    @property
    @abc.abstractmethod
    def is_sending(self) -> bool:
        """Whether pipelines are under way."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Drop calls that are queued or under way: their callers get `StoreError`; the calls may have taken effect."""


def open_batcher(store: Store, kernel: Kernel, recent: RecentStarts) -> Batcher:
    batcher = (ServerBatcher if store.is_single else ClusterBatcher)(store, kernel, recent)
    recent.posts.post = batcher.post
    return batcher


class ClusterBatcher(Batcher):
    """A batcher for each server: pipelines to one that doesn't answer must not keep those to others from being sent."""

    def __init__(self, store: Store, kernel: Kernel, recent: RecentStarts) -> None:
        self._store = store
        self._kernel = kernel
        self._recent = recent
        self._numbers = Numbers()
        self._parts: dict[int, ServerBatcher] = {}
        self._posting: dict[int, ServerBatcher] = {}
        """Through which of them a shard's posts go: until all have returned, so that they keep their order."""
        self._closed = False

    def start(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        return self._part_of(shard).start(shard, start)

    def replace(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        return self._part_of(shard).replace(shard, start)

    def peek(self, shard: int, run_id: str) -> asyncio.Future[tuple[bytes, bytes]]:
        return self._part_of(shard).peek(shard, run_id)

    def call(self, call: Call[T]) -> asyncio.Future[T]:
        return self._part(self._store.server_for(call)).call(call)

    def post(self, shard: int, message: Message, origin: Origin | None = None) -> asyncio.Future[str]:
        part = self._posting.get(shard)
        if part is None or not part.is_posting(shard):
            part = self._posting[shard] = self._part_of(shard)
        return part.post(shard, message, origin)

    def post_once(self, shard: int, once: OnceMessage) -> asyncio.Future[PutOnce]:
        return self._part_of(shard).post_once(shard, once)

    @property
    def is_sending(self) -> bool:
        return any(part.is_sending for part in self._parts.values())

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(part.close() for part in self._parts.values()))

    def _part_of(self, shard: int) -> ServerBatcher:
        return self._part(self._store.server_of(self._kernel.keys.shard(shard).owner))

    def _part(self, server: int) -> ServerBatcher:
        if self._closed:
            raise StoreError("the client is closed")
        part = self._parts.get(server)
        if part is None:
            part = self._parts[server] = ServerBatcher(self._store, self._kernel, self._recent, numbers=self._numbers)
        return part


class ServerBatcher(Batcher):
    """For all that goes to one server."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        recent: RecentStarts,
        max_pipelines: int = MAX_PIPELINES,
        numbers: Numbers | None = None,
    ) -> None:
        self._store = store
        self._kernel = kernel
        self._recent = recent
        self._max_pipelines = max_pipelines
        self._queue: deque[_Entry] = deque()
        self._reads: deque[_Entry] = deque()
        """Those that must not wait for writes."""
        self._posts: dict[int, deque[_Entry]] = {}
        self._posting: set[int] = set()
        self._numbers = numbers or Numbers()
        self._under_way: set[asyncio.Task[None]] = set()
        self._reading: set[asyncio.Task[None]] = set()
        """Those under way of `_reads`."""
        self._is_scheduled = False
        self._asleep: set[int] = set()
        """Shards of which some runs were moved out of memory."""
        self._closed = False

    def start(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        return self._add(_START, shard, start, len(start.body) + 200)

    def replace(self, shard: int, start: Start) -> asyncio.Future[bytes]:
        return self._add(_REPLACE, shard, start, len(start.body) + 400)

    def peek(self, shard: int, run_id: str) -> asyncio.Future[tuple[bytes, bytes]]:
        return self._add(_PEEK, shard, run_id, 100)

    def call(self, call: Call[T]) -> asyncio.Future[T]:
        return self._add(_CALL, 0, call, 100)

    def post(self, shard: int, message: Message, origin: Origin | None = None) -> asyncio.Future[str]:
        future: asyncio.Future[str] = self._future()
        entry = _Entry(_POST, shard, message, len(message.body) + 100, future, origin)
        posts = self._posts.get(shard)
        if posts is None:
            posts = self._posts[shard] = deque()
        posts.append(entry)
        if not self._is_scheduled:
            self._schedule()
        return future

    def post_once(self, shard: int, once: OnceMessage) -> asyncio.Future[PutOnce]:
        size = len(once.message.body) + (0 if once.start is None else len(once.start.body))
        return self._add(_ONCE, shard, once, size + 600)

    async def close(self) -> None:
        self._closed = True  # before the pipelines are cancelled, or the next ones would be sent
        under_way = [*self._under_way, *self._reading]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._drop_queued()

    @property
    def is_sending(self) -> bool:
        return bool(self._under_way or self._reading)

    def is_posting(self, shard: int) -> bool:
        """Whether posts to a shard are queued or under way."""
        return shard in self._posting or shard in self._posts

    def _drop_queued(self) -> None:
        self._closed = True
        for entry in [*self._queue, *self._reads, *(entry for posts in self._posts.values() for entry in posts)]:
            _fail(entry, StoreError("the client was closed"))
        self._queue.clear()
        self._reads.clear()
        self._posts.clear()

    def _add(self, kind: int, shard: int, item: Any, size: int) -> asyncio.Future[Any]:
        future = self._future()
        self._queue_of(kind).append(_Entry(kind, shard, item, size, future))
        if not self._is_scheduled:
            self._schedule()
        return future

    def _queue_of(self, kind: int) -> deque[_Entry]:
        return self._queue if kind in _WRITES or self._store.confirmation is None else self._reads

    def _future(self) -> asyncio.Future[Any]:
        if self._closed:
            raise StoreError("the client is closed")
        return asyncio.get_running_loop().create_future()

    def _schedule(self) -> None:
        """Send at the end of this turn of the event loop, so that all calls of the turn share a pipeline."""
        self._is_scheduled = True
        asyncio.get_running_loop().call_soon(self._send_queued)

    def _send_queued(self) -> None:
        self._is_scheduled = False
        while len(self._under_way) < self._max_pipelines and not self._closed:
            groups = self._next_posts_and_starts()
            if not groups:
                break
            for part in self._parts(groups):
                self._begin(part, self._under_way)
        while self._reads and len(self._reading) < self._max_pipelines and not self._closed:
            groups = self._next_groups(self._reads, ENTRIES_PER_PIPELINE, BYTES_PER_PIPELINE)
            if groups:  # not all of their callers were cancelled
                self._begin(groups, self._reading)

    def _begin(self, groups: list[_Group], under_way: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._send_pipeline(groups))
        under_way.add(task)
        task.add_done_callback(self._on_returned)

    def _parts(self, groups: list[_Group]) -> list[list[_Group]]:
        """Reads neither wait until writes are safe, nor fail when they aren't: also those that were queued before it
        was known that the writes have to wait."""
        if self._store.confirmation is None:
            return [groups]
        writes = [group for group in groups if group.kind in _WRITES]
        reads = [group for group in groups if group.kind not in _WRITES]
        return [part for part in (writes, reads) if part]

    def _on_returned(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._reading.discard(task)
        if self._queue or self._posts or self._reads:
            self._send_queued()

    def _next_posts_and_starts(self) -> list[_Group]:
        """Groups for one pipeline: all queued calls, up to the limits; posts at most half, so that none starve."""
        groups: list[_Group] = []
        entries_left, bytes_left = ENTRIES_PER_PIPELINE, BYTES_PER_PIPELINE
        for shard in [shard for shard in self._posts if shard not in self._posting]:
            if entries_left <= ENTRIES_PER_PIPELINE // 2 or bytes_left <= BYTES_PER_PIPELINE // 2:
                break
            group = self._next_posts(shard)
            if group.entries:
                entries_left -= len(group.entries)
                bytes_left -= group.size
                self._posting.add(shard)
                groups.append(group)
        return groups + self._next_groups(self._queue, entries_left, bytes_left)

    def _next_groups(self, queue: deque[_Entry], entries_left: int, bytes_left: int) -> list[_Group]:
        groups: list[_Group] = []
        open_groups: dict[tuple[int, int], _Group] = {}
        while queue and entries_left > 0 and bytes_left > 0:
            entry = queue.popleft()
            if entry.future.done():  # its caller was cancelled
                continue
            entries_left -= 1
            bytes_left -= entry.size
            key = (entry.kind, entry.shard)
            group = open_groups.get(key)
            if group is None or entry.kind in _ALONE or entry.alone or not _fits(group, entry):
                group = _Group(entry.kind, entry.shard)
                groups.append(group)
                if not entry.alone:
                    open_groups[key] = group
            group.entries.append(entry)
            group.size += entry.size
        return groups

    def _next_posts(self, shard: int) -> _Group:
        """The next posts of a shard, for one call. Those that don't fit wait behind the other shards'."""
        group = _Group(_POST, shard)
        posts = self._posts.pop(shard)
        while posts and (not group.entries or (not posts[0].alone and _fits(group, posts[0]))):
            if group.entries and _is_request(posts[0]) != _is_request(group.entries[0]):
                break  # they keep their order, and go into the next pipeline
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
        asleep = group.shard in self._asleep
        if group.kind == _START:
            return self._kernel.start_runs(group.shard, items, asleep=asleep)
        if group.kind == _REPLACE:
            return self._kernel.replace_run(group.shard, items[0], asleep=asleep)
        if group.kind == _ONCE:
            return self._kernel.post_once(group.shard, items[0], asleep=asleep)
        if group.kind == _PEEK:
            return self._kernel.peek_runs(group.shard, items, asleep=asleep)
        source, number = group.entries[0].origin or (self._numbers.source, self._numbers.next(group.shard))
        group.source, group.number = source, number
        if _is_request(group.entries[0]):
            return self._kernel.post_requests(group.shard, source, number, items, asleep=asleep)
        return self._kernel.post_messages(group.shard, source, number, items, asleep=asleep)

    async def _send_pipeline(self, groups: list[_Group]) -> None:
        posting = [group.shard for group in groups if group.kind == _POST]
        try:
            writes = any(group.kind in _WRITES for group in groups)
            await self._recent.restored()
            generation = self._store.server_generation
            self._note_histories(groups)
            calls = [self._call_for(group) for group in groups]
            if posting:
                replies = await self._send_posts(groups, calls)
            else:
                replies = await self._store.send(calls, confirmed=writes)
            if generation != self._store.server_generation:  # what was lost may be there again by now: it wasn't before
                groups, replies = await self._ask_again(groups, replies)
            await self._look_among_sleepers(groups, replies)
        except asyncio.CancelledError:  # by `close`, or by an event loop that ends
            self._fail_all(groups, StoreError("the client was closed"))
            self._drop_queued()
            raise
        except Exception as error:  # of any kind: callers must get it, because nothing awaits this task
            self._fail_all(groups, error)
        else:
            for group, reply in zip(groups, replies, strict=True):
                self._settle(group, reply)
        finally:
            self._posting.difference_update(posting)

    def _note_histories(self, groups: Sequence[_Group]) -> None:
        for group in groups:
            if group.kind in _WRITES:
                group.history = self._recent.history_of(group.shard)

    async def _send_posts(self, groups: Sequence[_Group], calls: Sequence[Call[Any]]) -> list[Any]:
        """What a server has lost of earlier posts comes before these: their numbers would hide it."""
        replies: list[Any] = await self._store.send(calls, same_history=True, confirmed=True)
        while left := [i for i, reply in enumerate(replies) if isinstance(reply, OtherHistory)]:
            await self._recent.restored()
            self._note_histories([groups[i] for i in left])
            again = await self._store.send([calls[i] for i in left], same_history=True, confirmed=True)
            for i, reply in zip(left, again, strict=True):
                replies[i] = reply
        return replies

    async def _ask_again(self, groups: list[_Group], replies: list[Any]) -> tuple[list[_Group], list[Any]]:
        """A server had lost runs when it was asked for them, or had them not yet: read all again, and post again what
        no run has got. Returns what there is to settle."""
        reads = [group for group in groups if group.kind in (_PEEK, _CALL)]
        answered = [
            (group, reply) for group, reply in zip(groups, replies, strict=True) if group.kind in (_START, _REPLACE)
        ]
        for group, reply in zip(groups, replies, strict=True):
            if group.kind == _ONCE:
                if isinstance(reply, PutOnce) and reply.letter == "m":
                    reads.append(group)  # nothing was done: its run may be there by now
                else:
                    answered.append((group, reply))
        for group, reply in zip(groups, replies, strict=True):
            if group.kind == _POST:
                answered.append((group, reply))
                if isinstance(reply, str) and "m" in reply:
                    self._post_again(group, reply)
                    answered.pop()
        generation = -1
        while reads and generation != self._store.server_generation:
            await self._recent.restored()
            generation = self._store.server_generation
            replies = await self._store.send([self._call_for(group) for group in reads])
        if reads:
            answered += zip(reads, replies, strict=True)
        return [group for group, _ in answered], [reply for _, reply in answered]

    async def _look_among_sleepers(self, groups: Sequence[_Group], replies: list[Any]) -> None:
        """Runs may have been moved out of memory. A call that found no run where there are some has done nothing: it is
        made again with the keys of their buckets, and from now on those for that shard have them at once. A run that
        was looked for and isn't there may be one of them: then a header stands for it (`model/sleeping.py`)."""
        asking = [i for i, reply in enumerate(replies) if asks_for_buckets(reply)]
        if asking:
            self._asleep.update(groups[i].shard for i in asking)
            some = [groups[i] for i in asking]
            self._note_histories(some)
            answers = await self._send_posts(some, [self._call_for(group) for group in some])
            for i, reply in zip(asking, answers, strict=True):
                replies[i] = reply
        missing = [
            (group, at, reply)
            for group, reply in zip(groups, replies, strict=True)
            if group.kind == _PEEK and group.shard not in self._asleep and not isinstance(reply, Exception)
            if not all(map(_header_of, reply))  # nearly all are there
            for at, (header, _) in enumerate(reply)
            if not header
        ]
        if not missing:
            return
        looks = [self._kernel.peek_runs(group.shard, [group.entries[at].item], asleep=True) for group, at, _ in missing]
        for (group, at, reply), found in zip(missing, await self._store.send(looks), strict=True):
            if not isinstance(found, Exception) and found[0][0]:
                reply[at] = found[0]
                if is_asleep(found[0][0]):
                    self._asleep.add(group.shard)

    def _posted(self, group: _Group, letters: str) -> None:
        messages = [entry.item for entry in group.entries]
        self._recent.posts.acknowledged(group.shard, group.source, group.number, messages, letters, group.history)
        self._recent.doubt(group.shard, group.history)

    def _post_again(self, group: _Group, letters: str) -> None:
        self._posted(group, letters)
        for entry, letter in zip(reversed(group.entries), reversed(letters), strict=True):
            if letter == "m":
                entry.origin = None  # its number is used up: the server would answer the same again
                self._posts.setdefault(group.shard, deque()).appendleft(entry)
            elif not entry.future.done():
                entry.future.set_result(letter)

    def _settle(self, group: _Group, reply: Any) -> None:
        if isinstance(reply, Exception):
            if len(group.entries) > 1 and not isinstance(reply, StoreFull):
                self._retry_alone(group)
            else:
                self._fail_all([group], reply)
            return
        if group.kind == _POST:
            self._posted(group, reply)
        is_start, is_once = group.kind in (_START, _REPLACE), group.kind == _ONCE
        for entry, result in zip(group.entries, [reply] if group.kind in _ALONE else reply, strict=True):
            if is_start and result[:1] in CREATED:
                self._recent.acknowledged(group.shard, entry.item, result, group.history)
            elif is_once:
                self._recent.once.acknowledged(group.shard, entry.item, result, group.history)
                self._recent.doubt(group.shard, group.history)
            if not entry.future.done():
                entry.future.set_result(result)

    def _retry_alone(self, group: _Group) -> None:
        """One entry made the server refuse the call (for example a key of a foreign type): send each as its own call.

        Scripts check first, so nothing was written.
        """
        for entry in group.entries:
            entry.alone = True
        if group.kind == _POST:
            self._posts.setdefault(group.shard, deque()).extendleft(reversed(group.entries))
        else:
            self._queue_of(group.kind).extendleft(reversed(group.entries))

    def _fail_all(self, groups: list[_Group], error: Exception) -> None:
        for group in groups:
            for entry in group.entries:
                _fail(entry, error)


def _fits(group: _Group, entry: _Entry) -> bool:
    return len(group.entries) < RUNS_PER_SCRIPT and group.size + entry.size <= BYTES_PER_SCRIPT


def _is_request(entry: _Entry) -> bool:
    return entry.item.kind in _REQUESTS


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.future.done():
        # A copy for each: an exception that is raised in a thousand places collects the tracebacks of all of them.
        copy = type(error)(*error.args) if isinstance(error, StoreError) else error
        copy.__cause__ = error.__cause__
        entry.future.set_exception(copy)


async def settled(futures: Sequence[asyncio.Future[T]]) -> list[T | StoreError]:
    """All replies in order, with a `StoreError` for each call that failed. Cheaper than `asyncio.gather`, which adds a
    callback to each future."""
    replies: list[T | StoreError] = []
    try:
        for future in futures:
            try:
                replies.append(await future)
            except StoreError as error:
                replies.append(error)
    finally:
        for future in futures[len(replies) :]:
            future.cancel()
    return replies
