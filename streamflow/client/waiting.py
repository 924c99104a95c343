"""Waiting for the ends and the answers of runs: one subscription per shard, for any number of runs.

Owns: which callers wait for which run, answer or published value, the shards that are subscribed to, and the sweep that
finds what no notification reported, and that none is given the end of another run of its id. Must not: decode results
(`run.py` does), poll for a single run. Called by: client.

    result() ── subscribe to the run's shard (once) ── confirmed ── peek (batched) ── ended: its last transition
                                                                        └── open: the commit that ends it notifies
    ask() ───── post ── subscribe ── confirmed ── read (only if it was not confirmed before) ── answered, or ended
                                                                        └── else the commit that answers notifies

This order makes it safe: what ends before the peek is found by the peek, what ends after it is published to a
subscription that the server has confirmed. An ask is posted first, so that it keeps its place among the client's other
messages: one that had to wait for the subscription would be overtaken by all that don't. Notifications are lost only
with their connection; then, and every few seconds in any case, all runs and answers that are waited for are read in one
batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from typing import Any

import msgspec

from streamflow.client.pipelines import Batcher, settled
from streamflow.errors import RunEnded, RunNotFound, StoreError
from streamflow.model.record import incarnation_of
from streamflow.store.cluster_subscription import open_subscription
from streamflow.store.connection import Call, Store
from streamflow.store.keys import NamespaceKeys
from streamflow.store.subscription import Subscription
from streamflow.wire import answer_name, origin_of, published_name

SWEEP_SECONDS = 5.0
PEEKS_PER_SECOND = 2000
"""Limit of the sweep's cost: with more than 10,000 runs it comes less often."""

ANSWER_PREFIX = answer_name("")
PUBLISHED_PREFIX = published_name("")

_log = logging.getLogger("streamflow.client")
_notification = msgspec.msgpack.Decoder(list[tuple[str, bytes]])


class _Wait:
    """A caller's wait. `created` tells the run that it is for from others of its id; 0 as long as that isn't known.

    Not a subclass of a future: to wait for one of those costs 1.7 µs more."""

    __slots__ = ("created", "future")

    def __init__(self, created: int, future: asyncio.Future[bytes]) -> None:
        self.created = created
        self.future = future


class _WatchedShard:
    """A shard that is subscribed to, and what is waited for there: runs by id, answers by `answer_name`."""

    __slots__ = ("channel", "number", "waiting")

    def __init__(self, number: int, channel: str) -> None:
        self.number = number
        self.channel = channel
        self.waiting: dict[str, list[_Wait]] = {}


class ResultWaiter:
    """`ended` waits for one run, `answered` for one answer; any number of them share a connection and a sweep."""

    def __init__(self, store: Store, keys: NamespaceKeys, batcher: Batcher) -> None:
        self.identity = ""
        """That of the namespace's data, as the client has read it."""
        self._store = store
        self._keys = keys
        self._batcher = batcher
        self._shards: dict[int, _WatchedShard] = {}
        self._channels: dict[bytes, _WatchedShard] = {}
        self._subscription: Subscription | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def ended(self, shard: int, run_id: str, created: int) -> bytes:
        """Wait for the encoded transition that ends the run. Raises `RunNotFound`, `StoreError`."""
        with self._registered(shard, created, run_id) as (watched, [wait]):
            await self._subscribed().add(watched.channel)
            line, last = await self._batcher.peek(shard, run_id)
            if not wait.future.done():
                wait.created = check_found(line, run_id, created)
                if last:
                    return last
            return await wait.future

    async def answered(
        self,
        shard: int,
        run_id: str,
        created: int,
        ask_id: str,
        post: Callable[[], asyncio.Future[str]] | None,
    ) -> bytes:
        """Post an ask, and wait for the run's answer: the encoded `AskAnswered`. `post` queues the ask when it is
        called, which is before the first await: so asks are received in the order of their calls. None if the run has
        it already, and has perhaps answered.

        Raises `RunEnded` when the run ends without one, `RunNotFound`, `StoreError`. When the server doesn't allow the
        subscription, the ask has been posted all the same.
        """
        with self._registered(shard, created, answer_name(ask_id), run_id) as (watched, [answer, end]):
            posted = post() if post is not None else None
            subscription = self._subscribed()
            was_confirmed = posted is not None and subscription.is_confirmed(watched.channel)
            try:
                await subscription.add(watched.channel)
                if posted is not None:
                    check_posted(await posted, "ask", run_id)
            finally:
                if posted is not None:
                    _drop(posted)
            if not was_confirmed:  # it may have been answered before
                await self._read([(watched, answer_name(ask_id)), (watched, run_id)])
            await asyncio.wait((answer.future, end.future), return_when=asyncio.FIRST_COMPLETED)
            if answer.future.done():
                return answer.future.result()
            end.future.result()  # raises, if it is an error
            # The run has ended, and may have answered before: the notification was lost, or came without the answer.
            stored = await self._batcher.call(self._stored_answer(shard, ask_id))
            if stored is None:
                raise RunEnded(f"run {run_id} has ended without answering", run_id)
            return stored

    async def requested(
        self,
        shard: int,
        run_id: str,
        created: int,
        kind: str,
        request_id: str,
        post: Callable[[], asyncio.Future[str]],
    ) -> bytes:
        """Post a request of this kind, and wait for the answer of the run's owner, whether or not the run has ended:
        the encoded `AskAnswered`. Raises as `answered`."""
        with self._registered(shard, created, answer_name(request_id)) as (watched, [answer]):
            posted = post()
            subscription = self._subscribed()
            was_confirmed = subscription.is_confirmed(watched.channel)
            try:
                await subscription.add(watched.channel)
                check_posted(await posted, kind, run_id)
            finally:
                _drop(posted)
            if not was_confirmed:  # it may have been answered before
                await self._read([(watched, answer_name(request_id))])
            return await answer.future

    @contextlib.asynccontextmanager
    async def published(self, shard: int, run_id: str, created: int) -> AsyncGenerator[Callable[[], Awaitable[Any]]]:
        """Gives a function that waits until the run has published something since, or has ended; or perhaps has, if
        that can't be known. Raises `StoreError`."""
        with self._registered(shard, created, published_name(run_id), run_id) as (watched, waits):
            await self._subscribed().add(watched.channel)
            futures = [wait.future for wait in waits]
            yield lambda: asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    @contextlib.contextmanager
    def _registered(self, shard: int, created: int, *names: str) -> Generator[tuple[_WatchedShard, Sequence[_Wait]]]:
        """A wait for each name, which the shard's notifications end from now on, once it is subscribed to."""
        if self._closed:
            raise StoreError("the client is closed")
        watched = self._shards.get(shard)
        if watched is None:
            watched = self._shards[shard] = _WatchedShard(shard, self._keys.shard(shard).done)
            self._channels[watched.channel.encode()] = watched
        loop = asyncio.get_running_loop()
        waits: list[_Wait] = []
        for name in names:
            wait = _Wait(created, loop.create_future())
            waits.append(wait)
            watched.waiting.setdefault(name, []).append(wait)
        try:
            yield watched, waits
        finally:
            for name, wait in zip(names, waits, strict=True):
                self._remove(watched, name, wait)

    def _stored_answer(self, shard: int, ask_id: str) -> Call[bytes | None]:
        return Call.plain("GET", self._keys.shard(shard).answer(ask_id))

    async def close(self) -> None:
        """End the subscription. Callers that still wait get `StoreError`."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._subscription is not None:
            self._subscription.close()
        for watched in self._shards.values():
            for waits in watched.waiting.values():
                _fail(waits, StoreError("the client was closed"))

    def _remove(self, watched: _WatchedShard, name: str, wait: _Wait) -> None:
        waits = watched.waiting.get(name)
        if waits is not None and wait in waits:
            waits.remove(wait)
            if not waits:
                del watched.waiting[name]
        _drop(wait.future)

    def _subscribed(self) -> Subscription:
        if self._subscription is None:
            self._subscription = open_subscription(self._store, self._on_message, self._on_reconnected)
            self._spawn(asyncio.create_task(self._subscription.run()))
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep_forever())
            self._spawn(self._sweeper)
        return self._subscription

    def _spawn(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_message(self, channel: bytes, data: bytes) -> None:
        watched = self._channels.get(channel)
        if watched is None or not watched.waiting:
            return
        try:
            notification = _notification.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("ignored a message on %s that is not a notification of streamflow: %s", watched.channel, error)
            return
        for name, payload in notification:
            waits = watched.waiting.get(name)
            if waits is None:
                continue
            if name.startswith(ANSWER_PREFIX):
                is_proven = bool(payload)
            elif name.startswith(PUBLISHED_PREFIX):
                is_proven = True  # it says only that there is something to read
            else:
                created, identity = origin_of(payload)
                is_ours = created != 0 and identity == self.identity
                is_proven = is_ours and all(wait.created == created for wait in waits)
            if is_proven:
                _resolve(waits, payload)
            else:  # too large for a notification, or perhaps of another run of this id, or of another database
                self._spawn(asyncio.create_task(self._read([(watched, name)])))

    def _on_reconnected(self) -> None:
        self._spawn(asyncio.create_task(self._read(self._all_waiting())))

    def _all_waiting(self) -> list[tuple[_WatchedShard, str]]:
        return [(watched, name) for watched in self._shards.values() for name in watched.waiting]

    async def _sweep_forever(self) -> None:
        """Runs while a shard is subscribed to; a sweep unsubscribes from shards for which no caller waits any more."""
        while self._shards:
            await asyncio.sleep(max(SWEEP_SECONDS, len(self._all_waiting()) / PEEKS_PER_SECOND))
            await self.sweep()

    async def sweep(self) -> None:
        """Read all that is waited for in one batch, and unsubscribe from shards for which no caller waits."""
        idle = [watched for watched in self._shards.values() if not watched.waiting]
        for watched in idle:  # without an await: a caller may come meanwhile, and another sweep
            self._shards.pop(watched.number, None)
            self._channels.pop(watched.channel.encode(), None)
        for watched in idle:
            if self._subscription is not None and watched.number not in self._shards:
                await self._subscription.remove(watched.channel)
        await self._read(self._all_waiting())

    async def _read(self, wanted: list[tuple[_WatchedShard, str]]) -> None:
        reads: list[asyncio.Future[Any]] = []
        for watched, name in wanted:
            if name.startswith(PUBLISHED_PREFIX):  # it may have rung unheard
                _resolve(watched.waiting.get(name, []), b"")
            elif name.startswith(ANSWER_PREFIX):
                reads.append(self._batcher.call(self._stored_answer(watched.number, name.removeprefix(ANSWER_PREFIX))))
            else:
                reads.append(self._batcher.peek(watched.number, name))
        asked = [one for one in wanted if not one[1].startswith(PUBLISHED_PREFIX)]
        for (watched, name), found in zip(asked, await settled(reads), strict=True):
            waits = watched.waiting.get(name)
            if waits is None or found is None:
                continue
            if isinstance(found, StoreError):
                _fail(waits, found)
            elif isinstance(found, bytes):
                _resolve(waits, found)
            else:
                _settle_peeked(waits, name, *found)


def _settle_peeked(waits: list[_Wait], run_id: str, line: bytes, last: bytes) -> None:
    for wait in waits:
        try:
            wait.created = check_found(line, run_id, wait.created)
        except RunNotFound as error:
            _fail([wait], error)
        else:
            if last:
                _resolve([wait], last)


def _drop(future: asyncio.Future[Any]) -> None:
    """Its caller has ended: it waits for this no more."""
    if not future.cancel() and not future.cancelled():
        future.exception()  # read, so that asyncio doesn't log an error that no caller needed


def _resolve(waits: list[_Wait], payload: bytes) -> None:
    for wait in waits:
        if not wait.future.done():
            wait.future.set_result(payload)


def _fail(waits: list[_Wait], error: StoreError | RunNotFound) -> None:
    for wait in waits:
        if not wait.future.done():
            wait.future.set_exception(error)


def check_found(line: bytes, run_id: str, created: int) -> int:
    """`created` of the run whose header this is. Raises `RunNotFound` if there is none, or if it is another run than
    the one that was created then; `created` is 0 for whichever has the id."""
    if not line:
        raise not_found(run_id)
    found = incarnation_of(line)
    if created and found != created:
        raise RunNotFound(f"run {run_id} was forgotten, and another run has its id since", run_id)
    return found


def check_posted(letter: str, kind: str, run_id: str) -> None:
    """Raises `RunNotFound` or `RunEnded` if the run did not get the message."""
    if letter == "m":
        raise not_found(run_id)
    if letter == "e":
        raise RunEnded(f"run {run_id} has ended: it accepts no {kind} any more", run_id)


def not_found(run_id: str) -> RunNotFound:
    """The error for a run that does not exist."""
    return RunNotFound(f"there is no run {run_id} in this namespace (or it was forgotten after it ended)", run_id)
