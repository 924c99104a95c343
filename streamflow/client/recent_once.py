"""Messages with an idempotency id that a server has acknowledged a short while ago, put again when it has lost them.

Owns: what is kept, for how long, and putting it again, with the start of its run if that has begun with it. Must not:
decide that a server has another history (the store does). Called by: the recent starts; the pipelines report what was
acknowledged.

The same call again does nothing where the message is known, or where its run has taken it and the shard's owner has
committed that again. Where the run is lost, it begins again at the time of the first start, so that it is the same run.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import NamedTuple

from streamflow.errors import StoreError
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel, OnceMessage, PutOnce

_log = logging.getLogger("streamflow.client")

KEEP_SECONDS = 60.0
KEEP_BYTES = 16 * 1024 * 1024
"""As of `recent_starts.py`."""
AT_ONCE = 200
OVERHEAD = 600


class _Kept(NamedTuple):
    at: float
    shard: int
    history: int
    created: int
    once: OnceMessage
    size: int


class RecentOnce:
    """Those of one client."""

    def __init__(self, store: Store, kernel: Kernel) -> None:
        self._store = store
        self._kernel = kernel
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._settled: set[str] = set()
        """Runs that have ended or were forgotten, of those that are kept."""

    def __bool__(self) -> bool:
        return bool(self._kept)

    def acknowledged(self, shard: int, once: OnceMessage, put: PutOnce, history: int) -> None:
        """The server has answered. `history`: the shard's when the message was sent."""
        now = time.monotonic()
        if put.letter in ("+", "a"):
            size = len(once.message.body) + OVERHEAD + (0 if once.start is None else len(once.start.body))
            self._settled.discard(once.message.run_id)
            self._kept.append(_Kept(now, shard, history, put.created, once, size))
            self._bytes += size
        while self._kept and (self._kept[0].at < now - KEEP_SECONDS or self._bytes > KEEP_BYTES):
            self._bytes -= self._kept.popleft().size
        if not self._kept:
            self._settled.clear()

    def settled(self, run_id: str) -> None:
        """The run has ended, and its caller knows the result, or it was forgotten: it must not begin again."""
        if self._kept:
            self._settled.add(run_id)

    async def send_again(self) -> list[str]:
        """Put those again whose servers have another history now. Returns the runs that have begun again. Raises
        `StoreError` while a server doesn't answer."""
        present = {kept.shard: self._history_of(kept.shard) for kept in self._kept}
        over = time.monotonic() - KEEP_SECONDS
        doubtful = [
            kept
            for kept in self._kept
            if kept.history != present[kept.shard] and kept.at > over and kept.once.message.run_id not in self._settled
        ]
        begun: list[str] = []
        for first in range(0, len(doubtful), AT_ONCE):
            part = doubtful[first : first + AT_ONCE]
            calls = [self._kernel.post_once(kept.shard, kept.once, created=kept.created, asleep=True) for kept in part]
            for kept, reply in zip(part, await self._store.send(calls, confirmed=True), strict=True):
                run_id = kept.once.message.run_id
                if isinstance(reply, StoreError):
                    _log.error("a message that a server may have lost could not be put again, to %s: %s", run_id, reply)
                elif reply.letter == "+":
                    begun.append(run_id)
                elif reply.letter == "a":
                    _log.warning("a server had lost an acknowledged message to run %s, and it was put again", run_id)
                elif reply.letter != "d":
                    _log.error(
                        "a server may have lost an acknowledged message to run %s, which has ended or is gone", run_id
                    )
        for i, kept in enumerate(self._kept):
            if kept.shard in present:
                self._kept[i] = kept._replace(history=present[kept.shard])
        return begun

    def _history_of(self, shard: int) -> int:
        return self._store.history_of(self._kernel.keys.shard(shard).owner)
