"""How safe a write has to be before it counts: the levels of a namespace, and the wait until it is.

Owns: the levels, and the wait. Must not: decide which writes wait (owner, takeover and client do).
Called by: daemon and client (choose the level of their store), the store (`send(confirmed=True)`).

    server      the server has executed it: what every reply says
    disk        it is in the append-only file, and that on the disk (`WAITAOF`)
    replicas:N  so many replicas have received it (`WAIT`)

Both commands count what their own connection has written. Calls that are sent again may find that they took effect
before, and write nothing, so a record is written before each wait: the server's writes have one order, and what is
confirmed of the last one is so of all before it. That holds for one history of the server's only. After a failover,
everything is sent again, and found or written.

In a cluster each server confirms what it has: the record is written in one of its slots, on a connection to it alone.
Meanwhile slots may be moved, and nobody has confirmed their keys where they are then. So behind the wait a key that
never exists is read in each slot: a server answers that a slot which is, or is being, moved is elsewhere (`MOVED`,
`ASK`), and what was written there is waited for once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable, Unconfirmed, UsageError
from streamflow.machine.sealed import hide
from streamflow.settings import is_level
from streamflow.store.connection import Call, Elsewhere, OtherHistory, key_of
from streamflow.store.kernel import Put
from streamflow.store.keys import absent_near, fence_near
from streamflow.store.servers import key_of_each
from streamflow.text import plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from streamflow.store.connection import Store
    from streamflow.store.kernel import Kernel
    from streamflow.store.keys import NamespaceKeys

_log = logging.getLogger("streamflow.durability")

WAIT_MS = 1000
"""For which the server waits at most: then it is asked again."""
SAID_EVERY = 10.0
"""Seconds between two warnings that nothing is confirmed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Seconds before what is elsewhere is waited for there."""
TRIED = 512
"""Numbers of shards among which a slot of each server is looked for, whether the namespace has so many or not."""
EVERYTHING = ""
"""The place of all writes, where there is one server."""


class Durability(msgspec.Struct, frozen=True):
    """`replicas`: how many have to confirm; 0 for the level `disk`."""

    replicas: int = 0

    @staticmethod
    def of(level: str) -> Durability | None:
        """From its name; None for `server`, where nothing is waited for. Raises `UsageError`."""
        if not is_level(level):
            raise UsageError(f"there is no durability {level!r}: server, disk, or replicas:N")
        if level == "server":
            return None
        return Durability(int(level.partition(":")[2] or 0))

    def __str__(self) -> str:
        return f"replicas:{self.replicas}" if self.replicas else "disk"

    @property
    def command(self) -> list[Any]:
        return ["WAIT", self.replicas, WAIT_MS] if self.replicas else ["WAITAOF", 1, 0, WAIT_MS]

    def count(self, reply: Any) -> int:
        """How many have confirmed, by the number of replicas, or those of local and other files."""
        return reply if self.replicas else reply[0]

    def lacking(self, count: int) -> int:
        """How many more have to."""
        return max(0, (self.replicas or 1) - count)

    def is_met(self, reply: Any) -> bool:
        return not self.lacking(self.count(reply))

    def lack(self, count: int = 0) -> str:
        """What is said when only so many have confirmed."""
        if not self.replicas:
            return "it is not on the server's disk"
        if not count:
            none = "no replica" if self.replicas == 1 else f"none of {self.replicas} replicas"
            return f"{none} has confirmed it"
        return f"only {count} of {plural(self.replicas, 'replica')} {'has' if count == 1 else 'have'} confirmed it"


class Lacking(NamedTuple):
    """A server of which something is waited for. `server`: its address, empty for a single one. `seconds`: for which
    nothing was confirmed. `missing`: how many more replicas, or disks, have to; `text`: the same in words."""

    server: str
    level: str
    seconds: float
    missing: int
    text: str


def use_durability(store: Store, kernel: Kernel, level: str) -> bool:
    """Let the writes of this store wait for that level from now on, also those that wait already. Returns whether it is
    another level than before. Raises `UsageError`."""
    durability, present = Durability.of(level), store.confirmation
    if durability == (present and present.durability):
        return False
    if present is None:
        assert durability is not None
        store.confirmation = Confirmation(store, kernel, durability)
    else:
        present.change(durability)
    return True


_place_near = functools.lru_cache(maxsize=65_536)(fence_near)
"""Of the keys by which shards and queues are named in calls; those of runs come and go."""


@functools.lru_cache(maxsize=65_536)
def _probe(place: str) -> Call[Any]:
    """What shows whether its slot is at a server, and not being moved."""
    return Call.plain("GET", absent_near(place))


async def fence_of_each(store: Store, keys: NamespaceKeys) -> list[str]:
    """For each server of a cluster the key of a record that is written before a wait. Raises `StoreUnavailable`."""
    return await key_of_each(store, [fence_near(keys.shard(number).owner) for number in range(TRIED)], store.patience)


class Confirmation:
    """The waits of one store, in one event loop. `durability`: None while waits end because nothing is to be waited for
    any more; then it isn't its store's."""

    def __init__(self, store: Store, kernel: Kernel, durability: Durability) -> None:
        self.durability: Durability | None = durability
        self.store = store
        self.changed = asyncio.Event()
        """That of the next change of `durability`."""
        self._kernel = kernel
        self._servers: dict[int, ServerWaits] = {}

    def change(self, durability: Durability | None) -> None:
        """Those who wait see it when the server has answered, within about a second."""
        self.durability = durability
        self.changed.set()
        self.changed = asyncio.Event()
        self.leave_if_unused()

    def leave_if_unused(self) -> None:
        is_used = any(waits.is_used for waits in self._servers.values())
        if self.durability is None and not is_used and self.store.confirmation is self:
            self.store.confirmation = None

    @property
    def overdue(self) -> float:
        """Seconds for which a server has confirmed nothing, although somebody waits for it; of several the longest."""
        return max((waits.overdue for waits in list(self._servers.values())), default=0.0)

    def is_late(self, server: int) -> bool:
        """Whether something has been waited for there for longer than it takes."""
        waits = self._servers.get(server)
        return waits is not None and waits.overdue > WAIT_MS / 1000

    def lacking(self, seconds: float) -> list[Lacking]:
        """The servers of which something has been waited for longer than that. Also called in other threads."""
        durability = self.durability
        if durability is None:
            return []
        found: list[Lacking] = []
        for waits in list(self._servers.values()):
            if (overdue := waits.overdue) > seconds:
                missing = durability.lacking(waits.count)
                found.append(Lacking(waits.name, str(durability), overdue, missing, durability.lack(waits.count)))
        return found

    def server_of(self, place: str) -> int:
        return 0 if self.store.is_single else self.store.server_of(place)

    def history_of(self, place: str) -> int:
        return self.store.server_generation if place == EVERYTHING else self.store.history_of(place)

    def fence(self, place: str) -> Call[Any]:
        """What is written before a wait."""
        return self._kernel.store_records([Put(place or self._kernel.keys.fence, "", b"")])

    def _place(self, key: str) -> str:
        """The key of the record that is written in the same slot."""
        if self.store.is_single:
            return EVERYTHING
        return _place_near(key) if key else self._kernel.keys.fence

    def _waits(self, server: int) -> ServerWaits:
        waits = self._servers.get(server)
        if waits is None:
            waits = self._servers[server] = ServerWaits(self, server, self.store.server_name(server))
        return waits

    async def check(self) -> None:
        """Whether each server knows the command and allows it. Raises `StoreMisconfigured`, `StoreUnavailable`."""
        keys = self._kernel.keys
        for place in [EVERYTHING] if self.store.is_single else await fence_of_each(self.store, keys):
            durability = self.durability
            if durability is None:
                return
            server = self._waits(self.server_of(place))
            try:
                answer = (await server.ask(durability, {place}, self.store.patience)).answer
            except StoreUnavailable:
                if place == EVERYTHING:
                    raise
                continue  # one of several may be away; then a replica has its slots soon
            if isinstance(answer, StoreError) and not isinstance(answer, Elsewhere | OtherHistory):
                at = f" at {server.name}" if server.name else ""
                raise StoreMisconfigured(
                    f"durability {durability}{at}: {answer}. `disk` needs Redis 7.2 or Valkey with appendonly yes; a "
                    "restricted user needs what `streamflow acl --durability` prints; choose another level with "
                    "`daemon --durability`"
                )
            if not isinstance(answer, StoreError) and not durability.is_met(answer):
                _log.warning(
                    "durability %s: within %g s, %s%s, so starts and decisions wait",
                    durability,
                    WAIT_MS / 1000,
                    durability.lack(durability.count(answer)),
                    f" of {server.name}" if server.name else "",
                )

    async def send(self, calls: Sequence[Call[Any]], patience: float, *, same_history: bool) -> list[Any]:
        """`Store.send`, and wait for each server that has a part. Raises `Unconfirmed` when `patience` (s) is over, and
        what `Store.send` raises."""
        over = time.monotonic() + patience
        places = [self._place(key_of(call)) for call in calls]
        answers: list[Any] = [None] * len(calls)
        left = list(range(len(calls)))
        while left:
            histories = {place: self.history_of(place) for place in {places[i] for i in left}}
            part = [calls[i] for i in left]
            replies = await self.store.send(part, over - time.monotonic(), same_history=same_history)
            for i, reply in zip(left, replies, strict=True):
                answers[i] = reply
            left = [i for i in left if not isinstance(answers[i], OtherHistory)]
            lost = await self._lost({places[i]: histories[places[i]] for i in left}, over)
            left = [i for i in left if places[i] in lost]
            if same_history:
                for i in left:
                    answers[i] = OtherHistory()
                break
        return answers

    async def wait(self, patience: float, *keys: str) -> None:
        """Until all that this reader has seen is confirmed by the servers of these keys (a single one: without any), or
        one has another history since. If it may wait: a viewer can't. Raises `Unconfirmed`."""
        places = {self._place(key) for key in keys} or {EVERYTHING}
        with contextlib.suppress(StoreMisconfigured):
            await self._lost({place: self.history_of(place) for place in places}, time.monotonic() + patience)

    async def _lost(self, histories: Mapping[str, int], over: float) -> set[str]:
        """When all that was written before in these places is confirmed. Returns those that have another history since.
        Raises `Unconfirmed`, and `StoreMisconfigured` when a server doesn't allow to wait and somebody has to know."""
        left, lost, pause, began = {*histories}, set[str](), FIRST_PAUSE, time.monotonic()
        while True:
            by_server: dict[int, set[str]] = {}
            for place in left:
                by_server.setdefault(self.server_of(place), set()).add(place)
            waits = [
                self._waits(server).confirmed(places, over - time.monotonic()) for server, places in by_server.items()
            ]
            left = set[str]().union(*([await waits[0]] if len(waits) == 1 else await asyncio.gather(*waits)))
            lost |= {place for place, history in histories.items() if self.history_of(place) != history}
            left -= lost
            if not left:
                return lost
            if (now := time.monotonic()) + pause > over:
                late = next((waits for waits in map(self._waits, by_server) if waits.overdue), None)
                if late is not None:
                    raise late.unconfirmed(now - began)
                raise Unconfirmed(
                    "a server has it, but its slot is being moved to another one, or has none now, so nobody has "
                    f"confirmed it (durability {self.durability}): it may be lost in a failure. To call again is safe."
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def close(self) -> None:
        await asyncio.gather(*(waits.close() for waits in self._servers.values()))


class _Asked(NamedTuple):
    """What a server has answered. `elsewhere`: the places that it doesn't have, or not for sure."""

    answer: Any
    elsewhere: frozenset[str] = frozenset()


class ServerWaits:
    """Those for one server. Callers that come at the same time share one. `name`: its address, empty for a single
    one. `count`: how many have confirmed when it was asked last."""

    def __init__(self, all_waits: Confirmation, server: int, name: str) -> None:
        self.name = name
        self.count = 0
        self._all = all_waits
        self._store = all_waits.store
        self._server = server
        self._next: asyncio.Task[frozenset[str]] | None = None
        """Begins when the one before has ended, and is for all who come until then..."""
        self._places: set[str] = set()
        """...and what they have written."""
        self._current: asyncio.Task[frozenset[str]] | None = None
        self._since = 0.0
        """When the wait began that is under way (monotonic s)."""

    @property
    def is_used(self) -> bool:
        return self._current is not None or self._next is not None

    @property
    def overdue(self) -> float:
        since = self._since
        return time.monotonic() - since if since else 0.0

    async def confirmed(self, places: Iterable[str], patience: float) -> frozenset[str]:
        """When all that was written before in these places is confirmed, or something isn't here any more. Returns
        those places of which nothing is known: they are elsewhere, or the server has another history since. Raises what
        `Confirmation.send` does."""
        while self._all.durability is not None:
            try:
                return await self._joined(places, patience)
            except StoreMisconfigured as error:
                if patience != math.inf:
                    raise
                at = f" for {self.name}" if self.name else ""
                durability = self._all.durability
                _log.error("writes wait%s for durability %s, and that isn't allowed: %s", at, durability, error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SAID_EVERY):
                        await self._all.changed.wait()
        return frozenset()

    async def _joined(self, places: Iterable[str], patience: float) -> frozenset[str]:
        places = {*places}
        if self._next is None:
            self._next = asyncio.create_task(self._confirmed(self._current))
            self._next.add_done_callback(_retrieve)
            hide(self._next)
        self._places |= places
        task = self._next
        try:
            async with asyncio.timeout(None if patience == math.inf else patience):
                unknown = await asyncio.shield(task)
        except TimeoutError:
            raise self.unconfirmed(max(0.0, patience)) from None
        except asyncio.CancelledError:
            if task.cancelled():  # not this caller
                raise StoreError("the client was closed") from None
            raise
        return unknown & places

    def unconfirmed(self, seconds: float) -> Unconfirmed:
        durability = self._all.durability
        lack = "nothing has" if durability is None else durability.lack(self.count)
        of = f" {self.name}" if self.name else ""
        return Unconfirmed(
            f"the server{of} has it, but within {seconds:.1f} s {lack} (durability {durability}): it may be lost in a "
            "failure. To call again is safe."
        )

    async def close(self) -> None:
        tasks = [task for task in (self._current, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, durability: Durability, places: Iterable[str], patience: float) -> _Asked:
        """What the server answers, or why it can't be asked: a `StoreError`. Raises `StoreUnavailable`."""
        if self._store.is_single:
            calls = [self._all.fence(EVERYTHING), Call.plain(*durability.command)]
            fenced, answer = await self._store.send(calls, patience, same_history=True)
            return _Asked(fenced if isinstance(fenced, StoreError) else answer)
        gone = {place for place in places if self._store.server_of(place) != self._server}
        here = sorted({*places} - gone)
        for first in here:
            calls = [self._all.fence(first), Call.plain(*durability.command)]
            calls += map(_probe, here)
            fenced, answer, *found = await self._store.send_to_one(self._server, calls)
            if isinstance(fenced, Elsewhere):
                gone.add(first)
                continue
            gone |= {place for place, reply in zip(here, found, strict=True) if isinstance(reply, Elsewhere)}
            return _Asked(fenced if isinstance(fenced, StoreError) else answer, frozenset(gone))
        return _Asked(Elsewhere(), frozenset(gone))

    async def _confirmed(self, before: asyncio.Task[frozenset[str]] | None) -> frozenset[str]:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._next = self._next, None
        places, self._places = frozenset(self._places), set()
        said = time.monotonic()
        self._since = self._since or said
        try:
            while (durability := self._all.durability) is not None:
                try:
                    answer, elsewhere = await self.ask(durability, places, math.inf)
                except StoreUnavailable as error:  # of a cluster: when it is replaced, nothing is here any more
                    answer, elsewhere = error, frozenset[str]()
                if isinstance(answer, OtherHistory | Elsewhere):
                    return places
                if durability != self._all.durability:
                    continue  # changed meanwhile
                if isinstance(answer, StoreMisconfigured):
                    raise answer
                is_answered = not isinstance(answer, StoreError)
                self.count = durability.count(answer) if is_answered else 0
                if is_answered and durability.is_met(answer):
                    self._since, self.count = 0.0, 0
                    return elsewhere
                if time.monotonic() - said > SAID_EVERY:
                    said = time.monotonic()
                    lack = durability.lack(self.count) if is_answered else answer
                    at = f" at {self.name}" if self.name else ""
                    seconds = self.overdue
                    _log.warning("writes have waited%s for durability %s for %.0f s: %s", at, durability, seconds, lack)
                if elsewhere or (self._next is not None and not self._store.is_single):
                    return places  # those that are still here are waited for again, with those who have come meanwhile
                if isinstance(answer, StoreError):
                    await asyncio.sleep(LONGEST_PAUSE if isinstance(answer, StoreUnavailable) else 1.0)
            return frozenset()
        finally:
            if self._next is None or self._all.durability is None:
                self._since = 0.0
            self._current = None
            self._all.leave_if_unused()


def _retrieve(task: asyncio.Task[frozenset[str]]) -> None:
    """All who waited may have given up: asyncio would report the error as forgotten."""
    if not task.cancelled():
        task.exception()
