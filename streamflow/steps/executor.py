"""Runs steps: an asyncio task for an async function, a thread for a plain one, a process for one that computes.

Owns: the tasks, threads and processes in flight, their time-outs, and the limit on how many run at once.
Must not: know keys, commits, claims or retries. It hands each attempt's `Outcome` back, and forgets it.
Called by: the owner and the worker (submit, cancel).

Tasks are plain asyncio tasks, not members of a task group: starting one costs a third, and a step's failure is a value.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import anyio
from msgspec import Raw

from streamflow.errors import Failure, UsageError
from streamflow.events import NOTHING
from streamflow.machine.transition import Outcome
from streamflow.model import codec
from streamflow.model.failures import failure_of
from streamflow.steps.context import Running, current
from streamflow.steps.processes import call_in_process
from streamflow.workflow.actions import StepJob

_log = logging.getLogger("streamflow.steps")

STEP_THREAD = "streamflow-step"
"""How the names of threads begin that run steps."""


class Room:
    """How many attempts of a kind run at once, and those that wait for a place."""

    __slots__ = ("limit", "queue", "used", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.queue: deque[Running] = deque()
        self.waiting = 0
        """Those in the queue that aren't over: cancelled ones stay in it until it is their turn."""


class StepExecutor:
    """At most `concurrency` tasks, `threads` threads and `processes` processes (0: one a core) at once; the rest waits
    in order, and its time-outs with it.

    `on_outcome(shard, run_id, outcome)` is called in the event loop, never from inside `submit`; `on_free()` when a
    thread has come back whose attempt had been over.
    """

    def __init__(
        self,
        concurrency: int,
        threads: int,
        on_outcome: Callable[[int, str, Outcome], None],
        *,
        processes: int = 0,
        on_free: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_outcome = on_outcome
        self._on_free = on_free
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=STEP_THREAD)
        self._tasks = Room(concurrency)
        self._threads = Room(threads)
        self._processes = Room(processes or os.cpu_count() or 1)
        self._rooms = (self._tasks, self._threads, self._processes)
        self._process_limit: anyio.CapacityLimiter | None = None
        self._attempts: dict[tuple[str, int], Running] = {}
        self._by_shard: dict[int, int] = {}
        self.started = 0
        self.held = False

    @property
    def running(self) -> int:
        return sum(room.used for room in self._rooms)

    @property
    def waiting(self) -> int:
        return sum(room.waiting for room in self._rooms)

    @property
    def lingering(self) -> int:
        """Threads whose attempts are over, but that can't be stopped: they keep their places until they come back."""
        if not self._threads.used:
            return 0
        attempts = (one for one in self._attempts.values() if self._room_of(one) is self._threads)
        return self._threads.used - sum(one.started != 0.0 for one in attempts)

    def of_shard(self, shard: int) -> int:
        """Attempts of a shard that run or wait."""
        return self._by_shard.get(shard, 0)

    def submit(self, shard: int, run_id: str, job: StepJob) -> None:
        """Start an attempt, now or when there is room. An attempt that is there already is left alone."""
        key = (run_id, job.seq)
        present = self._attempts.get(key)
        if present is not None:
            if (present.job.created, present.job.attempt) >= (job.created, job.attempt):
                return
            self._finish(present)
        running = Running(shard, run_id, job, job.details)
        self._attempts[key] = running
        self._by_shard[shard] = self._by_shard.get(shard, 0) + 1
        room = self._room_of(running)
        if room.used < room.limit and not room.waiting and not self.held:
            self._start(room, running)
        else:
            room.queue.append(running)
            room.waiting += 1

    def told(self, run_id: str, seq: int) -> Raw:
        """What a step that runs or waits told last."""
        running = self._attempts.get((run_id, seq))
        return NOTHING if running is None else running.details

    def hold(self) -> None:
        """Start nothing more until `resume`: this daemon may have been given up by the others."""
        self.held = True

    def resume(self) -> None:
        self.held = False
        self._start_waiting()

    def cancel(self, run_id: str, seq: int) -> None:
        running = self._attempts.get((run_id, seq))
        if running is not None:
            self._finish(running)
            self._start_waiting()

    def cancel_where(self, wanted: Callable[[Running], bool]) -> None:
        """Cancel all attempts that `wanted` says, without outcomes."""
        for running in [one for one in self._attempts.values() if wanted(one)]:
            self._finish(running)
        self._start_waiting()

    def close(self) -> None:
        self.cancel_where(lambda _: True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _room_of(self, running: Running) -> Room:
        step = running.job.step
        return self._processes if step.process else self._tasks if step.is_async else self._threads

    def _start(self, room: Room, running: Running) -> None:
        job = running.job
        loop = asyncio.get_running_loop()
        running.started = time.perf_counter()
        self.started += 1
        room.used += 1
        if room is not self._threads:
            running.task = loop.create_task(self._run(running))
        else:
            future = loop.run_in_executor(self._pool, self._call, running)
            future.add_done_callback(lambda done: self._returned(running, done))
        if job.timeout is not None:
            running.expiry = loop.call_later(job.timeout, self._expire, running)

    def _start_waiting(self) -> None:
        for room in self._rooms:
            while room.queue and room.used < room.limit and not self.held:
                running = room.queue.popleft()
                if not running.over:
                    room.waiting -= 1
                    self._start(room, running)

    async def _run(self, running: Running) -> None:
        job = running.job
        step = job.step
        current.set(running)
        try:
            if step.process:
                outcome = await self._in_process(running)
            else:
                args, kwargs = step.parameters.decode(job.args)
                value = await step.function(*args, **kwargs)
                outcome = self._success(running, value)
        except asyncio.CancelledError as error:
            if running.over:
                raise
            outcome = self._failed(running, error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit(), or an error of any base: it ends the attempt alone
            outcome = self._failed(running, error)
        if not running.over:
            running.task = None  # it ends by itself
            self._report(running, outcome)

    def _call(self, running: Running) -> Outcome:
        """In a thread."""
        job = running.job
        step = job.step
        token = current.set(running)
        try:
            args, kwargs = step.parameters.decode(job.args)
            return self._success(running, step.function(*args, **kwargs))
        except BaseException as error:
            return self._failed(running, error)
        finally:
            current.reset(token)

    async def _in_process(self, running: Running) -> Outcome:
        if self._process_limit is None:
            self._process_limit = anyio.CapacityLimiter(self._processes.limit)
        result, failure, permanent = await call_in_process(running, self._process_limit)
        if failure is None:
            return Outcome(running.job.seq, running.job.attempt, _elapsed_ms(running), Raw(result))
        return self._outcome_of(running, failure, permanent)

    def _returned(self, running: Running, done: asyncio.Future[Outcome]) -> None:
        """A thread is free again; only now, also when its attempt has been over for long."""
        self._threads.used -= 1
        if not running.over and not done.cancelled():
            self._report(running, done.result())
        else:
            self._start_waiting()
            self._on_free()

    def _success(self, running: Running, value: object) -> Outcome:
        job = running.job
        data = codec.encode(value, f"result of step {job.step.name}")
        return Outcome(job.seq, job.attempt, _elapsed_ms(running), Raw(data))

    def _failed(self, running: Running, error: BaseException) -> Outcome:
        job = running.job
        permanent = isinstance(error, UsageError) or job.step.retry.gives_up_on(error)
        return self._outcome_of(running, failure_of(error, (__file__,)), permanent)

    @staticmethod
    def _outcome_of(running: Running, failure: Failure, permanent: bool) -> Outcome:
        job = running.job
        return Outcome(job.seq, job.attempt, _elapsed_ms(running), None, failure, permanent, running.details)

    def _expire(self, running: Running) -> None:
        if running.over:
            return
        job = running.job
        text = f"step {job.step.name} took longer than {job.timeout:g} s"
        if self._room_of(running) is self._threads:
            _log.warning("%s; its thread can't be stopped and goes on, its result will be dropped", text)
        self._report(running, self._outcome_of(running, Failure("TimeoutError", text), False))

    def _report(self, running: Running, outcome: Outcome) -> None:
        self._finish(running)
        if self._tasks.queue or self._threads.queue or self._processes.queue:
            self._start_waiting()
        self._on_outcome(running.shard, running.run_id, outcome)

    def _finish(self, running: Running) -> None:
        """Take an attempt off the books, and cancel its task if that still runs."""
        running.over = True
        self._attempts.pop((running.run_id, running.job.seq), None)
        left = self._by_shard[running.shard] - 1
        if left:
            self._by_shard[running.shard] = left
        else:
            del self._by_shard[running.shard]
        if running.expiry is not None:
            running.expiry.cancel()
        room = self._room_of(running)
        if running.started == 0.0:
            room.waiting -= 1
        elif room is not self._threads:
            room.used -= 1
        if running.task is not None:
            running.task.cancel()


def _elapsed_ms(running: Running) -> float:
    return round((time.perf_counter() - running.started) * 1000, 3)
