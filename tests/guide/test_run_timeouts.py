"""A run can have a time-out: what has not ended by then is cancelled, cleans up, and fails."""

from __future__ import annotations

from datetime import timedelta

import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()
done: list[str] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    done.clear()


@app.step
async def book(what: str) -> str:
    done.append(what)
    return what


@app.workflow(timeout=timedelta(minutes=10))
async def trip() -> str:
    try:
        await book("flight")
        return await sf.signal("paid", str)
    finally:
        await book("flight cancelled")


@app.workflow
async def parent() -> str:
    try:
        return await trip.options(id="child")()
    except sf.ChildFailed as error:
        return error.failure.kind


@app.workflow(timeout=60)
async def loop(rounds: int) -> None:
    await sf.sleep(25)
    raise sf.ContinueAs(rounds + 1)


async def test_a_run_whose_time_is_over_cleans_up_and_fails() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(trip)
        began = sandbox.now
        with pytest.raises(sf.RunTimedOut, match="not ended within its time-out of 10 m") as caught:
            await run.result()
        assert sandbox.now == began + timedelta(minutes=10)
        assert caught.value.failure.kind == "RunTimedOut"
        assert done == ["flight", "flight cancelled"]
        assert (await run.describe()).error.startswith("RunTimedOut: ")


async def test_a_start_can_have_its_own_time_out_from_when_it_begins(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(trip, timeout=0.2, delay=0.2)
        with pytest.raises(sf.RunTimedOut, match="time-out of 200 ms"):
            await run.result(10)
        assert done[-1] == "flight cancelled"


async def test_a_run_that_ends_in_time_is_as_any_other() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(trip)
        await run.signal("paid", "yes")
        assert await run.result() == "yes"
        assert not any(isinstance(event, sf.events.TimeoutReached) for event in sandbox.world.events(run.id))


async def test_a_parent_sees_why_its_child_failed() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(parent)
        assert await run.result() == "RunTimedOut"


async def test_continuing_as_new_gives_no_more_time() -> None:
    async with sft.Sandbox(app) as sandbox:
        began = sandbox.now
        run = await sandbox.start(loop, 0)
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        assert sandbox.now == began + timedelta(seconds=60)


async def test_a_cancel_that_came_first_counts() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(trip)
        sandbox.stub(book, returns="", takes=timedelta(hours=1))
        await sandbox.sleep(599)
        await run.cancel("not wanted")
        with pytest.raises(sf.RunCancelled, match="not wanted"):
            await run.result()


async def test_it_can_be_retried_from_where_its_time_was_over_with_all_of_it() -> None:
    @app.workflow(timeout=60)
    async def slow() -> str:
        first = await book("first")
        return first + await sf.signal("second", str)

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(slow)
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        await sandbox.sleep(1000)
        await run.retry()
        sandbox.crash()
        await sandbox.sleep(59)
        assert (await run.describe()).status == "running"
        await run.signal("second", "!")
        assert await run.result() == "first!"
        assert done == ["first"]


async def test_time_in_which_its_code_could_not_go_on_does_not_count() -> None:
    broken = sf.App()

    @broken.step(name="book")
    async def book_again(what: str) -> str:
        return what

    @broken.workflow(name="trip", timeout=600)
    async def other() -> None:
        await sf.sleep(1)

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(trip)
        await sandbox.sleep(300)
        sandbox.deploy(broken)
        await sandbox.sleep(10_000)
        assert (await run.describe()).status == "stuck"
        sandbox.deploy(app)
        resumed = sandbox.now
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        assert sandbox.now == resumed + timedelta(seconds=300)
        assert done == ["flight", "flight cancelled"]


async def test_nothing_depends_on_where_an_owner_dies() -> None:
    async def scenario(sandbox: sft.Sandbox) -> str:
        run = await sandbox.start(parent, delay=100, timeout=10_000)
        await sandbox.sleep(50)
        with pytest.raises(sf.RunNotFound):
            await sandbox.run("child").describe()
        looping = await sandbox.start(loop, 0, delay=10)
        with pytest.raises(sf.RunTimedOut):
            await looping.result()
        return await run.result()

    survived = await sft.survives_crashes(app, scenario)
    assert survived.result == "RunTimedOut"


@pytest.mark.parametrize("timeout", [0, -1, "soon"])
def test_a_time_out_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(sf.UsageError, match="workflow flow: timeout must be seconds > 0"):

        @sf.App().workflow(timeout=timeout)
        async def flow() -> None: ...
