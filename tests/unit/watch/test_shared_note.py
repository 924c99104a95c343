"""What is noted of steps on the event loop: whose code it executes, slice by slice."""

from __future__ import annotations

import asyncio
import struct

import anyio
import pytest

import streamflow as sf
from streamflow.watch.shared_note import FORMAT, SharedNote
from tests.support.machine_driver import plain
from tests.unit.steps.test_executor import Bench, bench

pytestmark = pytest.mark.anyio


class Noting:
    """Whose code is executed now: the number of its step, or 0."""

    def __init__(self, it: Bench) -> None:
        self._note = SharedNote(5.0, 30.0)
        it.executor.noting = self._note.slices_of

    @property
    def now(self) -> int:
        _, executes, *_, seq, _ = struct.unpack(FORMAT, self._note.memory)
        return seq if executes else 0


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
