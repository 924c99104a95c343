"""What is noted of steps on the event loop: whose code it executes, slice by slice."""

from __future__ import annotations

import asyncio
import struct
import threading

import anyio
import pytest

import streamflow as sf
from streamflow.loops import wait_until
from streamflow.watch.shared_note import FORMAT, THREAD_FORMAT, SharedNote
from tests.support.machine_driver import plain
from tests.unit.steps.test_executor import Bench, bench

pytestmark = pytest.mark.anyio


class Noting:
    """Whose code is executed now: the number of its step, or 0."""

    def __init__(self, it: Bench) -> None:
        self._note = SharedNote(5.0, 30.0, threads=2)
        it.executor.noting = self._note

    @property
    def now(self) -> int:
        _, executes, *_, seq, _ = struct.unpack_from(FORMAT, self._note.memory)
        return seq if executes else 0

    @property
    def in_threads(self) -> list[tuple[int, int, str]]:
        """The system's number of a thread, the number of its step, and its run."""
        first, size = struct.calcsize(FORMAT), struct.calcsize(THREAD_FORMAT)
        entries = [struct.unpack_from(THREAD_FORMAT, self._note.memory, first + number * size) for number in (1, 2)]
        return [(thread, seq, run_id.rstrip(b"\0").decode()) for thread, _, _, seq, run_id in entries if thread]


async def test_a_step_is_noted_while_it_is_executed_not_while_it_waits() -> None:
    go = anyio.Event()

    @sf.App().step
    async def waits() -> list[int]:
        before = note.now
        await go.wait()
        return [before, note.now]

    async with bench() as it:
        note = Noting(it)
        it.submit(waits, seq=1)
        it.submit(waits, seq=2)
        await anyio.wait_all_tasks_blocked()
        assert note.now == 0
        go.set()
        results = {(outcome := await it.next()).seq: plain(outcome.result or b"") for _ in range(2)}
        assert results == {1: [1, 1], 2: [2, 2]}
        assert note.now == 0


async def test_code_that_cleans_up_after_a_cancel_is_noted() -> None:
    cleaned: list[int] = []

    @sf.App().step
    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(note.now)
            await asyncio.sleep(0)
            cleaned.append(note.now)

    async with bench() as it:
        note = Noting(it)
        it.submit(cleans_up, seq=3)
        await anyio.wait_all_tasks_blocked()
        it.executor.cancel("r", 3)
        await it.quiet()
        assert (cleaned, note.now) == ([3, 3], 0)


async def test_a_step_sees_the_task_that_it_knows() -> None:
    @sf.App().step
    async def uses_its_task() -> list[str]:
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        task = asyncio.current_task()
        assert task is not None
        return [task.get_name(), str(scope.cancelled_caught)]

    @sf.App().step(retry=sf.NO_RETRY)
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("no")

    async with bench() as it:
        Noting(it)
        it.submit(uses_its_task)
        assert plain((await it.next()).result or b"") == ["uses_its_task", "True"]
        it.submit(fails, seq=2)
        failure = (await it.next()).failure
        assert failure is not None
        assert failure.kind == "KeyError"
        assert "in send" not in failure.traceback


async def test_a_plain_step_is_noted_with_its_thread_until_it_returns() -> None:
    threads: list[int] = []
    go = threading.Event()

    @sf.App().step
    def waits() -> None:
        threads.append(threading.get_native_id())
        assert go.wait(10)

    async with bench() as it:
        note = Noting(it)
        for seq in (1, 2):
            it.submit(waits, seq=seq)
        await wait_until(lambda: len(threads) == 2, 0.001)
        it.submit(waits, seq=3)  # finds no place, and runs all the same
        await wait_until(lambda: len(threads) == 3, 0.001)
        assert sorted(seq for _, seq, _ in note.in_threads) == [1, 2]
        assert {thread for thread, _, _ in note.in_threads} < set(threads)
        go.set()
        assert [(await it.next()).failure for _ in range(3)] == [None] * 3
        await wait_until(lambda: not note.in_threads, 0.001)
