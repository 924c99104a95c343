"""What a run leaves behind: no reference cycles, no early messages, no attempts that nobody wants. And programs that
are deep rather than wide.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

import streamflow as sf
from streamflow.events import CancelRequested, SignalReceived
from streamflow.machine.coroutines import close_abandoned
from streamflow.machine.transition import Due
from tests.support.machine_driver import Run, failure_in, kinds, raw, result_of

app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def act(what: int) -> int:
    return what


@app.step(retry=sf.NO_RETRY, queue="gpu")
async def compute(what: int) -> int:
    return what


async def helper(what: int) -> int:
    return await act(what)


@app.workflow
async def failing(how: str) -> str:
    try:
        match how:
            case "step":
                await act(1)
            case "gather":
                await sf.gather(helper(1), helper(2))
            case "race":
                await sf.race(helper(1), helper(2))
            case "map":
                await sf.map(helper, [1, 2], concurrency=2)
            case "group":
                async with sf.task_group() as group:
                    group.start_soon(helper, 1)
                    await helper(2)
            case "timeout":
                with sf.timeout(1):
                    await helper(1)
            case _:
                async with sf.saga() as saga:
                    saga.compensate(act, 2)
                    await helper(1)
    except (sf.StepFailed, sf.CompensationFailed, TimeoutError, ExceptionGroup):
        pass
    await sf.signal("end")
    return how


@app.workflow
async def everything() -> None:
    async def signal() -> None:
        await sf.signal("a", timeout=60)

    async with sf.task_group() as group, sf.saga() as saga:
        one = group.start_soon(helper, 1)
        saga.compensate(act, 5)
        with sf.timeout(50):
            await sf.gather(
                sf.race(one, signal(), act(3)), sf.map(helper, [1, 2, 3], concurrency=2), sf.signal("b"), sf.sleep(9)
            )


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    close_abandoned()  # what other tests left, and what that leaves
    gc.collect()
    gc.freeze()  # what is alive now: to look through all of a long session took most of the time of these tests
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def left_in_cycles() -> list[str]:
    """What of streamflow, or of the code of runs, only the garbage collector frees. Others leave cycles, too."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kept = [one for one in gc.garbage if not _is_of_a_test(one)]
        names = [str(getattr(one, "f_code", type(one))) for one in kept]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    return [name for name in names if "streamflow" in name or __file__ in name]


def _is_of_a_test(one: object) -> bool:
    """A frame of a test that failed: pytest keeps its traceback for a while."""
    code = getattr(one, "f_code", None)
    return code is not None and code.co_name.startswith("test_")


HOWS = ["step", "gather", "race", "map", "group", "timeout", "saga"]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("what", ["fail", "expire", "cancel"])
def test_an_error_that_is_caught_leaves_no_cycle_behind(how: str, what: str) -> None:
    run = Run(app, "failing", how)
    if what == "cancel":
        run.advance(CancelRequested("no"))
    elif what == "expire":
        run.advance(Due(), after=5000)
    while run.machine.steps:
        run.failed(min(run.machine.steps))
    run.advance(SignalReceived("end", raw(None)))
    assert run.machine.ended
    del run
    assert left_in_cycles() == []


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("how", ["close", "drop", "terminate"])
def test_a_run_that_is_evicted_with_everything_open_leaves_no_cycle_behind(how: str) -> None:
    run = Run(app, "everything")
    if how == "close":
        run.machine.close()
    elif how == "terminate":
        run.advance(CancelRequested("now", terminate=True))
    del run
    close_abandoned()
    assert left_in_cycles() == []


def test_names_of_signals_that_came_early_and_were_taken_are_forgotten() -> None:
    @app.workflow(name="names")
    async def names() -> None:
        for number in range(3):
            await sf.signal("next")
            await sf.signal(f"reply-{number}")

    run = Run(app, "names")
    for number in range(2):
        run.advance(SignalReceived(f"reply-{number}", raw(None)), SignalReceived("next", raw(None)))
    assert not run.machine._buffered  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", [act, compute], ids=["owner", "queue"])
def test_an_attempt_cancelled_in_its_own_transition_never_starts(step: Any) -> None:
    @app.workflow(name=f"early-{step.name}")
    async def early() -> None:
        await sf.signal("go")
        await sf.race(step(1), sf.signal("early"))
        await sf.signal("end")

    run = Run(app, f"early-{step.name}")
    effects = run.advance(SignalReceived("early", raw("bird")), SignalReceived("go", raw(None)))
    assert kinds(effects)[-2:] == ["StepScheduled", "StepCancelled"]
    assert not effects.jobs


@app.workflow
async def chain(length: int, how: str = "") -> int:
    async def link(rest: int) -> int:
        try:
            return (await sf.gather(link(rest - 1)))[0] + 1 if rest else await act(0)
        finally:
            if not rest:
                await act(1)

    return await link(length)


@pytest.mark.parametrize("crash", [False, True], ids=["live", "replayed"])
def test_a_chain_of_a_thousand_helpers_is_cancelled_and_cleans_up(crash: bool) -> None:
    run = Run(app, "chain", 1000, crash=crash)
    run.advance(CancelRequested("no"))
    assert kinds(run.last) == ["CancelRequested", "StepCancelled", "StepScheduled"]
    run.done(2, 1)
    assert kinds(run.last) == ["StepCompleted", "RunCancelled"]


def test_a_chain_of_a_thousand_helpers_gives_its_result() -> None:
    run = Run(app, "chain", 1000)
    run.done(1, 7)
    run.done(2, 7)
    assert result_of(run.last) == 1007


def test_a_helper_that_awaits_itself_is_an_error() -> None:
    @app.workflow(name="itself", parks=())
    async def itself() -> None:
        box: list[Any] = []

        async def member() -> None:
            await act(1)
            await box[0]

        async with sf.task_group() as group:
            box.append(group.start_soon(member))

    run = Run(app, "itself")
    run.done(1, 1)
    assert kinds(run.last)[-1] == "RunFailed"
    assert "awaits its own result" in failure_in(run.last).message
