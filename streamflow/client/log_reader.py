"""Reading the logs of many shards at once, ahead of who takes the entries, within a bound of bytes.

Owns: how far each log is read, and what is read and not taken yet. Must not: know who may read a shard, or what the
entries mean. Called by: `consumer.py` (which shards), `subscription.py` (takes entries).

One blocked read waits for entries of all logs that have been read to their ends, so at rest a reader costs the server
two commands a second, however many shards it has; in a cluster, where one command can't wait for keys of several slots,
it looks ten times a second. What there is to read is read in portions of bounded size. When as many bytes as
`READ_AHEAD` wait to be taken nothing more is read, and one entry of each shard at most is beyond that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Store
from streamflow.store.kernel import Kernel

_log = logging.getLogger("streamflow.groups")

READ_AHEAD = 4 * 1024 * 1024
"""Bytes that wait to be taken, about, and..."""
PORTION = 1024 * 1024
"""...bytes that are read at once, of..."""
SHARDS = 64
"""...so many shards."""
LEAST = 16 * 1024
"""Bytes of a shard that are read at once at least."""
BLOCK_MS = 500
"""Ms for which one read waits: a shard that has come meanwhile is waited for by the next one."""
SHORT_BLOCK_MS = 20
"""The same while some shards are just being read: they are waited for by the next one, too."""
GATHER = 0.01
"""Seconds between two reads that wait: while much happens, each of them finds several entries."""
OVERHEAD = 100
"""Bytes that an entry takes besides its own."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two tries when the server doesn't answer."""

Entry = tuple[str, dict[bytes, bytes], int]
"""Its id, its fields, and its bytes."""


class ShardLog:
    """The log of one shard. `position`: the last entry that was read; `taken`: the last one that was taken."""

    def __init__(self, number: int, key: str, position: str) -> None:
        self.number = number
        self.key = key
        self.position = self.taken = position
        self.entries: deque[Entry] = deque()
        self.parts = 0
        """Runs in these entries: about as many events, or more."""
        self.since = 0.0
        """When the first of them was read (monotonic s)."""
        self.gone = False
        """It is not read any more."""


class LogReader:
    """`on_read()` is called when there is something to take."""

    def __init__(self, store: Store, kernel: Kernel, on_read: Callable[[], None]) -> None:
        self.logs: dict[int, ShardLog] = {}
        self.filled: OrderedDict[int, ShardLog] = OrderedDict()
        """Those with entries to take; the first one is next."""
        self.bytes = 0
        """Of what was read and not taken."""
        self._store = store
        self._kernel = kernel
        self._on_read = on_read
        self._ready: OrderedDict[int, ShardLog] = OrderedDict()
        """Those that may have more to read."""
        self._changed = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self.bytes >= READ_AHEAD

    def add(self, number: int, position: str) -> ShardLog:
        """Read a shard's log behind this entry."""
        log = self.logs[number] = ShardLog(number, self._kernel.keys.shard(number).log, position)
        self._ready[number] = log
        self._changed.set()
        return log

    def remove(self, number: int) -> None:
        """Don't read it any more. What was read and not taken is dropped."""
        log = self.logs.pop(number, None)
        if log is None:
            return
        log.gone = True
        self.bytes -= sum(size for *_, size in log.entries)
        log.entries.clear()
        self.filled.pop(number, None)
        self._ready.pop(number, None)
        self._changed.set()

    def take(self, log: ShardLog) -> None:
        """Its first entry was taken."""
        entry, fields, size = log.entries.popleft()
        log.taken = entry
        log.parts -= len(fields)
        log.since = time.monotonic()
        self.bytes -= size
        self.filled.pop(log.number)
        if log.entries:
            self.filled[log.number] = log  # behind the others
        if self.bytes < READ_AHEAD <= self.bytes + size or not log.entries:
            self._changed.set()

    async def run(self) -> None:
        """Both loops. Raises what the server refuses."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._forever(self._read))
            loops.create_task(self._forever(self._wait))

    async def _forever(self, turn: Callable[[], object]) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await turn()  # type: ignore[misc]
                pause = FIRST_PAUSE
            except StoreUnavailable as error:
                if pause == FIRST_PAUSE:
                    _log.warning("logs can't be read, will retry: %s", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _read(self) -> None:
        """Read what there is to read, or wait until there is something."""
        if not self._ready or self.is_full:
            self._changed.clear()
            await self._changed.wait()
            return
        some = list(self._ready.values())[:SHARDS]
        limit = max(LEAST, PORTION // len(some))
        answers = await self._store.send([self._kernel.read_stream(log.key, log.position, limit) for log in some])
        for log, answer in zip(some, answers, strict=True):
            if isinstance(answer, StoreError):
                raise answer
            if log.gone:
                continue
            more, entries = answer
            self._append(log, [(entry.decode(), fields) for entry, fields in entries])
            self._ready.pop(log.number, None)
            if more:
                self._ready[log.number] = log  # behind the others
        self._changed.set()

    async def _wait(self) -> None:
        """Wait for entries of the logs that were read to their ends."""
        at_end = {} if self.is_full else {log.key: log for n, log in self.logs.items() if n not in self._ready}
        if not at_end:
            self._changed.clear()
            await self._changed.wait()
            return
        asked = {key: log.position for key, log in at_end.items()}
        block_ms = BLOCK_MS if len(at_end) == len(self.logs) else SHORT_BLOCK_MS
        found = await self._store.read_logs(asked, block_ms, 1)
        for key, entries in found.items():
            log = at_end[key]
            if not log.gone and log.position == asked[key]:
                self._append(log, entries)
                self._ready[log.number] = log
        if found:
            self._changed.set()
            await asyncio.sleep(GATHER)

    def _append(self, log: ShardLog, entries: Sequence[tuple[str, dict[bytes, bytes]]]) -> None:
        if not entries:
            return
        if not log.entries:
            log.since = time.monotonic()
        for entry, fields in entries:
            size = OVERHEAD + sum(len(field) + len(data) for field, data in fields.items())
            log.entries.append((entry, fields, size))
            log.parts += len(fields)
            self.bytes += size
        log.position = entries[-1][0]
        self.filled.setdefault(log.number, log)
        self._on_read()
