"""Steps: where they run, how often they are tried, how long they may take, and what their failures look like."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import streamflow as sf
from streamflow.events import StepCompleted, StepRetrying, StepScheduled
from tests.guide.conftest import Serve
from tests.support.waiting import DEADLINE, events_of, happened

pytestmark = pytest.mark.anyio

QUICK = sf.Retry(attempts=3, initial=0.01, jitter=0)


async def test_an_async_step_runs_in_the_daemons_event_loop(serve: Serve) -> None:
    app = sf.App()

    @app.step
    async def thread() -> int:
        return threading.get_ident()

    @app.workflow
    async def flow() -> int:
        return await thread()

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == threading.get_ident()


async def test_plain_functions_run_in_threads_at_the_same_time(serve: Serve) -> None:
    app = sf.App()
    meeting = threading.Barrier(3, timeout=DEADLINE)

    @app.step
    def meet() -> int:
        meeting.wait()
        return threading.get_ident()

    @app.workflow
    async def flow() -> list[int]:
        return list(await sf.gather(meet(), meet(), meet()))

    async with serve(app) as client:
        threads = await (await client.start(flow)).result(10)
        assert len({*threads, threading.get_ident()}) == 4


async def test_a_step_takes_keywords_and_defaults(serve: Serve) -> None:
    app = sf.App()

    @app.step
    async def spell(word: str, *, times: int = 2, end: str = ".") -> str:
        return word * times + end

    @app.workflow
    async def flow() -> list[str]:
        return [await spell("a"), await spell("b", times=3), await spell(end="!", word="c")]

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == ["aa.", "bbb.", "cc!"]


# --- retries --------------------------------------------------------------------------------------------------------


async def test_a_step_that_fails_is_tried_again(serve: Serve) -> None:
    app = sf.App()

    @app.step(retry=QUICK)
    async def flaky() -> int:
        attempt = sf.step_info().attempt
        if attempt < 3:
            raise ConnectionError(f"no line on attempt {attempt}")
        return attempt

    @app.workflow
    async def flow() -> int:
        return await flaky()

    async with serve(app) as client:
        run = await client.start(flow)
        assert await run.result(10) == 3
        retries = [event for event in await events_of(run) if isinstance(event, StepRetrying)]
        assert [str(retry.failure) for retry in retries] == [
            "ConnectionError: no line on attempt 1",
            "ConnectionError: no line on attempt 2",
        ]


async def test_each_retry_waits_longer_than_the_one_before(serve: Serve) -> None:
    app = sf.App()

    @app.step(retry=sf.Retry(attempts=4, initial=0.01, factor=3, maximum=0.05, jitter=0))
    async def never_well() -> None:
        raise OSError

    @app.workflow
    async def flow() -> None:
        await never_well()

    async with serve(app) as client:
        run = await client.start(flow)
        with pytest.raises(sf.RunFailed):
            await run.result(10)
        delays = [
            event.due - transition.at
            for transition in await run.history()
            for event in transition.events
            if isinstance(event, StepRetrying)
        ]
        assert delays == [10, 30, 50]


async def test_after_the_last_attempt_the_failure_is_raised_in_the_workflow(serve: Serve) -> None:
    app = sf.App()

    @app.step(retry=QUICK)
    def broken() -> None:
        raise ValueError("no such thing")

    @app.workflow
    async def flow() -> list[Any]:
        try:
            await broken()
        except sf.StepFailed as error:
            return [error.step, error.attempt, error.failure.kind, error.failure.message, error.failure.traceback]
        return []

    async with serve(app) as client:
        step, attempt, kind, message, traceback = await (await client.start(flow)).result(10)
        assert (step, attempt, kind, message) == ("broken", 3, "ValueError", "no such thing")
        assert 'raise ValueError("no such thing")' in traceback
        assert "executor.py" not in traceback


async def test_a_failure_that_the_workflow_does_not_catch_fails_the_run(serve: Serve) -> None:
    app = sf.App()

    @app.step(retry=sf.NO_RETRY)
    async def broken() -> None:
        raise ValueError("no such thing")

    @app.workflow
    async def flow() -> None:
        await broken()

    async with serve(app) as client:
        run = await client.start(flow)
        with pytest.raises(sf.RunFailed, match="step broken failed after 1 attempt: ValueError: no such thing"):
            await run.result(10)


@pytest.mark.parametrize("never", [LookupError, "KeyError"], ids=["by class", "by name"])
async def test_some_exceptions_are_never_tried_again(serve: Serve, never: Any) -> None:
    app = sf.App()

    @app.step(retry=sf.Retry(attempts=5, initial=60, never=(never,)))
    async def look() -> None:
        raise KeyError("gone")

    @app.workflow
    async def flow() -> int:
        try:
            await look()
        except sf.StepFailed as error:
            return error.attempt
        return 0

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == 1


def _exit() -> None:
    sys.exit("not here")


def _surrogate() -> None:
    raise ValueError("a lone surrogate: \udc80")


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("can't say it")


def _mute() -> None:
    raise _Mute


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
@pytest.mark.parametrize(("act", "kind"), [(_exit, "SystemExit"), (_surrogate, "ValueError"), (_mute, "_Mute")])
async def test_whatever_a_step_raises_is_a_failure_like_any_other(
    serve: Serve, act: Callable[[], None], kind: str, in_thread: bool
) -> None:
    app = sf.App()

    async def in_loop() -> None:
        act()

    step: Any = app.step(name="act", retry=sf.NO_RETRY)(act if in_thread else in_loop)

    @app.workflow
    async def flow() -> str:
        try:
            await step()
        except sf.StepFailed as error:
            return error.failure.kind
        return ""

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == kind


# --- timeouts -------------------------------------------------------------------------------------------------------


async def test_an_async_step_that_takes_too_long_is_cancelled(serve: Serve) -> None:
    app = sf.App()
    cleaned_up = anyio.Event()

    @app.step(timeout=0.05, retry=sf.NO_RETRY)
    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned_up.set()

    @app.workflow
    async def flow() -> str:
        try:
            await hang()
        except sf.StepFailed as error:
            return str(error.failure)
        return ""

    async with serve(app) as client:
        run = await client.start(flow)
        assert await run.result(10) == "TimeoutError: step hang took longer than 0.05 s"
        await cleaned_up.wait()


async def test_the_late_result_of_a_thread_is_dropped(serve: Serve) -> None:
    app = sf.App()
    release = threading.Event()

    @app.step(timeout=0.05, retry=sf.Retry(attempts=100, initial=0.01, factor=1.0))
    def slow_at_first() -> str:
        if sf.step_info().attempt == 1:
            release.wait(DEADLINE)
            return "the first"
        release.set()
        return "a later one"

    @app.workflow
    async def flow() -> str:
        return await slow_at_first()

    async with serve(app) as client:
        run = await client.start(flow)
        assert await run.result(10) == "a later one"
        [completed] = [event for event in await events_of(run) if isinstance(event, StepCompleted)]
        assert completed.attempt > 1, "the second, unless the machine is busy"


async def test_one_call_can_have_options_of_its_own(serve: Serve) -> None:
    app = sf.App()

    @app.step(timeout=60)
    async def hang() -> None:
        await anyio.sleep_forever()

    @app.workflow
    async def flow() -> int:
        try:
            await hang.options(timeout=0.02, retry=sf.Retry(attempts=2, initial=0))()
        except sf.StepFailed as error:
            return error.attempt
        return 0

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == 2


# --- arguments, results, and who I am -------------------------------------------------------------------------------


async def test_wrong_arguments_are_an_error_at_the_call_as_in_python(serve: Serve) -> None:
    app = sf.App()

    @app.step
    async def add(a: int, b: int) -> int:
        return a + b

    @app.workflow
    async def flow() -> str:
        try:
            await add(1)  # type: ignore[call-arg]
        except TypeError as error:
            return str(error)
        return ""

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == (
            "step add can't be called with these arguments: missing a required argument: 'b'"
        )


async def test_an_argument_of_the_wrong_type_fails_the_step_without_retries(serve: Serve) -> None:
    app = sf.App()

    @app.step
    async def double(n: int) -> int:
        return 2 * n

    @app.workflow
    async def flow() -> list[Any]:
        try:
            await double("two")  # type: ignore[arg-type]
        except sf.StepFailed as error:
            return [error.attempt, error.failure.kind, error.failure.message]
        return []

    async with serve(app) as client:
        attempt, kind, message = await (await client.start(flow)).result(10)
        assert (attempt, kind) == (1, "PayloadInvalid")
        expected = "the input of step double does not match its parameters (n): Expected `int`, got `str` - at `$[0]`"
        assert message == expected


async def test_a_result_that_cannot_be_recorded_fails_the_step_without_retries(serve: Serve) -> None:
    app = sf.App()

    @app.step
    def connect() -> Any:
        return threading.Lock()

    @app.workflow
    async def flow() -> list[Any]:
        try:
            await connect()
        except sf.StepFailed as error:
            return [error.attempt, error.failure.kind, error.failure.message]
        return []

    async with serve(app) as client:
        attempt, kind, message = await (await client.start(flow)).result(10)
        assert (attempt, kind) == (1, "PayloadInvalid")
        assert "the result of step connect can't be encoded" in message


async def test_a_result_of_another_type_than_declared_fails_its_step(serve: Serve) -> None:
    app = sf.App()

    @app.step
    def count() -> int:
        return "many"  # pyright: ignore[reportReturnType]

    @app.workflow
    async def flow() -> list[Any]:
        try:
            await count()
        except sf.StepFailed as error:
            return [error.attempt, error.failure.kind, error.failure.message]
        return []

    async with serve(app) as client:
        message = "the result of step count is not a int: Expected `int`, got `str`"
        assert await (await client.start(flow)).result(10) == [1, "PayloadInvalid", message]


async def test_a_result_of_another_type_than_declared_fails_its_run(serve: Serve) -> None:
    app = sf.App()

    @app.workflow
    async def flow() -> list[int]:
        return ["many"]  # pyright: ignore[reportReturnType]

    async with serve(app) as client:
        run = await client.start(flow)
        with pytest.raises(sf.RunFailed, match="PayloadInvalid: the result of flow is not a list") as caught:
            await run.result(10)
        assert "test_steps.py" in caught.value.failure.traceback
        assert (await run.describe()).status == sf.Status.FAILED


async def test_all_attempts_of_one_call_have_the_same_key(serve: Serve) -> None:
    """Another call has another one: an idempotency key for other services."""
    app = sf.App()
    seen: list[sf.StepInfo] = []

    @app.step(retry=QUICK)
    async def pay() -> str:
        info = sf.step_info()
        seen.append(info)
        if info.attempt == 1:
            raise ConnectionError
        return info.key

    @app.workflow
    async def flow() -> list[str]:
        return [await pay(), await pay()]

    async with serve(app) as client:
        run = await client.start(flow)
        first, second = await run.result(10)
        assert first != second
        assert [info.key for info in seen] == [first, first, second, second]
        assert {(info.run_id, info.step) for info in seen} == {(run.id, "pay")}


async def test_a_step_that_asks_about_its_attempt_can_be_called_in_a_plain_test() -> None:
    app = sf.App()

    @app.step
    def resize(blocks: int) -> tuple[sf.StepInfo, bool]:
        for block in range(sf.step_info().details or 0, blocks):
            sf.heartbeat(block + 1)
        return sf.step_info(), sf.cancelled()

    @app.step
    async def charge(cents: int) -> str:
        return f"{cents} with {sf.step_info().key}"

    info, cancelled = resize.function(3)
    assert (info.run_id, info.step, info.attempt, info.details, cancelled) == ("", "", 1, None, False)
    keys = [await charge.function(5) for _ in range(3)]
    assert len({info.key, *keys}) == 4  # outside systems must not take them for one call
    with pytest.raises(sf.PayloadInvalid):
        sf.heartbeat(object())


async def test_the_code_of_a_workflow_is_no_step(serve: Serve) -> None:
    app = sf.App()

    @app.workflow
    async def flow() -> list[str]:
        said: list[str] = []
        for call in (sf.step_info, sf.heartbeat, sf.cancelled):
            try:
                call()
            except sf.UsageError as error:
                said.append(str(error).partition(":")[0])
        return said

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == [
            f"sf.{name}() was called in the code of a workflow" for name in ("step_info", "heartbeat", "cancelled")
        ]


async def test_a_step_may_cancel_itself_without_harm(serve: Serve) -> None:
    app = sf.App()

    @app.step(retry=QUICK)
    async def give_up_once() -> int:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        return sf.step_info().attempt

    @app.workflow
    async def flow() -> int:
        return await give_up_once()

    async with serve(app) as client:
        assert await (await client.start(flow)).result(10) == 1


async def test_steps_beyond_the_concurrency_limit_wait(serve: Serve) -> None:
    app = sf.App()
    begun: list[int] = []
    two_run, go_on = anyio.Event(), anyio.Event()

    @app.step
    async def work(number: int) -> int:
        begun.append(number)
        if len(begun) == 2:
            two_run.set()
        await go_on.wait()
        return number

    @app.workflow
    async def flow() -> list[int]:
        return await sf.gather(*(work(number) for number in range(6)))

    async with serve(app, concurrency=2) as client:
        run = await client.start(flow)
        await happened(run, StepScheduled, 6)
        await two_run.wait()
        assert begun == [0, 1]
        go_on.set()
        assert await run.result(10) == list(range(6))
