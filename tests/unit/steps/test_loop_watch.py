"""A thread sees that an async step blocks the event loop, and names step, run and line."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.machine.transition import Outcome
from streamflow.steps.executor import StepExecutor
from streamflow.steps.loop_watch import LoopWatch
from streamflow.workflow.actions import StepJob
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

app = sf.App()
log = logging.getLogger("streamflow.steps")


class Warned(logging.Handler):
    """What was logged, and an event for code that blocks until something was."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.event.set()


@pytest.fixture
def warned() -> Iterator[Warned]:
    handler = Warned()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def blocking_call(until: threading.Event) -> bool:
    return until.wait(10)  # the line that blocks


async def run(step: Any, watch: LoopWatch) -> None:
    ended = asyncio.Event()

    def on_outcome(_: int, run_id: str, outcome: Outcome) -> None:
        assert outcome.failure is None, outcome.failure
        ended.set()

    executor = StepExecutor(10, 4, on_outcome)
    watch.start()
    try:
        executor.submit(0, "order-7", StepJob(1, 1, step, raw([])))
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        watch.stop()
        executor.close()


async def test_a_step_that_blocks_is_named_with_its_run_and_line(warned: Warned) -> None:
    @app.step(name="charge")
    async def charge() -> None:
        assert blocking_call(warned.event)

    late: list[float] = []
    await run(charge, LoopWatch("worker", every=0.01, blocked=0.05, on_late=late.append))
    [line] = warned.lines
    assert "step charge of run order-7 has blocked the event loop of its worker" in line
    assert f"{__file__}:" in line
    assert "(return until.wait(10)  # the line that blocks)" in line
    assert late[0] >= 0.01


async def test_a_task_that_a_step_has_started_is_found_by_its_line(warned: Warned) -> None:
    @app.step(name="fans-out")
    async def fans_out() -> None:
        async def part() -> None:
            assert blocking_call(warned.event)

        await asyncio.create_task(part())

    await run(fans_out, LoopWatch("daemon", every=0.01, blocked=0.05))
    [line] = warned.lines
    assert "(return until.wait(10)  # the line that blocks)" in line
    if sys.version_info >= (3, 12):
        assert "step fans-out of run order-7" in line


async def test_a_loop_that_answers_is_not_blocked(warned: Warned) -> None:
    late: list[float] = []
    watch = LoopWatch("daemon", every=3600, blocked=0.0, on_late=late.append)
    watch.start()
    for _ in range(5):
        watch.look()
        await anyio.wait_all_tasks_blocked()
    assert (warned.lines, late) == ([], [])
    for _ in range(3):  # without an answer: at the second of these looks the process may only have been paused
        watch.look()
    assert (len(warned.lines), len(late)) == (1, 1)
    watch.stop()


async def test_a_loop_that_is_closed_ends_the_watch() -> None:
    watch = LoopWatch("daemon", every=0.01)
    closed = asyncio.new_event_loop()
    watch._loop = closed
    closed.close()
    watch.look()
    assert watch._stopped.is_set()
