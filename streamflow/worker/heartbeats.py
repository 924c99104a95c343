"""A worker's heartbeats: what it says of itself, and which other workers have died.

Owns: the worker's record among those of the namespace, the notes on deaths, and removing old ones of both.
Must not: talk to the server (`claims.py` sends this with its extensions), decide about claims.
Called by: the worker (creates it), claims.

A heartbeat is answered with nothing about the others, so that it costs the same however many there are. Who has died is
in a hash of its own, which is nearly always empty: the process beside a worker (`store/heartbeat_child.py`) puts it
there. A worker that vanished without that is in no list; its claims expire. A record that is old was left behind by
such a one, and every worker looks for these now and then.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import anyio
import msgspec

from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Call
from streamflow.store.kernel import Heartbeats, Kernel
from streamflow.store.pauses import paused_queues, read_pauses
from streamflow.store.workers import WorkerHeartbeat, decode_worker

_log = logging.getLogger("streamflow.worker")

SWEEP = 60.0
"""Seconds between two looks for records of workers that vanished."""
FORGET_AFTER = 60.0
"""Seconds after which a record or the note on a death is old, or after three time-outs of that worker if those are
longer: whatever the worker had, its claims have expired."""


class WorkerHeartbeats:
    """`describe()` makes the heartbeat, but for what is known here: when it is sent, and its number. `on_beat(raw)` is
    called when one was stored."""

    def __init__(
        self, kernel: Kernel, name: str, queues: Iterable[str], describe: Callable[[], WorkerHeartbeat]
    ) -> None:
        self.on_beat: Callable[[bytes], None] = lambda _: None
        self.on_durability: Callable[[str], None] = lambda _: None
        """Called with each heartbeat: how safe decisions have to be in this namespace, before their steps begin."""
        self.on_paused: Callable[[Set[str]], None] = lambda _: None
        """Called with each heartbeat: which of the worker's queues are paused."""
        self.died: set[str] = set()
        """Workers of these queues whose claims are to be reported as lost."""
        self._kernel = kernel
        self._name = name
        self._queues = set(queues)
        self._describe = describe
        self._numbers = itertools.count(1)
        self._is_member = False
        self._left = False
        self._clock: tuple[int, float] | None = None
        """The server's clock (ms) as it was answered last, and when that was (monotonic s)."""
        self._started = 0
        self._last: WorkerHeartbeat | None = None
        self._raw = b""
        self._noted: set[str] = set()
        """Workers whose deaths are noted on the server, and are known here."""
        self._swept = time.monotonic()
        self._vanished: list[tuple[str, bytes]] = []
        self._old_notes: list[tuple[str, bytes]] = []
        self._paused: Set[str] = frozenset()
        """As it was read last; a user of an earlier release may not read it."""
        self._refused = False
        self._has_died: anyio.Event | None = None

    async def death(self) -> None:
        """Wait until there is another one in `died`."""
        if not self.died:
            self._has_died = anyio.Event()
            await self._has_died.wait()

    def clock(self) -> int:
        """The server's, reckoned from its last answer: ms, 0 before the first."""
        if self._clock is None:
            return 0
        answered, at = self._clock
        return answered + round(1000 * (time.monotonic() - at))

    # --- sending ------------------------------------------------------------------------------------------------------

    def calls(self) -> list[Call[Any]]:
        """The next heartbeat, and the questions who has died, how safe decisions have to be, and what is paused."""
        if self._left:
            return []
        keys = self._kernel.keys
        raw = self._encode(self._describe())
        self._raw = raw
        sweep = self._is_member and time.monotonic() - self._swept >= SWEEP
        dead, self._vanished = self._vanished, []
        calls: list[Call[Any]] = [
            self._kernel.heartbeat(
                self._name, raw, dead, joins=not self._is_member, others=sweep, members=keys.workers
            ),
            Call.plain("HGETALL", keys.ended),
            Call.plain("HGET", keys.meta, "durability"),
            read_pauses(keys),
        ]
        if self._old_notes:
            calls.append(self._kernel.heartbeat(self._name, b"", self._old_notes, others=False, members=keys.ended))
            self._old_notes = []
        if sweep:
            self._swept = time.monotonic()
        return calls

    def repeat(self) -> list[Call[Any]]:
        """The last heartbeat again, under a new number, for a blocked event loop. Called in another thread."""
        last = self._last
        if last is None or self._left or not self._is_member:
            return []
        raw = self._encode(last)
        return [self._kernel.heartbeat(self._name, raw, joins=False, others=False, members=self._kernel.keys.workers)]

    def leave(self) -> list[Call[Any]]:
        """Deregister. No other heartbeat comes later."""
        self._left = True
        return [self._kernel.heartbeat(self._name, b"", others=False, members=self._kernel.keys.workers)]

    def _encode(self, heartbeat: WorkerHeartbeat) -> bytes:
        self._last = heartbeat
        heartbeat = msgspec.structs.replace(
            heartbeat, beat=next(self._numbers), sent=self.clock(), started=self._started
        )
        return msgspec.json.encode(heartbeat)

    # --- answers ------------------------------------------------------------------------------------------------------

    def answered(self, answers: Sequence[Any]) -> None:
        """What the server has answered to `calls`."""
        if not answers:
            return
        beat, ended, durability, paused, *_ = answers
        if not isinstance(paused, StoreUnavailable):
            if not isinstance(paused, StoreError):
                self._paused = paused_queues(paused).keys() & self._queues
            self.on_paused(self._paused)
        if isinstance(beat, StoreError):
            if not self._refused:
                _log.error("the heartbeats of this worker are refused, so `status` doesn't count it: %s", beat)
            self._refused = True
            return
        self._refused = False
        self._beaten(beat)
        if not isinstance(durability, StoreError):
            self.on_durability((durability or b"server").decode(errors="replace"))
        if not isinstance(ended, StoreError):
            self._look_at_deaths({name.decode(errors="replace"): raw for name, raw in ended.items()})

    def _beaten(self, beat: Heartbeats) -> None:
        self._clock = beat.clock, time.monotonic()
        self._started = self._started or beat.clock
        self._is_member = self._name in beat.members  # else others have removed it, or the data were deleted
        if self._is_member:
            self.on_beat(self._raw)
        for name, raw in beat.members.items():
            if name != self._name and _is_old(decode_worker(raw), beat.clock):
                self._vanished.append((name, raw))

    def _look_at_deaths(self, ended: dict[str, bytes]) -> None:
        clock = self.clock()
        for name in ended.keys() - self._noted - {self._name}:
            worker = decode_worker(ended[name])
            if not worker.queues or self._queues.intersection(worker.queues):
                self.died.add(name)
                if self._has_died is not None:
                    self._has_died.set()
        self._noted = set(ended)
        self._old_notes = [(name, raw) for name, raw in ended.items() if _is_old(decode_worker(raw), clock)]


def _is_old(worker: WorkerHeartbeat, clock: int) -> bool:
    return abs(worker.age(clock)) > max(FORGET_AFTER, 3 * worker.timeout)
