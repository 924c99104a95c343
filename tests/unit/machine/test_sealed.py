"""Code of a run is sealed off: from the event loop and task that drive it, and from other runs' context variables."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from streamflow.machine.sealed import SEALED, sealed
from streamflow.workflow import api as sf
from streamflow.workflow.app import App
from tests.support.machine_driver import Run, failure_in, make_app, result_of

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="-")


async def helper() -> int:
    return 1


async def sleeps() -> None:
    await asyncio.sleep(1)


async def sleeps_as_anyio() -> None:
    await anyio.sleep(1)


async def gives_way() -> None:
    await asyncio.sleep(0)


async def limits() -> None:
    async with asyncio.timeout(5):
        await sf.sleep(1)


async def limits_in_the_past() -> None:
    async with asyncio.timeout(0):
        await sf.sleep(1)


async def moves_on() -> None:
    with anyio.move_on_after(5):
        await sf.sleep(1)


async def fails_after() -> None:
    with anyio.fail_after(5):
        await sf.sleep(1)


async def groups() -> None:
    async with asyncio.TaskGroup():
        pass


async def groups_as_anyio() -> None:
    async with anyio.create_task_group():
        pass


async def creates_a_task() -> None:
    asyncio.create_task(helper())  # noqa: RUF006
    await sf.sleep(1)


async def waits_for() -> None:
    await asyncio.wait_for(sf.sleep(1), 5)


async def uses_a_thread() -> None:
    await asyncio.to_thread(str, 1)


async def calls_later() -> None:
    asyncio.get_running_loop().call_later(1, print)


async def waits_at_a_queue() -> None:
    await asyncio.Queue[int]().get()


FOREIGN: dict[Callable[[], Any], str] = {
    sleeps: "use sf.sleep(…) instead.",
    sleeps_as_anyio: "use sf.sleep(…) instead.",
    gives_way: "use sf.sleep(…) instead.",
    limits: "use `with sf.timeout(…):` instead.",
    limits_in_the_past: "use `with sf.timeout(…):` instead.",
    moves_on: "use `with sf.timeout(…):` instead.",
    fails_after: "use `with sf.timeout(…):` instead.",
    groups: "use `async with sf.task_group() as group:` instead.",
    groups_as_anyio: "use `async with sf.task_group() as group:` instead.",
    creates_a_task: "use `async with sf.task_group() as group:` instead.",
    waits_for: "use `with sf.timeout(…):` instead.",
    uses_a_thread: "use a step: a plain function that is decorated with @app.step runs in a thread instead.",
    calls_later: "use sf.sleep(…) instead.",
    waits_at_a_queue: "move it into a step.",
}


async def run_in_a_loop(app: App, workflow: str = "flow") -> Run:
    """As a daemon does: the machine is driven from a task of a running loop."""
    return Run(app, workflow)


@pytest.mark.parametrize("code", FOREIGN, ids=lambda code: code.__name__)
def test_what_needs_an_event_loop_fails_at_once_and_names_the_line(code: Callable[[], Any]) -> None:
    app = make_app()
    app.workflow(name="flow")(code)

    async def drive() -> tuple[Run, int, object]:
        before = len(asyncio.all_tasks())
        run = await run_in_a_loop(app)
        await asyncio.sleep(0)  # a time-out or scope that hung on this task would cancel it here
        return run, len(asyncio.all_tasks()) - before, asyncio.get_running_loop()

    run, left, loop = asyncio.run(drive())
    failure = failure_in(run.last)
    assert failure.kind == "ForeignAwait"
    first = code.__code__.co_firstlineno
    assert any(f"{__file__}:{line}. " in failure.message for line in (first + 1, first + 2)), failure.message
    assert failure.message.endswith(FOREIGN[code])
    assert "GeneratorContextManager" not in failure.message, "what the user wrote is named, not what that uses"
    assert left == 0
    assert loop is not SEALED


def test_a_lock_that_nobody_holds_is_allowed() -> None:
    app = make_app()
    lock = asyncio.Lock()

    @app.workflow
    async def flow() -> str:
        async with lock:
            return "held"

    assert result_of(asyncio.run(run_in_a_loop(app)).last) == "held"


def test_an_error_of_ones_own_is_not_taken_for_a_foreign_call() -> None:
    app = make_app()

    @app.workflow
    async def flow() -> None:
        raise RuntimeError("no running event loop, says the customer")

    assert failure_in(Run(app, "flow").last).kind == "RuntimeError"


# --- context variables ------------------------------------------------------------------------------------------------


def test_each_run_has_context_variables_of_its_own() -> None:
    app = make_app()

    @app.workflow
    async def sets(name: str) -> list[str]:
        before = tenant.get()
        token = tenant.set(name)
        with decimal.localcontext() as context:
            context.prec = 3
            await app.steps["act"](1)
            kept = tenant.get()
            tenant.reset(token)  # in another transition than the one that set it
            return [before, kept, tenant.get(), str(decimal.Decimal(1) / decimal.Decimal(7))]

    @app.workflow
    async def reads() -> list[str]:
        before = tenant.get()
        await app.steps["act"](1)
        return [before, tenant.get(), str(decimal.Decimal(1) / decimal.Decimal(7))]

    tenant.set("the daemon's")
    try:
        one, two = Run(app, "sets", "acme"), Run(app, "reads")
        three = Run(app, "sets", "globex")
        sevenths = "0.1428571428571428571428571429"
        assert result_of(two.done(1, 1)) == ["-", "-", sevenths]
        assert result_of(three.done(1, 1)) == ["-", "globex", "-", "0.143"]
        assert result_of(one.done(1, 1)) == ["-", "acme", "-", "0.143"]
        assert tenant.get() == "the daemon's"
    finally:
        tenant.set("-")


def test_the_loop_comes_back_whatever_is_raised() -> None:
    async def drive() -> object:
        def explode() -> None:
            assert asyncio.get_running_loop() is SEALED
            raise SystemExit

        with pytest.raises(SystemExit):
            sealed(contextvars.Context(), explode)
        return asyncio.get_running_loop(), asyncio.current_task()

    loop, task = asyncio.run(drive())  # type: ignore[misc]
    assert loop is not SEALED
    assert task is not None


# --- async generators -------------------------------------------------------------------------------------------------


async def pages(app: App) -> AsyncIterator[int]:
    try:
        for number in range(10):
            yield await app.steps["act"](number)
    finally:
        await app.steps["act"]("released")


def test_a_generator_that_is_left_early_cleans_up_in_its_run() -> None:
    """The run ends after that: the step of the `finally` block is recorded."""
    app = make_app()

    @app.workflow
    async def flow() -> int:
        async for page in pages(app):
            if page == 1:
                return page
        return -1

    run = Run(app, "flow")
    run.done(1, 0)
    run.done(2, 1)
    assert [job.args for job in run.last.jobs] != [], "the step of the finally block"
    assert not run.last.ended
    assert result_of(run.done(3, "released")) == 1
