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
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any

import msgspec

from streamflow.errors import StoreError, StoreMisconfigured, Unconfirmed, UsageError
from streamflow.machine.sealed import hide
from streamflow.server_url import cluster_of
from streamflow.settings import is_level
from streamflow.store.connection import Call, OtherHistory
from streamflow.store.kernel import Put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamflow.store.connection import Store
    from streamflow.store.kernel import Kernel

_log = logging.getLogger("streamflow.durability")

WAIT_MS = 1000
"""For which the server waits at most: then it is asked again."""
SAID_EVERY = 10.0
"""Seconds between two warnings that nothing is confirmed."""


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

    def is_met(self, reply: Any) -> bool:
        """By the number of replicas, or those of local and other files."""
        return reply >= self.replicas if self.replicas else reply[0] >= 1

    @property
    def lack(self) -> str:
        """What is said when it isn't met."""
        if not self.replicas:
            return "it is not on the server's disk"
        who = "no replica has" if self.replicas == 1 else f"fewer than {self.replicas} replicas have"
        return f"{who} confirmed it"


def not_with(url: str, level: str) -> str:
    """Why the server at this URL can't be used with a level; empty if it can."""
    if cluster_of(url) is None or Durability.of(level) is None:
        return ""
    return (
        f"the durability {level} is not supported with a cluster yet: start the daemons with --durability server, "
        "which also changes that of a namespace that exists"
    )


def use_durability(store: Store, kernel: Kernel, level: str) -> bool:
    """Let the writes of this store wait for that level from now on, also those that wait already. Returns whether it is
    another level than before. Raises `UsageError`, and `StoreMisconfigured` for a cluster, whose servers would have to
    be waited for one by one."""
    durability, present = Durability.of(level), store.confirmation
    if durability is not None and (problem := not_with(store.url, level)):
        raise StoreMisconfigured(problem)
    if durability == (present and present.durability):
        return False
    if present is None:
        assert durability is not None
        store.confirmation = Confirmation(store, kernel, durability)
    else:
        present.change(durability)
    return True


class Confirmation:
    """The waits of one store, in one event loop. Callers that wait at the same time share one. `durability`: None while
    waits end because nothing is to be waited for any more; then it isn't its store's."""

    def __init__(self, store: Store, kernel: Kernel, durability: Durability) -> None:
        self.durability: Durability | None = durability
        self._store = store
        self._fence = kernel.store_records([Put(kernel.keys.fence, "", b"")])
        self._next: asyncio.Task[bool] | None = None
        """Begins when the one before has ended, and is for all who come until then."""
        self._current: asyncio.Task[bool] | None = None
        self._changed = asyncio.Event()
        self._since = 0.0
        """When the wait began that is under way (monotonic s)."""

    def change(self, durability: Durability | None) -> None:
        """Those who wait see it when the server has answered, within about a second."""
        self.durability = durability
        self._changed.set()
        self._changed = asyncio.Event()
        self._leave_if_unused()

    def _leave_if_unused(self) -> None:
        is_used = self._current is not None or self._next is not None
        if self.durability is None and not is_used and self._store.confirmation is self:
            self._store.confirmation = None

    @property
    def overdue(self) -> float:
        """Seconds for which nothing was confirmed, although somebody waits for it."""
        return time.monotonic() - self._since if self._since else 0.0

    async def check(self) -> None:
        """Whether the server knows the command, and allows it here. Raises `StoreMisconfigured`, `StoreUnavailable`."""
        durability = self.durability
        if durability is None:
            return
        answer = await self._ask(durability, self._store.patience)
        if isinstance(answer, StoreError):
            raise StoreMisconfigured(
                f"durability {durability}: {answer}. `disk` needs Redis 7.2 or Valkey with appendonly yes; a "
                "restricted user needs what `streamflow acl --durability` prints; choose another level with "
                "`daemon --durability`"
            )
        if not durability.is_met(answer):
            _log.warning(
                "durability %s: within %g s, %s, so starts and decisions wait",
                durability,
                WAIT_MS / 1000,
                durability.lack,
            )

    async def send(self, calls: Sequence[Call[Any]], patience: float, *, same_history: bool) -> list[Any]:
        """`Store.send`, and wait. Raises `Unconfirmed` when `patience` (s) is over, and what `Store.send` raises."""
        over = time.monotonic() + patience
        while True:
            generation = self._store.server_generation
            answers = await self._store.send(calls, over - time.monotonic(), same_history=same_history)
            if any(isinstance(answer, OtherHistory) for answer in answers):
                return answers
            if await self._is_safe(over - time.monotonic()) and generation == self._store.server_generation:
                return answers
            if same_history:
                return [OtherHistory()] * len(calls)

    async def wait(self, patience: float) -> None:
        """Until all that this reader has seen is confirmed, if it may wait: a viewer can't. Raises `Unconfirmed`."""
        over = time.monotonic() + patience
        with contextlib.suppress(StoreMisconfigured):
            while not await self._is_safe(over - time.monotonic()):
                pass

    async def _is_safe(self, patience: float) -> bool:
        """When all that was written before is confirmed; False if the server has another history since. Raises
        `Unconfirmed`, and `StoreMisconfigured` when the server doesn't allow to wait and somebody has to know that."""
        while self.durability is not None:
            try:
                return await self._joined(patience)
            except StoreMisconfigured as error:
                if patience != math.inf:
                    raise
                _log.error("writes wait for durability %s, and that isn't allowed: %s", self.durability, error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SAID_EVERY):
                        await self._changed.wait()
        return True

    async def _joined(self, patience: float) -> bool:
        if self._next is None:
            self._next = asyncio.create_task(self._confirmed(self._current))
            self._next.add_done_callback(_retrieve)
            hide(self._next)
        task = self._next
        durability = self.durability
        try:
            async with asyncio.timeout(None if patience == math.inf else patience):
                return await asyncio.shield(task)
        except TimeoutError:
            lack = "nothing has" if durability is None else durability.lack
            raise Unconfirmed(
                f"the server has it, but within {max(0.0, patience):.1f} s {lack} (durability {durability}): it may be "
                "lost in a failure. To call again is safe."
            ) from None
        except asyncio.CancelledError:
            if task.cancelled():  # not this caller
                raise StoreError("the client was closed") from None
            raise

    async def close(self) -> None:
        tasks = [task for task in (self._current, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, durability: Durability, patience: float, *, same_history: bool = False) -> Any:
        """What the server answers, or why it can't be asked: a `StoreError`. Raises `StoreUnavailable`."""
        calls: list[Call[Any]] = [self._fence, Call.plain(*durability.command)]
        fenced, answer = await self._store.send(calls, patience, same_history=same_history)
        return fenced if isinstance(fenced, StoreError) else answer

    async def _confirmed(self, before: asyncio.Task[bool] | None) -> bool:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._next = self._next, None
        self._since, said = time.monotonic(), time.monotonic()
        try:
            while (durability := self.durability) is not None:
                answer = await self._ask(durability, math.inf, same_history=True)
                if isinstance(answer, OtherHistory):
                    return False
                if durability != self.durability:
                    continue  # changed meanwhile
                if isinstance(answer, StoreMisconfigured):
                    raise answer
                if not isinstance(answer, StoreError) and durability.is_met(answer):
                    return True
                if time.monotonic() - said > SAID_EVERY:
                    said = time.monotonic()
                    lack = answer if isinstance(answer, StoreError) else durability.lack
                    _log.warning("writes have waited for durability %s for %.0f s: %s", durability, self.overdue, lack)
                if isinstance(answer, StoreError):
                    await asyncio.sleep(1.0)
            return True
        finally:
            self._since = 0.0
            self._current = None
            self._leave_if_unused()


def _retrieve(task: asyncio.Task[bool]) -> None:
    """All who waited may have given up: asyncio would report the error as forgotten."""
    if not task.cancelled():
        task.exception()
