"""A piece of memory in which the process beside a daemon or worker sees whose code its event loop executes.

Owns: that memory, a file for the stacks of all threads, and that each slice of an async step is noted, and each plain
step with its thread. Must not: decide anything (`store/heartbeat_child.py` does). Called by: the daemon or worker
(creates it), the owner's note, the executor (for the task or thread of each attempt) and the watch.

Nothing else can be seen of a process whose interpreter is held by code in C: no thread of it runs any more.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

from streamflow.model.names import MAX_ID
from streamflow.steps.context import Running

FORMAT = f"<dBddqq{MAX_ID}s"
"""When the watch looked last (monotonic s); whether code of a run or of a step is executed now, since when, and for how
many seconds that may block its process; the run's shard, the number of the step (0: code of the run itself), and the
run's id."""
_EXECUTES = struct.calcsize("<d")
_CODE = struct.Struct(FORMAT.replace("d", "", 1))
_TIME = struct.Struct("<d")
THREAD_FORMAT = f"<qQqq{MAX_ID}s"
"""The system's number of a thread (0: nothing is here) and Python's, then of the plain step that runs in it the shard,
the number, and the id of its run. The first one is that of the watch."""
_THREAD = struct.Struct(THREAD_FORMAT)
_THREADS = struct.calcsize(FORMAT)
PAST_TIMEOUT = 5.0
"""Seconds for which a step may go on to hold the interpreter when its time-out is over: what ends it ends its
process."""


class SharedNote:
    """`interrupt`, `interrupt_steps`: the settings, 0 for never. `threads`: so many plain steps may run at once. Raises
    `OSError` where the system can't."""

    def __init__(self, interrupt: float, interrupt_steps: float, threads: int = 0) -> None:
        self._limit = interrupt or math.inf
        self.step_limit = interrupt_steps or math.inf
        self.file = os.memfd_create("streamflow-note", os.MFD_CLOEXEC)
        self.threads = 1 + threads
        size = _THREADS + self.threads * _THREAD.size
        os.ftruncate(self.file, size)
        self.memory = mmap.mmap(self.file, size)
        self._free = deque(range(1, self.threads))
        self.stack = os.memfd_create("streamflow-stack", os.MFD_CLOEXEC)

    def code_of(self, run_id: str, shard: int, since: float) -> None:
        """The code of this run is executed from now on; none is if it is empty."""
        if run_id:
            _CODE.pack_into(self.memory, _EXECUTES, 1, since, self._limit, shard, 0, run_id.encode())
        else:
            self.memory[_EXECUTES] = 0

    def slices_of(self, code: Coroutine[Any, Any, None], running: Running) -> Coroutine[Any, Any, None]:
        """The same coroutine, with its slices noted."""
        return _Slices(code, running, self)

    def watched_from_here(self) -> None:
        """The caller's thread is the watch's."""
        _THREAD.pack_into(self.memory, _THREADS, threading.get_native_id(), threading.get_ident(), 0, 0, b"")

    def thread_begins(self, running: Running) -> int:
        """The caller's thread runs this plain step from now on. Returns what `thread_ended` needs."""
        try:
            place = _THREADS + self._free.popleft() * _THREAD.size
        except IndexError:
            return 0
        code = running.shard, running.job.seq, running.run_id.encode()
        _THREAD.pack_into(self.memory, place, threading.get_native_id(), running.thread, *code)
        return place

    def thread_ended(self, place: int) -> None:
        if place:
            _THREAD.pack_into(self.memory, place, 0, 0, 0, 0, b"")
            self._free.append((place - _THREADS) // _THREAD.size)

    def began(self, running: Running) -> float:
        """When the slice of this attempt that is executed now began (monotonic s); 0 if none is."""
        executes, since, _, _, seq, run_id = _CODE.unpack_from(self.memory, _EXECUTES)
        is_it = executes and seq == running.job.seq and run_id.rstrip(b"\0") == running.run_id.encode()
        return since if is_it else 0.0

    def looked(self, now: float) -> None:
        _TIME.pack_into(self.memory, 0, now)


class _Slices(Coroutine[Any, Any, None]):
    """What the task of an attempt executes from one `await` that waits to the next is noted when it begins, and that it
    has ended. Only there can be said whose code comes next. It and the code of a run never call each other."""

    __slots__ = ("_code", "_note", "_running")

    def __init__(self, code: Coroutine[Any, Any, None], running: Running, note: SharedNote) -> None:
        self._code = code
        self._running = running
        self._note = note

    def send(self, value: Any) -> Any:
        note = self._note
        running = self._running
        job = running.job
        limit = note.step_limit if job.timeout is None else self._limit(job.timeout)
        run_id = running.run_id.encode()
        _CODE.pack_into(note.memory, _EXECUTES, 1, time.monotonic(), limit, running.shard, job.seq, run_id)
        try:
            return self._code.send(value)
        finally:
            note.memory[_EXECUTES] = 0

    def throw(self, *error: Any) -> Any:
        """The code that cleans up may hold the interpreter, too."""
        note, running, job = self._note, self._running, self._running.job
        limit = note.step_limit if job.timeout is None else self._limit(job.timeout)
        run_id = running.run_id.encode()
        _CODE.pack_into(note.memory, _EXECUTES, 1, time.monotonic(), limit, running.shard, job.seq, run_id)
        try:
            return self._code.throw(*error)
        finally:
            note.memory[_EXECUTES] = 0

    def _limit(self, timeout: float) -> float:
        left = self._running.started + timeout - time.perf_counter()
        return min(self._note.step_limit, max(left, 0.0) + PAST_TIMEOUT)

    def close(self) -> None:
        self._code.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._code.__await__()
