"""Outcomes that a server has acknowledged a short while ago, reported again when it turns out to have lost them.

Owns: what is kept, for how long, and sending it again. Must not: decide that a server has another history (the store
does). Called by: the claims.

Replication is asynchronous: a server that is promoted may lack the newest writes, and a former primary that was frozen
accepts some before it learns that it is none any more. The entry of the attempt is there again then, and would run once
more, or its run's owner decides again what was lost. A run drops an outcome that it has.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from streamflow.errors import StoreError
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel

_log = logging.getLogger("streamflow.worker")

KEEP_SECONDS = 60.0
"""More than a failover takes: by default a cluster's servers wait for one that is silent for 15 seconds."""
KEEP_BYTES = 16 * 1024 * 1024
"""What is kept at most: the oldest go first."""
AT_ONCE = 200
OVERHEAD = 300
"""Bytes that an outcome takes besides its body, about."""


class _Kept(NamedTuple):
    at: float
    run_id: str
    shard: int
    created: int
    body: bytes
    history: int


class RecentOutcomes:
    """Those of one worker."""

    def __init__(self, store: Store, kernel: Kernel) -> None:
        self._store = store
        self._kernel = kernel
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._generation = store.server_generation

    def history_of(self, shard: int) -> int:
        return self._store.history_of(self._kernel.keys.shard(shard).owner)

    def accepted(self, run_id: str, shard: int, created: int, body: bytes, history: int) -> None:
        """The run's shard has this outcome. `history`: that of the shard when it was sent."""
        now = time.monotonic()
        self._kept.append(_Kept(now, run_id, shard, created, body, history))
        self._bytes += len(body) + OVERHEAD
        if history != self.history_of(shard):
            self._generation = -1
        while self._kept and (self._kept[0].at < now - KEEP_SECONDS or self._bytes > KEEP_BYTES):
            self._bytes -= len(self._kept.popleft().body) + OVERHEAD

    @property
    def is_needed(self) -> bool:
        """Whether a server may have lost some that were not sent again yet."""
        return self._generation != self._store.server_generation

    async def send_again(self) -> None:
        """Those that a server may have lost. Raises `StoreError`; then the next call does it."""
        generation = self._store.server_generation
        over = time.monotonic() - KEEP_SECONDS
        doubtful = [kept for kept in self._kept if kept.at > over and kept.history != self.history_of(kept.shard)]
        present = {id(kept): self.history_of(kept.shard) for kept in doubtful}
        for first in range(0, len(doubtful), AT_ONCE):
            await self._send(doubtful[first : first + AT_ONCE])
        self._kept = deque(kept._replace(history=present.get(id(kept), kept.history)) for kept in self._kept)
        self._generation = generation
        if doubtful:
            _log.warning(
                "a server may have lost outcomes that it had acknowledged: %d of the last %g s were reported again",
                len(doubtful),
                KEEP_SECONDS,
            )

    async def _send(self, doubtful: Sequence[_Kept]) -> None:
        calls = [self._kernel.report_outcome(kept.shard, kept.run_id, kept.created, kept.body) for kept in doubtful]
        for kept, answer in zip(doubtful, await self._store.send(calls, patience=math.inf), strict=True):
            if isinstance(answer, StoreError):
                _log.error("an outcome could not be reported to run %s again: %s", kept.run_id, answer)
