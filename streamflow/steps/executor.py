"""Runs steps: an asyncio task for an async function, a thread for a plain one, a process for `process=True`.

Owns: the tasks, threads and processes in flight, their time-outs, and the limit on how many run at once.
Must not: know keys, commits, claims or retries. It reports the `Outcome` of each attempt, and keeps nothing of it.
Called by: the owner and the worker (submit, cancel).

Tasks are plain asyncio tasks, not members of a task group: starting one costs a third, and a step's failure is a
value.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Raw

from streamflow.errors import Failure
from streamflow.events import NOTHING
from streamflow.machine.sealed import hide
from streamflow.machine.transition import Outcome
from streamflow.model.failures import failure_of, is_permanent, kinds_of
from streamflow.steps.context import Running, StepInterrupted, current
from streamflow.steps.processes import ProcessPool
from streamflow.steps.stacks import user_line
from streamflow.workflow.actions import StepJob
from streamflow.workflow.app import Step
from streamflow.workflow.awaitable import ends_process

if TYPE_CHECKING:
    from streamflow.steps.emitting import ChunkSender
    from streamflow.tracing.spans import Tracing

_log = logging.getLogger("streamflow.steps")

STEP_THREAD = "streamflow-step"
"""Prefix of the names of threads that run steps."""


REPLACE_AFTER = 5.0
"""Seconds for which a thread may go on after the end of its attempt before another thread gets its slot."""
LEAST_HUNG = 32
HUNG_PER_THREAD = 4
"""Threads that may hang at once besides those that have slots: so many for each slot, or at least the number above."""
MAX_NAMED = 3
"""Attempts that a line of the log names."""
STEP_BLOCKED = "StepBlocked"
"""The kind of failure of an async step that blocked the event loop until it was interrupted."""
LEAST_SHARED = 4
RESERVED_PART = 16
"""Of so many slots or more, one of 16, at least one, is kept for runs that have none."""
TURN = 128
TURN_SECONDS = 0.01
"""A run's turn: so many attempts of it may start before those of others, if that many slots become free in this time.
So where steps take long, runs get one slot after the other."""
PACE = 32
ALONE_FOR = 64
"""Attempts of such a run that are started in one turn of the event loop, unless no other run has had a slot for so many
turns: each transition of another run takes several turns. If it is alone, as many as its turn has, which costs less."""
SIGNAL_SETTLES = 0.2
"""Seconds to learn that a signal which has ended a step's process was meant for this one, too."""


FORKED = 70
"""Exit code of a process that a step has forked and that comes back from the step (EX_SOFTWARE of sysexits.h)."""

_forks = 0
"""How often this process and those before it were forked."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Slots:
    """How many attempts of a kind may run at once, and those that wait for a free slot.

    Runs take turns, and the last slots are for runs that have none: one that starts thousands of long steps doesn't
    keep others from their first.
    """

    __slots__ = (
        "alone_for",
        "by_run",
        "fresh",
        "limit",
        "pace",
        "paced",
        "served",
        "turn",
        "turn_ends",
        "turn_left",
        "unreserved",
        "used",
        "waiting",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unreserved = limit if limit < LEAST_SHARED else limit - max(1, limit // RESERVED_PART)
        self.used = 0
        self.by_run: dict[str, int] = {}
        self.fresh: OrderedDict[str, deque[Running]] = OrderedDict()
        """The attempts that wait by run, for runs that have no slot; the run whose turn is next at the beginning."""
        self.served: OrderedDict[str, deque[Running]] = OrderedDict()
        """The same for runs that have slots."""
        self.waiting = 0
        """Attempts that wait and aren't over: cancelled ones stay in the queues until their turn comes."""
        self.paced: dict[str, int] = {}
        """How many attempts of runs with `PACE` slots or more were started in this turn of the event loop: `pace` at
        most, so that thousands of quick ones don't make it long for everybody."""
        self.pace = PACE
        self.alone_for = 0
        """Turns of the event loop in which such a run has had slots, and no other run."""
        self.turn = ""
        """The run whose turn it is, for a while: outcomes that come together make one transition."""
        self.turn_left = 0
        self.turn_ends = 0.0

    def take(self, run_id: str) -> None:
        self.used += 1
        others = self.by_run.get(run_id, 0)
        self.by_run[run_id] = others + 1
        if not others:
            if run_id in self.fresh:
                self.served[run_id] = self.fresh.pop(run_id)
        elif others >= PACE:
            self.paced[run_id] = self.paced.get(run_id, 0) + 1

    def free(self, run_id: str) -> None:
        self.used -= 1
        others = self.by_run[run_id] - 1
        if others:
            self.by_run[run_id] = others
            return
        del self.by_run[run_id]
        if run_id in self.served:
            self.fresh[run_id] = self.served.pop(run_id)

    def next_turn(self) -> None:
        """Another turn of the event loop begins."""
        self.paced.clear()
        self.alone_for = self.alone_for + 1 if len(self.by_run) <= 1 else 0
        self.pace = TURN if self.alone_for >= ALONE_FOR else PACE

    def has_room_for(self, run_id: str) -> bool:
        """Whether an attempt of the run may start before all that wait."""
        if self.used >= self.unreserved and (self.used >= self.limit or run_id in self.by_run):
            return False
        if self.paced and self.paced.get(run_id, 0) >= self.pace:
            return False
        return not self.waiting or (run_id not in self.fresh and run_id not in self.served)

    def wait(self, running: Running) -> None:
        queues = self.served if running.run_id in self.by_run else self.fresh
        queues.setdefault(running.run_id, deque()).append(running)
        self.waiting += 1

    def next_waiting(self) -> Running | None:
        """Take the attempt whose turn it is out of its queue, if there is room for it."""
        while self.used < self.limit:
            now = time.perf_counter()
            run_id = self.turn
            goes_on = self.turn_left and now < self.turn_ends and self.paced.get(run_id, 0) < self.pace
            queues = self._queues_of(run_id) if goes_on else None
            if queues is None:
                queues = self.fresh or (self.served if self.used < self.unreserved else None)
                if not queues:
                    return None
                run_id = next(iter(queues)) if not self.paced else self._next_unpaced(queues)
                if not run_id:
                    return None
                queues.move_to_end(run_id)
                self.turn, self.turn_left, self.turn_ends = run_id, TURN, now + TURN_SECONDS
            self.turn_left -= 1
            queue = queues[run_id]
            running = queue.popleft()
            if not queue:
                del queues[run_id]
            if not running.over:
                self.waiting -= 1
                return running
        return None

    def _next_unpaced(self, queues: OrderedDict[str, deque[Running]]) -> str:
        return next((run_id for run_id in queues if self.paced.get(run_id, 0) < self.pace), "")

    def _queues_of(self, run_id: str) -> OrderedDict[str, deque[Running]] | None:
        """Where attempts of the run wait that may start now, in its turn. While others wait that have none, no slot is
        kept free for them."""
        if run_id in self.fresh:
            return self.fresh
        return self.served if run_id in self.served and (self.fresh or self.used < self.unreserved) else None


class Noting(Protocol):
    """What `watch/shared_note.py` has. `slices_of` returns what the task of an attempt has to execute instead of
    `code`; `thread_begins` is called in a thread, and returns the place that `thread_ended` gives back."""

    def slices_of(self, code: Coroutine[Any, Any, None], running: Running) -> Coroutine[Any, Any, None]: ...

    def thread_begins(self, running: Running) -> int: ...

    def thread_ended(self, place: int) -> None: ...


class StepExecutor:
    """At most `concurrency` tasks, `threads` threads and `processes` processes (0: one per core) at once; further
    attempts wait in order, and their time-outs begin when they start.

    A thread that goes on for `replace_after` seconds after its attempt has ended (a time-out, a cancel) is hung:
    another one gets its slot. When too many hang, `on_exhausted()` is called: only a new process helps.

    `on_outcome(shard, run_id, outcome)` is called in the event loop, never from inside `submit`; `on_free()` when a
    slot is free although no outcome was reported.
    """

    def __init__(
        self,
        concurrency: int,
        threads: int,
        on_outcome: Callable[[int, str, Outcome], None],
        *,
        processes: int = 0,
        replace_after: float | None = None,
        on_free: Callable[[], None] = lambda: None,
        on_exhausted: Callable[[], None] = lambda: None,
    ) -> None:
        self.tracing: Tracing | None = None
        """Makes the spans of attempts, if that is on in this process."""
        self.noting: Noting | None = None
        """Notes whose code tasks and threads execute, if somebody reads it."""
        self._chunks: ChunkSender | None = None
        self._on_emit: Callable[..., None] | None = None
        self.on_replaced: Callable[[str, int], None] = lambda _run_id, _seq: None
        """A lent attempt of this run and number is no longer that: it is submitted here again, or another one is."""
        self._on_outcome = on_outcome
        self._on_free = on_free
        self._on_exhausted = on_exhausted
        self._replace_after = REPLACE_AFTER if replace_after is None else replace_after
        self.most_hung = max(LEAST_HUNG, HUNG_PER_THREAD * threads)
        self.hung = 0
        """Threads whose slots others have, and that have not returned."""
        self.exhausted = False
        """As many threads hang as may, and one more."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._forks = _forks
        self.most_threads = threads + self.most_hung
        self._pool = ThreadPoolExecutor(max_workers=self.most_threads, thread_name_prefix=STEP_THREAD)
        self._tasks = Slots(concurrency)
        self._threads = Slots(threads)
        self._processes = Slots(processes or os.cpu_count() or 1)
        self._all_slots = (self._tasks, self._threads, self._processes)
        self._process_pool = ProcessPool()
        self._attempts: dict[tuple[str, int], Running] = {}
        self.started = 0
        self.held = False
        self._crowded = False
        self._paused = False
        """Nothing that waits is started: held or crowded."""
        self._is_pacing = False
        self.draining = False
        """This daemon or worker is ending: the death of a step's process may be a part of that."""

    @property
    def chunks(self) -> ChunkSender | None:
        """Takes what attempts emit, if somebody does."""
        return self._chunks

    @chunks.setter
    def chunks(self, chunks: ChunkSender | None) -> None:
        self._chunks = chunks
        self._on_emit = None if chunks is None else chunks.emit

    @property
    def running(self) -> int:
        return sum(slots.used for slots in self._all_slots)

    @property
    def waiting(self) -> int:
        return sum(slots.waiting for slots in self._all_slots)

    def waiting_runs(self) -> list[tuple[int, str]]:
        """Shard and id of the runs of which attempts wait, each once for tasks, threads and processes."""
        return [
            (queue[0].shard, run_id)
            for slots in self._all_slots
            for queues in (slots.fresh, slots.served)
            for run_id, queue in queues.items()
        ]

    @property
    def lingering(self) -> int:
        """Threads whose attempts are over, but that can't be stopped: they keep their slots for a while."""
        if not self._threads.used:
            return 0
        attempts = (running for running in self._attempts.values() if running.slots is self._threads)
        return max(0, self._threads.used - sum(running.started != 0.0 for running in attempts))

    def by_shard(self) -> Counter[int]:
        """Number of attempts that run or wait, by shard; not those that are lent."""
        return Counter(running.shard for running in self._attempts.values() if not running.lent)

    def in_words(self) -> str:
        """The attempts that run here, the oldest first and not more than `MAX_NAMED`; empty if there are none."""
        running = sorted((one for one in self._attempts.values() if one.started), key=lambda one: one.started)
        now = time.monotonic()
        words = [
            f"{one.job.step.name} of run {one.run_id} (attempt {one.job.attempt}, for {now - one.started:.1f} s)"
            for one in running[:MAX_NAMED]
        ]
        return ", ".join(words) + (f" and {len(running) - MAX_NAMED} more" if len(running) > MAX_NAMED else "")

    def submit(self, shard: int, run_id: str, job: StepJob) -> None:
        """Start an attempt, now or when a slot is free. Ignored if it or a newer one runs or waits already.

        One that was lent is this daemon's again: the shard has come back, and the server doesn't know that it was lent.
        It goes on; another one is stopped, be it newer: the server knows nothing of it either.
        """
        key = (run_id, job.seq)
        known = self._attempts.get(key)
        if known is not None:
            attempt, of_known = (job.created, job.attempt), (known.job.created, known.job.attempt)
            if known.lent:
                self.on_replaced(run_id, job.seq)
                known.lent = False
                if attempt == of_known:
                    return
                self._finish(known)
            elif of_known >= attempt:
                return
            else:
                self._finish(known)
        slots = self._slots_of(job.step)
        running = self._attempts[key] = Running(shard, run_id, job, job.details, slots, self._on_emit)
        if not self._paused and slots.has_room_for(run_id):
            self._start(slots, running)
        else:
            slots.wait(running)

    def details_of(self, run_id: str, seq: int) -> Raw:
        """The encoded details that a step that runs or waits reported last."""
        running = self._attempts.get((run_id, seq))
        return NOTHING if running is None else running.details

    def has(self, run_id: str, seq: int) -> bool:
        """Whether an attempt of this call runs or waits."""
        return (run_id, seq) in self._attempts

    def is_replaced(self, running: Running) -> bool:
        """Whether its step is run again here: what this execution has emitted since is void."""
        return running.over and (running.run_id, running.job.seq) in self._attempts

    def has_begun(self, run_id: str, seq: int) -> bool:
        """Whether an attempt of this call runs, and doesn't only wait for a slot."""
        running = self._attempts.get((run_id, seq))
        return running is not None and (running.started != 0.0 or running.lent)

    def runs(self, run_id: str, seq: int, attempt: int) -> bool:
        """Whether this very attempt runs or waits."""
        running = self._attempts.get((run_id, seq))
        return running is not None and running.job.attempt == attempt

    def hold(self) -> None:
        """Start nothing more until `resume`: the other daemons may consider this one dead."""
        self.held = self._paused = True

    def resume(self) -> None:
        self.held = False
        self._paused = self._crowded
        self._start_waiting()

    @property
    def crowded(self) -> bool:
        return self._crowded

    @crowded.setter
    def crowded(self, crowded: bool) -> None:
        """While the results that wait for their commits are many bytes, nothing more is started."""
        self._crowded = crowded
        self._paused = self.held or crowded
        self._start_waiting()

    def cancel(self, run_id: str, seq: int) -> None:
        """Cancel an attempt that runs or waits, without an outcome."""
        running = self._attempts.get((run_id, seq))
        if running is not None:
            self._finish(running)
            self._start_waiting()

    def lend(self, shards: Collection[int]) -> dict[int, list[Running]]:
        """These shards have other owners from now on: their attempts that run continue, and `cancel_where` doesn't find
        them any more; those that wait for a slot are for the new owners. Returns the ones that continue, by shard."""
        lent: dict[int, list[Running]] = {}
        for running in list(self._attempts.values()):
            if running.lent or running.shard not in shards:
                continue
            if running.started == 0.0:
                self._finish(running)
            else:
                running.lent = True
                lent.setdefault(running.shard, []).append(running)
        return lent

    def reporting(self) -> list[Running]:
        """The attempts that run and have called `sf.heartbeat`."""
        return [running for running in self._attempts.values() if running.beat]

    def stop_lent(self, run_id: str, seq: int, attempt: int) -> None:
        """Stop an attempt that `lend` has returned, without an outcome, if it still runs: not a newer one."""
        running = self._attempts.get((run_id, seq))
        if running is not None and running.lent and running.job.attempt == attempt:
            self._finish(running)
            self._start_waiting()

    def cancel_where(self, wanted: Callable[[Running], bool]) -> None:
        """Cancel all attempts for which `wanted` returns True, without outcomes; not those that are lent."""
        for running in [running for running in self._attempts.values() if not running.lent and wanted(running)]:
            self._finish(running)
        self._start_waiting()

    def close(self) -> None:
        """Cancel all attempts; threads that run are not waited for."""
        self._closed = True
        for running in list(self._attempts.values()):
            self._finish(running)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._process_pool.close()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _slots_of(self, step: Step[..., Any]) -> Slots:
        return self._processes if step.process else self._tasks if step.is_async else self._threads

    def _start(self, slots: Slots, running: Running) -> None:
        job = running.job
        loop = self._loop
        if loop is None:  # kept, because in Python 3.11 each look-up asks the system for the process's id
            loop = self._loop = asyncio.get_running_loop()
        running.started = time.perf_counter()
        self.started += 1
        slots.take(running.run_id)
        if slots.paced and not self._is_pacing:
            self._is_pacing = True
            loop.call_soon(self._next_turn)
        if self.tracing is not None and job.trace:
            running.span = self.tracing.dropped.get(job.trace) or self.tracing.attempt(running.run_id, job)
        if slots is not self._threads:
            # As `loop.create_task` does it. A name of one's own costs less than the default one, which has a number.
            code = self._run(running)
            if self.noting is not None:
                code = self.noting.slices_of(code, running)
            running.task = task = asyncio.Task(code, loop=loop, name=job.step.name)
            hide(task)
        else:
            future = loop.run_in_executor(self._pool, self._call, running)
            future.add_done_callback(lambda done: self._returned(running, done))
        if job.timeout is not None:
            running.expiry = loop.call_later(job.timeout, self._expire, running)

    def _start_waiting(self) -> None:
        for slots in self._all_slots:
            self._start_next(slots)

    def _start_next(self, slots: Slots) -> None:
        """Start what waits for slots of this kind, as far as there are any."""
        while slots.waiting and slots.used < slots.limit and not self._paused:
            running = slots.next_waiting()
            if running is None:
                break
            self._start(slots, running)

    def _next_turn(self) -> None:
        """Another turn of the event loop: runs with many slots may start more."""
        self._is_pacing = False
        for slots in self._all_slots:
            slots.next_turn()
        self._start_waiting()

    async def _run(self, running: Running) -> None:
        job = running.job
        step = job.step
        current.set(running)
        if running.span is not None:
            running.span.attach()  # this task's context ends with it
        try:
            if step.process:
                outcome = await self._in_process(running)
                if outcome is None:
                    running.task = None
                    self._abandon(running)
                    return
            else:
                args, kwargs = step.parameters.decode(job.args)
                value = await step.function(*args, **kwargs)
                outcome = self._success(running, value)
        except asyncio.CancelledError as error:
            if running.over:
                raise
            outcome = self._failed(running, error)
        except BaseException as error:  # also sys.exit(): it ends only this attempt
            if ends_process(error):
                raise
            outcome = self._failed(running, error)
        if not running.over:
            running.task = None  # this very task, which must not be cancelled now
            self._report(running, outcome)

    def _call(self, running: Running) -> Outcome:
        """In a thread."""
        running.thread = threading.get_ident()
        job = running.job
        step = job.step
        noting = self.noting
        place = 0 if noting is None else noting.thread_begins(running)
        token = current.set(running)
        span = running.span
        attached = None if span is None else span.attach()
        try:
            args, kwargs = step.parameters.decode(job.args)
            return self._success(running, step.function(*args, **kwargs))
        except BaseException as error:
            return self._failed(running, error)
        finally:
            current.reset(token)
            if span is not None:
                span.detach(attached)
            if noting is not None:
                noting.thread_ended(place)

    async def _in_process(self, running: Running) -> Outcome | None:
        """None: the process died with this daemon or worker, so the attempt is for its successor."""
        called = await self._process_pool.call(running)
        if called.died:
            await asyncio.sleep(SIGNAL_SETTLES)
            if self.draining:
                return None
        if called.failure is None:
            outcome = Outcome(running.job.seq, running.job.attempt, _elapsed_ms(running), Raw(called.result))
            outcome.records = called.records
            return outcome
        outcome = self._outcome_of(running, called.failure, called.permanent, called.kinds)
        outcome.to_blame, outcome.records = called.died, called.records
        return outcome

    def _abandon(self, running: Running) -> None:
        """End an attempt without an outcome."""
        _log.info(
            "step %s of run %s, attempt %d: its process ended while this process drains; it runs again elsewhere, "
            "under the same attempt",
            running.job.step.name,
            running.run_id,
            running.job.attempt,
        )
        self._finish(running)
        self._on_free()

    def _returned(self, running: Running, done: asyncio.Future[Outcome]) -> None:
        """A thread is free again: only now, even if its attempt was over long before."""
        running.returned = True
        if running.replaced:
            self.hung -= 1
            self.exhausted = False
            return
        self._threads.free(running.run_id)
        if not running.over and not done.cancelled():
            self._report(running, done.result())
        else:
            self._start_waiting()
            self._on_free()

    def _replace(self, running: Running) -> None:
        """Its attempt ended a while ago: if its thread still runs, another one gets its slot."""
        if running.returned or self._closed:
            return
        step, run_id, line = running.job.step.name, running.run_id, _line_of(running.thread)
        if self.hung >= self.most_hung:
            if not self.exhausted:
                self.exhausted = True
                _log.error(
                    "%d threads hang in steps that have ended, the last one in step %s of run %s at %s: no more "
                    "threads are added, plain steps wait for those that are left, only a restart of this process helps",
                    self.hung + 1,
                    step,
                    run_id,
                    line,
                )
                self._on_exhausted()
            asyncio.get_running_loop().call_later(self._replace_after, self._replace, running)
            return
        running.replaced = True
        self.hung += 1
        self._threads.free(running.run_id)
        _log.warning(
            "the thread of step %s of run %s has not returned since its attempt ended, and is at %s: another thread "
            "takes its place (%d threads hang, %d may)",
            step,
            run_id,
            line,
            self.hung,
            self.most_hung,
        )
        self._start_waiting()
        self._on_free()

    def _success(self, running: Running, value: object) -> Outcome:
        if _forks != self._forks:
            self._end_copy()
        job = running.job
        data = job.step.parameters.encode_result(value)
        outcome = Outcome(job.seq, job.attempt, _elapsed_ms(running), Raw(data))
        if running.recording is not None:
            outcome.records = running.records
        return outcome

    def _failed(self, running: Running, error: BaseException) -> Outcome:
        if _forks != self._forks:
            self._end_copy()
        if running.interrupted is not None:
            return self._interrupted(running, running.interrupted)
        return self._outcome_of(running, failure_of(error, (__file__,)), is_permanent(error), kinds_of(error))

    def _interrupted(self, running: Running, error: StepInterrupted) -> Outcome:
        """It blocked the event loop, and what its code has made of the interruption doesn't matter."""
        kind = "TimeoutError" if error.timed_out else STEP_BLOCKED
        failure = msgspec.structs.replace(failure_of(error, (__file__,)), kind=kind)
        return self._outcome_of(running, failure, not error.timed_out, (kind,))

    @staticmethod
    def _outcome_of(running: Running, failure: Failure, permanent: bool, kinds: tuple[str, ...] = ()) -> Outcome:
        job, ms = running.job, _elapsed_ms(running)
        return Outcome(
            job.seq, job.attempt, ms, None, failure, permanent, running.details, kinds, records=running.records
        )

    def _end_copy(self) -> None:
        """In a process that a step has forked, and that comes back as if it were the daemon or worker: it has the same
        connections, and must not use them."""
        os.write(2, b"a process that a step has forked returned from the step, and ends: call os._exit() in it\n")
        os._exit(FORKED)

    def _expire(self, running: Running) -> None:
        if running.over:
            return
        job = running.job
        text = f"step {job.step.name} took longer than {job.timeout:g} s"
        if running.slots is self._threads:
            _log.warning("%s; its thread can't be stopped and continues, its result will be dropped", text)
        self._report(running, self._outcome_of(running, Failure("TimeoutError", text), False))

    def _report(self, running: Running, outcome: Outcome) -> None:
        """Its attempt has ended. If it has emitted something, that is stored first: until then it still runs."""
        if running.emitted is not None and self._stores_first(running, outcome):
            return
        if running.span is not None:
            running.span.end(outcome)
            running.span = None
        slots = self._finish(running)
        if slots.waiting:
            self._start_next(slots)
        self._on_outcome(running.shard, running.run_id, outcome)

    def _stores_first(self, running: Running, outcome: Outcome) -> bool:
        """Whether the outcome has to wait for what was emitted: then it is reported again, once that is stored."""
        if self._chunks is None or self._closed or outcome is running.ended:
            return False
        if running.ended is None:
            running.ended = outcome
            self._chunks.end(running, lambda: self._stored(running))
        return True

    def _stored(self, running: Running) -> None:
        if not running.over and running.ended is not None:
            self._report(running, running.ended)

    def _finish(self, running: Running) -> Slots:
        """Remove an attempt, and cancel its task if it still runs. Returns the slots of its kind."""
        running.over = True
        if running.emitted is not None and running.ended is None and self._chunks is not None:
            self._chunks.end(running, None)
        if running.span is not None:
            running.span.end(None)
            running.span = None
        self._attempts.pop((running.run_id, running.job.seq), None)
        if running.expiry is not None:
            running.expiry.cancel()
        slots = running.slots
        if running.started == 0.0:
            slots.waiting -= 1
        elif slots is not self._threads:
            slots.free(running.run_id)
        elif not running.returned and not self._closed:
            asyncio.get_running_loop().call_later(self._replace_after, self._replace, running)
        if running.task is not None:
            running.task.cancel()
        return slots


def _line_of(thread: int) -> str:
    """The innermost line of user code in which a thread is."""
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    return user_line(frame) if frame is not None else "an unknown line"


def _elapsed_ms(running: Running) -> float:
    """Since its start, cut to whole microseconds: to round it costs more than the rest of a report."""
    return int((time.perf_counter() - running.started) * 1e6) / 1e3
