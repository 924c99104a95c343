"""Loops that survive the server's errors."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import anyio
import pytest

from streamflow import loops
from streamflow.errors import StoreError
from streamflow.loops import Supervisor, retry_forever

pytestmark = pytest.mark.anyio

log = logging.getLogger("streamflow.test")


class Once:
    """A body that answers from a list: an exception is raised; the loop ends with the list."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.failures = 0

    def over(self) -> bool:
        return not self.answers

    def failed(self) -> None:
        self.failures += 1

    async def __call__(self) -> None:
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the loop slept, none of which pass."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(loops.anyio, "sleep", sleep)
    return slept


async def test_consecutive_errors_are_logged_once_and_so_is_the_recovery(
    sleeps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", log.name)
    once = Once(StoreError("away"), StoreError("away"), None, StoreError("full"), None)
    await retry_forever(once, log, "could not look", on_failure=once.failed, until=once.over)
    assert caplog.messages == [
        "could not look, will retry: away",
        "recovered from: could not look",
        "could not look, will retry: full",
        "recovered from: could not look",
    ]
    assert once.failures == 3


async def test_pauses_grow_with_consecutive_failures_and_have_a_limit(sleeps: list[float]) -> None:
    once = Once(*[StoreError("away")] * 7, None, StoreError("away"))
    await retry_forever(once, log, "could not look", until=once.over)
    assert sleeps == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.1]


@pytest.mark.parametrize(("at_once", "slept"), [(False, [5, 5, 5]), (True, [5, 5])])
async def test_an_interval_is_kept_whatever_happens(
    sleeps: list[float], monkeypatch: pytest.MonkeyPatch, at_once: bool, slept: list[float]
) -> None:
    monkeypatch.setattr(loops.time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(loops, "_PHASE", 0.0)
    once = Once(None, StoreError("away"))
    await retry_forever(once, log, "could not look", every=5, at_once=at_once, until=once.over)
    assert sleeps == slept


async def test_loops_of_one_interval_have_their_turns_together(
    sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.7
    monkeypatch.setattr(loops.time, "monotonic", lambda: now)
    monkeypatch.setattr(loops, "_PHASE", 0.2)
    turns: list[float] = []

    async def takes(seconds: float) -> None:
        nonlocal now
        now += sum(sleeps)
        sleeps.clear()
        turns.append(round(now, 6))
        now += seconds

    durations = iter([0.1, 1.8, 2.1, 0.0])
    await retry_forever(lambda: takes(next(durations)), log, "x", every=2.0, until=lambda: len(turns) == 4)
    assert turns == [1002.2, 1004.2, 1008.2, 1012.2], "each two seconds, and not at once after a turn that took long"


async def test_a_defect_is_for_the_supervisor(sleeps: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        await retry_forever(Once(ZeroDivisionError(), None), log, "could not look")


class Failing:
    """A loop that raises errors from a list, and then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.began = 0

    async def __call__(self) -> None:
        self.began += 1
        await anyio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)


async def test_a_loop_runs_again_after_any_error(sleeps: list[float], caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(log)
    loop = Failing(ZeroDivisionError("a"), ZeroDivisionError("a"), KeyError("b"), *[KeyError("b")] * 4)
    await supervisor.run("relay", loop)
    assert loop.began == 8
    assert sleeps == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert supervisor.errors == 7
    assert supervisor.failing == {"relay": "KeyError: 'b'"}
    assert caplog.messages[0] == "the loop 'relay' failed, will run again in 0.1 s: ZeroDivisionError: a"
    assert [record.exc_info is not None for record in caplog.records] == [True, False, True, *[False] * 4]


async def test_an_error_that_cannot_be_shown_is_an_error_like_others(sleeps: list[float]) -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError

    supervisor = Supervisor(log)
    await supervisor.run("relay", Failing(Silent()))
    assert "Silent" in supervisor.failing["relay"]


async def test_a_loop_without_an_error_for_a_minute_no_longer_fails(
    sleeps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(loops.time, "monotonic", lambda: now)
    supervisor = Supervisor(log)
    loop = Failing(ZeroDivisionError(), ZeroDivisionError(), ZeroDivisionError())

    async def runs_long_the_last_time() -> None:
        nonlocal now
        now += 61 if len(loop.errors) == 1 else 1
        await loop()

    await supervisor.run("relay", runs_long_the_last_time)
    assert sleeps == [0.1, 0.2, 0.1]
    assert supervisor.failing
    now += 60
    assert supervisor.failing == {}


async def test_a_stray_cancel_does_not_end_a_loop(sleeps: list[float]) -> None:
    """User code may cancel all tasks of its event loop."""
    supervisor = Supervisor(log)
    runs: list[asyncio.Task[Any] | None] = []
    ended = anyio.Event()

    async def loop() -> None:
        runs.append(asyncio.current_task())
        if len(runs) == 1:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, "relay", loop)
        await anyio.wait_all_tasks_blocked()
        assert runs[0] is not None
        runs[0].cancel()
        with anyio.fail_after(5):
            await ended.wait()
    assert len(runs) == 2
    assert supervisor.failing == {"relay": "asyncio.exceptions.CancelledError"}


async def test_a_stray_cancel_during_the_pause_does_not_either() -> None:
    """Nor does it end the loops beside it, as a cancelled task ends its group."""
    supervisor = Supervisor(log)
    runs: list[asyncio.Task[Any] | None] = []
    ended = anyio.Event()

    async def loop() -> None:
        runs.append(asyncio.current_task())
        if len(runs) == 1:
            raise ValueError("a pause follows")
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(supervisor.run, longest=60.0), "relay", loop)
        await anyio.wait_all_tasks_blocked()
        assert len(runs) == 1
        assert runs[0] is not None
        runs[0].cancel()
        with anyio.fail_after(5):
            await ended.wait()
    assert len(runs) == 2


async def test_a_cancelled_scope_ends_a_loop() -> None:
    supervisor = Supervisor(log)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervisor.run, "relay", anyio.sleep_forever)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert supervisor.errors == 0


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
async def test_what_is_to_end_the_process_does(error: BaseException) -> None:
    coroutine = Supervisor(log).run("relay", Failing(error))
    step = coroutine.__await__()
    next(step)
    with pytest.raises(type(error)):
        next(step)


async def test_a_loop_is_named_while_its_turn_takes_too_long(sleeps: list[float]) -> None:
    supervisor = Supervisor(log)
    hanging, unlimited = anyio.Event(), anyio.Event()
    once = Once(None, StoreError("away"), None)

    async def hang() -> None:
        if once.over():
            hanging.set()
            await anyio.sleep_forever()
        await once()

    async def wait() -> None:
        unlimited.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as running:
        running.start_soon(supervisor.run, "rollup", partial(retry_forever, hang, log, "could not", within=0.0))
        running.start_soon(supervisor.run, "owner", partial(retry_forever, wait, log, "could not"))
        await hanging.wait()
        await unlimited.wait()
        await asyncio.sleep(0.01)
        assert list(supervisor.hanging) == ["rollup"]
        running.cancel_scope.cancel()


async def test_a_loop_between_its_turns_is_not_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(log)
    asleep = anyio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(loops.anyio, "sleep", sleep)
    once = Once(ValueError("a defect"))
    async with anyio.create_task_group() as running:
        running.start_soon(supervisor.run, "rollup", partial(retry_forever, once, log, "could not", within=0.0))
        await asleep.wait()
        assert supervisor.errors == 1
        assert supervisor.hanging == {}
        running.cancel_scope.cancel()


async def test_a_loop_that_the_server_has_failed_is_told_from_a_defect(sleeps: list[float]) -> None:
    group = ExceptionGroup("of a task group", [StoreError("away")])
    for errors, of_server in (([StoreError("away")], True), ([group], True), ([group, ValueError("boom")], False)):
        supervisor = Supervisor(log)
        await supervisor.run("reader", Once(*errors, None))
        assert ("reader" in supervisor.unserved) is of_server
        assert "reader" in supervisor.failing
