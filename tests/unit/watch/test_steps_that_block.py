"""Async steps that block the event loop: named with run and line, interrupted, and in the end given up on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

import streamflow as sf
from streamflow.machine.transition import Outcome
from streamflow.settings import Settings
from streamflow.steps.context import StepInterrupted
from streamflow.steps.executor import StepExecutor
from streamflow.watch import signals
from streamflow.watch import watch as module
from streamflow.watch.watch import Culprit, Watch
from streamflow.workflow.actions import StepJob
from tests.support.machine_driver import raw

pytestmark = pytest.mark.anyio

app = sf.App()
log = logging.getLogger("streamflow.watch")


class Logged(logging.Handler):
    """What was logged, and an event for code that blocks until something was."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.event.set()


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler = Logged()
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAME_AFTER", 0.05)


def blocking_call(until: threading.Event) -> bool:
    return until.wait(10)  # the line that blocks


def watching(place: str = "daemon", *, interrupt_steps: float = 0.0, every: float = 0.01, **options: Any) -> Watch:
    return Watch(place, Settings(interrupt_steps=interrupt_steps), every=every, **options)


async def outcome_of(step: Any, watch: Watch) -> Outcome:
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    executor = StepExecutor(10, 4, lambda _, __, outcome: ended.set_result(outcome))
    watch.start()
    try:
        executor.submit(0, "order-7", StepJob(1, 1, step, raw([]), timeout=step.timeout))
        return await asyncio.wait_for(ended, 20)
    finally:
        watch.stop()
        executor.close()


async def succeed(step: Any, watch: Watch) -> None:
    assert (await outcome_of(step, watch)).failure is None


# --- naming -----------------------------------------------------------------------------------------------------------


async def test_a_step_that_blocks_is_named_with_its_run_and_line(logged: Logged) -> None:
    @app.step(name="charge")
    async def charge() -> None:
        assert blocking_call(logged.event)

    late: list[float] = []
    watch = watching("worker", on_late=late.append)
    await succeed(charge, watch)
    [blocked] = watch.blocked.newest()
    assert (blocked.of, blocked.count, blocked.run_id) == ("step charge", 1, "order-7")
    assert blocked.line.endswith("(return until.wait(10)  # the line that blocks)")
    [line] = logged.lines
    assert "step charge of run order-7 has blocked the event loop of its worker" in line
    assert f"{__file__}:" in line
    assert "(return until.wait(10)  # the line that blocks)" in line
    assert late[0] >= 0.01


async def test_a_task_that_a_step_has_started_is_found_by_its_line(logged: Logged) -> None:
    @app.step(name="fans-out")
    async def fans_out() -> None:
        async def part() -> None:
            assert blocking_call(logged.event)

        await asyncio.create_task(part())

    await succeed(fans_out, watching())
    [line] = logged.lines
    assert "(return until.wait(10)  # the line that blocks)" in line
    if sys.version_info >= (3, 12):
        assert "step fans-out of run order-7" in line


async def test_a_loop_that_answers_is_not_blocked(logged: Logged) -> None:
    late: list[float] = []
    watch = watching(every=0.0, on_late=late.append)
    watch._loop, watch._loop_thread = asyncio.get_running_loop(), threading.get_ident()
    for _ in range(5):
        watch.look()
        await anyio.wait_all_tasks_blocked()
    assert (logged.lines, late) == ([], [])
    watch.look()
    await anyio.wait_all_tasks_blocked()
    watch._asked = time.monotonic() - 1.0  # without an answer
    watch.look()
    assert (logged.lines, late) == ([], []), "the process may only have been paused"
    watch.look()
    assert (len(logged.lines), len(late)) == (1, 1)


async def test_a_task_factory_that_a_step_has_set_is_put_back(logged: Logged) -> None:
    """Nothing could begin any more: neither other steps nor what the daemon itself does."""
    watch = watching(own_process=True, end_process=lambda _: None)
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    watch.start()
    try:
        loop.set_task_factory(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
        over = time.monotonic() + 10
        while loop.get_task_factory() is not before and time.monotonic() < over:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert loop.get_task_factory() is before
    finally:
        watch.stop()
        loop.set_task_factory(before)
    assert "task factory was replaced" in logged.lines[-1]


async def test_a_loop_that_is_closed_ends_the_watch() -> None:
    watch = watching(every=0.0)
    closed = asyncio.new_event_loop()
    watch._loop = closed
    closed.close()
    watch.look()
    assert watch._stopped


# --- interrupting -----------------------------------------------------------------------------------------------------


def spin() -> None:
    while True:
        pass


def fails(outcome: Outcome) -> tuple[str, str, bool]:
    assert outcome.failure is not None, outcome
    return outcome.failure.kind, outcome.failure.message, outcome.permanent


async def test_a_step_that_loops_is_interrupted_and_fails_without_a_retry() -> None:
    @app.step(name="loops")
    async def loops() -> None:
        spin()

    kind, message, permanent = fails(await outcome_of(loops, watching(interrupt_steps=0.2)))
    assert (kind, permanent) == ("StepBlocked", True)
    assert message.startswith(f"step loops blocked the event loop of its daemon for 0.2 s at {__file__}:")
    assert "make the step a plain function" in message


async def test_a_step_in_a_blocking_call_is_interrupted() -> None:
    @app.step(name="calls")
    async def calls() -> None:
        time.sleep(30)  # noqa: ASYNC251

    kind, message, _ = fails(await outcome_of(calls, watching(interrupt_steps=0.2)))
    assert kind == "StepBlocked"
    assert "(time.sleep(30)" in message


@pytest.mark.parametrize("also_ignored", [False, True])
async def test_a_step_that_has_replaced_the_handler_is_interrupted(also_ignored: bool) -> None:
    """And what it has replaced is put back when the loop has its next turn."""

    @app.step(name=f"takes-{also_ignored}")
    async def takes() -> None:
        signal.signal(signal.SIGURG, signal.SIG_IGN if also_ignored else lambda *_: None)
        spin()

    async def put_back() -> None:
        while signal.getsignal(signal.SIGURG) is not signals._on_signal:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    watch = watching(interrupt_steps=0.2)
    other = watching()
    other.start()  # so that somebody listens when the first one has stopped
    try:
        kind, message, permanent = fails(await outcome_of(takes, watch))
        assert (kind, permanent) == ("StepBlocked", True)
        assert f"step takes-{also_ignored} blocked the event loop" in message
        await asyncio.wait_for(put_back(), 10)
    finally:
        other.stop()


async def test_a_step_past_its_time_out_is_interrupted_then() -> None:
    """And may be retried, as after any time-out."""

    @app.step(name="slow", timeout=0.2)
    async def slow() -> None:
        spin()

    kind, message, permanent = fails(await outcome_of(slow, watching(interrupt_steps=30.0)))
    assert (kind, permanent) == ("TimeoutError", False)
    assert message.startswith(f"step slow took longer than 0.2 s, and blocked the event loop at {__file__}:")


async def test_a_step_that_catches_the_interruption_is_tried_again() -> None:
    @app.step(name="stubborn")
    async def stubborn() -> None:
        caught = 0
        while caught < 3:
            try:
                spin()
            except BaseException:
                caught += 1
        spin()

    assert fails(await outcome_of(stubborn, watching(interrupt_steps=0.2)))[0] == "StepBlocked"


def catch_everything() -> None:
    while True:
        try:
            spin()
        except BaseException:
            continue


def suppress_everything() -> None:
    while True:
        with contextlib.suppress(BaseException):
            spin()


@pytest.mark.parametrize("catches", [catch_everything, suppress_everything])
async def test_code_that_catches_each_interruption_ends_all_the_same(catches: Callable[[], None]) -> None:
    traced: list[Any] = []

    def trace(*_: object) -> Any:
        return None

    @app.step(name=catches.__name__)
    async def step() -> None:
        sys.settrace(trace)  # as a debugger does, or a measurement of coverage
        catches()

    before = sys.gettrace()
    watch = watching(interrupt_steps=0.2)
    try:
        kind, message, _ = fails(await outcome_of(step, watch))
        over = time.monotonic() + 10
        while sys.gettrace() is not trace and time.monotonic() < over:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        traced.append(sys.gettrace())
    finally:
        sys.settrace(before)
    assert (kind, f"at {__file__}:" in message) == ("StepBlocked", True)
    assert traced == [trace], "it is put back"


async def test_what_a_library_makes_of_the_interruption_is_not_its_reason() -> None:
    @app.step(name="wraps")
    async def wraps() -> None:
        try:
            spin()
        except BaseException as error:
            raise RuntimeError("lost the connection") from error

    assert fails(await outcome_of(wraps, watching(interrupt_steps=0.2)))[0] == "StepBlocked"


async def test_a_part_of_a_step_that_loops_ends_that_step() -> None:
    @app.step(name="parts")
    async def parts() -> None:
        async def part() -> None:
            spin()

        await asyncio.gather(part(), part())

    kind, message, _ = fails(await outcome_of(parts, watching(interrupt_steps=0.2)))
    assert (kind, "step parts blocked the event loop" in message) == ("StepBlocked", True)


async def test_an_error_that_loops_while_it_is_shown_ends_its_step() -> None:
    class Unshowable(Exception):
        def __str__(self) -> str:
            spin()
            return ""

    @app.step(name="raises")
    async def raises() -> None:
        raise Unshowable

    assert fails(await outcome_of(raises, watching(interrupt_steps=0.2)))[0] in ("Unshowable", "StepBlocked")


async def test_steps_that_take_turns_are_not_interrupted() -> None:
    """However late the loop is because of them all."""
    longest = 0.0

    @app.step(name="many")
    async def many() -> None:
        async def part() -> None:
            nonlocal longest
            began = time.monotonic()
            try:
                time.sleep(0.15)  # noqa: ASYNC251
            finally:
                longest = max(longest, time.monotonic() - began)

        await asyncio.gather(*(part() for _ in range(6)))

    outcome = await outcome_of(many, watching(interrupt_steps=0.5))
    for _ in range(4):
        if longest < 0.4:
            break
        longest = 0.0  # the machine has paused, and one of them did block
        outcome = await outcome_of(many, watching(interrupt_steps=0.5))
    assert outcome.failure is None


async def test_a_task_that_outlives_its_step_is_interrupted_alone(logged: Logged) -> None:
    tasks: list[asyncio.Task[None]] = []
    go_on = asyncio.Event()

    @app.step(name="leaks")
    async def leaks() -> None:
        async def left() -> None:
            await go_on.wait()
            spin()

        tasks.append(asyncio.create_task(left()))

    watch = watching(interrupt_steps=0.2)
    watch_off = watch.stop
    watch.stop = lambda: None  # type: ignore[method-assign]
    try:
        await succeed(leaks, watch)
        go_on.set()
        with pytest.raises(StepInterrupted, match="that step leaks of run order-7 has left behind"):
            await tasks[0]
    finally:
        watch_off()
    assert any("left behind" in line and "it was interrupted" in line for line in logged.lines)


async def test_a_callback_that_outlives_its_step_is_interrupted_alone(logged: Logged) -> None:
    failed: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.set_result(context))

    @app.step(name="calls-later")
    async def calls_later() -> None:
        asyncio.get_running_loop().call_later(0.01, spin)

    watch = watching(interrupt_steps=0.2)
    watch_off = watch.stop
    watch.stop = lambda: None  # type: ignore[method-assign]
    try:
        await succeed(calls_later, watch)
        await failed
    finally:
        watch_off()
        asyncio.get_running_loop().set_exception_handler(None)
    assert "has left behind" in str(failed.result()["exception"])
    assert any("it was interrupted" in line for line in logged.lines)


async def test_code_that_belongs_to_no_step_is_left_alone(logged: Logged) -> None:
    """As that of the program around `sf.local`."""
    watch = watching(interrupt_steps=0.1)
    watch.start()
    try:
        await asyncio.sleep(0.05)
        end = time.monotonic() + 0.6
        while (now := time.monotonic()) < end or (not logged.lines and now < end + 10):
            pass
    finally:
        watch.stop()
    assert any("the event loop of this daemon has been blocked" in line for line in logged.lines)


# --- giving up --------------------------------------------------------------------------------------------------------


async def test_a_step_that_can_not_be_interrupted_ends_the_process(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEP_GIVES_WAY", 0.2)
    ended = threading.Event()
    culprits: list[Culprit] = []
    late: list[float] = []

    @app.step(name="in-c")
    async def in_c() -> None:
        assert ended.wait(10)

    def end_process(code: int) -> None:
        assert code == 75
        ended.set()

    watch = watching(
        interrupt_steps=0.2, give_up=culprits.append, own_process=True, end_process=end_process, on_late=late.append
    )
    monkeypatch.setattr(module.signals, "listen", lambda _: False)  # as code in C that never looks for signals
    await succeed(in_c, watch)
    [culprit] = culprits
    assert (culprit.run_id, culprit.seq) == ("order-7", 1)
    assert "step in-c of run order-7 has blocked its daemon for" in culprit.reason
    assert f"{__file__}:" in culprit.reason
    assert any("hands everything over and exits with code 75" in line for line in logged.lines)


async def test_handing_over_that_fails_or_hangs_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXIT_WITHIN", 0.05)
    codes: list[int] = []
    exited, hung = threading.Event(), threading.Event()

    def end_process(code: int) -> None:
        codes.append(code)
        exited.set()

    def hangs(_: Culprit) -> None:
        assert exited.wait(10)
        hung.set()
        raise OSError("no server")

    watch = watching(own_process=True, give_up=hangs, end_process=end_process)
    await anyio.to_thread.run_sync(watch._give_up, Culprit("r", 1, "why"), "why")
    assert hung.is_set()
    assert codes == [75, 75]
