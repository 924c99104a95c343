"""A run can be started now and begin later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def send(text: str) -> str:
    return f"sent {text}"


@app.workflow
async def remind(text: str) -> str:
    return await send(text)


@app.workflow
async def approve() -> list[str]:
    return [await sf.signal("answer", str), await sf.signal("answer", str)]


async def test_the_run_exists_at_once_and_begins_when_it_is_due() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(remind, "Kim", delay=timedelta(days=3))
        due = sandbox.now + timedelta(days=3)
        found = await run.describe()
        assert (found.status, found.begins) == ("pending", due)
        [wait] = found.waits_for
        assert (wait.kind, wait.until) == ("start", due)
        await sandbox.sleep(timedelta(days=3) - timedelta(seconds=1))
        assert sandbox.calls(send) == []
        assert await run.result() == "sent Kim"
        assert sandbox.now == due


async def test_a_run_can_begin_at_a_time_of_day_and_at_once_if_that_is_past(serve: Serve) -> None:
    async with serve(app) as client:
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        late = await client.start(remind, "Kim", at=soon)
        past = await client.start(remind, "Ann", at=datetime(2020, 1, 1, tzinfo=UTC))
        assert [await past.result(10), await late.result(10)] == ["sent Ann", "sent Kim"]
        began = (await late.history())[-1].at / 1000
        assert began >= soon.timestamp() - 0.001


async def test_signals_that_come_before_it_begins_are_kept() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(approve, delay=60)
        await run.signal("answer", "yes")
        sandbox.crash()
        await run.signal("answer", "no")
        await sandbox.sleep(59)
        assert (await run.describe()).status == "pending"
        assert await run.result() == ["yes", "no"]


async def test_a_run_that_has_not_begun_can_be_cancelled_and_forgotten(serve: Serve) -> None:
    async with serve(app) as client:
        cancelled = await client.start(remind, "Kim", delay=3600)
        await cancelled.cancel("not needed")
        with pytest.raises(sf.RunCancelled, match="not needed"):
            await cancelled.result(10)
        terminated = await client.start(remind, "Kim", delay=3600)
        await terminated.terminate("nor this")
        with pytest.raises(sf.RunCancelled, match="nor this"):
            await terminated.result(10)
        await client.forget(terminated.id)
        with pytest.raises(sf.RunNotFound):
            await terminated.describe()


async def test_runs_that_wait_for_their_start_are_listed_as_pending(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(remind, "Kim", id="late", delay=3600)
        await (await client.start(remind, "Ann", id="now")).result(10)
        found = await client.runs(status="pending", waits=True)
        assert [one.id for one in found] == [run.id]
        assert [wait.kind for wait in found[0].waits_for] == ["start"]
        assert found[0].waits_for[0].until == found[0].begins
        await run.cancel()


async def test_a_workflows_own_parameter_keeps_its_name() -> None:
    @app.workflow
    async def wait(delay: float) -> float:
        return delay

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(wait, delay=5.0)
        assert (await run.describe()).begins is None
        assert await run.result() == 5.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"delay": -1}, "delay must be 0 or more seconds"),
        ({"delay": timedelta(days=40_000)}, "at most 100 years"),
        ({"delay": 1, "at": datetime(2030, 1, 1, tzinfo=UTC)}, "delay or at, not both"),
        ({"at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"at": "2030-01-01"}, "at must be a datetime with a zone, got '2030-01-01'"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
    ],
)
async def test_what_can_not_be_asked_for_is_refused(options: dict[str, object], text: str) -> None:
    async with sft.Sandbox(app) as sandbox:
        with pytest.raises(sf.UsageError, match=text):
            await sandbox.start(remind, "Kim", **options)  # pyright: ignore[reportArgumentType, reportCallIssue]


async def test_reducers_begin_at_once() -> None:
    @app.reducer
    def count(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state)

    async with sft.Sandbox(app) as sandbox:
        with pytest.raises(sf.UsageError, match="reducer count can't be started with delay"):
            await sandbox.start(count, 1, delay=5)  # pyright: ignore[reportCallIssue, reportArgumentType]
        run = await sandbox.start("count", 1, delay=5)  # by its name it isn't known what it is
        with pytest.raises(sf.RunFailed, match="count is a reducer"):
            await run.result()
