"""When the code of a run begins, and when its time is over: in every state that the run may be in."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.events import StartDue, TimeoutSet
from streamflow.machine.factory import rehydrate

pytestmark = pytest.mark.anyio


def app_with(version: int, text: str, **options: Any) -> sf.App:
    app = sf.App()

    @app.step(name="note")
    async def note(what: str) -> str:
        return what

    @app.workflow(name="flow", version=version, **options)
    async def flow(what: str) -> str:
        kept = await note(text)
        return f"{kept} {what} {await sf.signal('go', str)}"

    return app


def kinds(sandbox: sft.Sandbox, run: sf.Run[Any]) -> list[str]:
    return [type(event).__name__ for event in sandbox.world.events(run.id)]


async def test_the_version_of_the_code_is_that_of_when_it_begins() -> None:
    async with sft.Sandbox(app_with(1, "old")) as sandbox:
        run = await sandbox.start("flow", "x", delay=60)
        await sandbox.sleep(1)
        sandbox.deploy(app_with(2, "new"))  # version 1 has no runs, and is gone
        assert (await run.describe()).status == "pending"
        await run.signal("go", "now")
        assert await run.result() == "new x now"
        [begun] = [event for event in sandbox.world.events(run.id) if isinstance(event, StartDue)]
        assert begun.version == 2
        sandbox.crash()
        assert (await run.describe()).status == "completed"


async def test_a_run_of_an_unknown_workflow_begins_when_it_is_known_and_due() -> None:
    async with sft.Sandbox(sf.App()) as sandbox:
        run = await sandbox.start("flow", "x", delay=60)
        assert (await run.describe()).status == "stuck"
        await run.signal("go", "early")
        sandbox.deploy(app_with(0, "first"))
        assert (await run.describe()).status == "pending"
        assert kinds(sandbox, run) == ["RunStarted", "StartDelayed", "RunStuck", "SignalReceived", "RunResumed"]
        assert await run.result() == "first x early"


async def test_a_start_that_is_due_while_the_run_is_stuck_begins_when_it_resumes() -> None:
    async with sft.Sandbox(sf.App()) as sandbox:
        run = await sandbox.start("flow", "x", delay=60, timeout=100)
        await sandbox.sleep(3600)
        assert kinds(sandbox, run) == ["RunStarted", "StartDelayed", "RunStuck", "StartDue", "TimeoutSet"]
        sandbox.deploy(app_with(0, "first"))
        resumed = sandbox.now
        sandbox.crash()
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        assert sandbox.now == resumed + timedelta(seconds=100)
        assert kinds(sandbox, run).count("StepScheduled") == 1


async def test_a_stuck_run_does_not_time_out_and_can_be_cancelled() -> None:
    async with sft.Sandbox(app_with(0, "first", timeout=60)) as sandbox:
        run = await sandbox.start("flow", "x")
        await sandbox.sleep(1)
        sandbox.deploy(sf.App())
        await sandbox.sleep(10_000)
        assert (await run.describe()).status == "stuck"
        await run.cancel("enough")
        with pytest.raises(sf.RunCancelled, match="enough"):
            await run.result()


async def test_children_that_it_waits_for_at_its_end_are_cancelled() -> None:
    app = sf.App()

    @app.workflow
    async def child() -> None:
        await sf.sleep(1000)

    @app.workflow(timeout=60)
    async def parent() -> int:
        await sf.start(child.options(on_parent_end="wait", id="child"))
        await sf.sleep(1)
        return 1

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(parent)
        began = sandbox.now
        sandbox.crash()
        assert await run.result() == 1
        assert sandbox.now == began + timedelta(seconds=60)
        assert (await sandbox.run("child").describe()).status == "cancelled"


async def test_code_that_catches_the_cancel_can_still_complete() -> None:
    app = sf.App()

    @app.workflow(timeout=60)
    async def flow() -> str:
        try:
            await sf.sleep(1000)
        except sf.Cancelled as error:
            return f"partial: {error.reason}"
        return "all"

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(flow)
        assert await run.result() == "partial: it had not ended within its time-out of 1 m"


async def test_a_shielded_generation_is_timed_out_in_the_next_one() -> None:
    app = sf.App()

    @app.step
    async def slow() -> None: ...

    @app.workflow(timeout=60)
    async def flow(round: int) -> None:
        if round == 0:
            with sf.shield():
                await slow()
                raise sf.ContinueAs(1)
        await sf.sleep(1000)

    async def scenario(sandbox: sft.Sandbox) -> list[str]:
        sandbox.stub(slow, takes=100)
        run = await sandbox.start(flow, 0)
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        return kinds(sandbox, run)

    survived = await sft.survives_crashes(app, scenario)
    assert survived.result[-4:] == ["RunContinued", "TimerSet", "TimeoutReached", "RunFailed"]
    assert survived.result.count("TimeoutReached") == 2


async def test_a_bug_while_its_time_is_over_fails_the_run() -> None:
    app = sf.App()

    @app.workflow(timeout=60)
    async def flow() -> str:
        try:
            await sf.sleep(1000)
        finally:
            {}["b"]  # pyright: ignore[reportUnusedExpression]
        return ""

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(flow)
        with pytest.raises(sf.RunFailed, match="KeyError"):
            await run.result()


async def test_a_retry_from_the_very_start_has_all_of_the_time() -> None:
    app, broken = sf.App(), [True]

    @app.workflow
    async def flow() -> str:
        if broken:
            raise ValueError("not yet")
        return await sf.signal("go", str)

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(flow, delay=10, timeout=60)
        with pytest.raises(sf.RunFailed):
            await run.result()
        await sandbox.sleep(500)
        broken.clear()
        await run.retry()
        retried = sandbox.now
        sandbox.crash()
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        assert sandbox.now == retried + timedelta(seconds=60)


async def test_a_retry_of_a_clean_up_that_was_not_meant_is_refused() -> None:
    app = sf.App()

    @app.step
    async def undo() -> None: ...

    @app.workflow(timeout=60)
    async def flow() -> str:
        try:
            return await sf.signal("go", str)
        finally:
            await undo()

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(flow)
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        with pytest.raises(sf.NotRetried, match="undo"):
            await run.retry()
        await run.retry(anyway=True)
        await run.signal("go", "on")
        assert await run.result() == "on"


async def test_a_deploy_changes_no_time_out_of_a_run_that_has_begun() -> None:
    async with sft.Sandbox(app_with(0, "first", timeout=60)) as sandbox:
        run = await sandbox.start("flow", "x")
        began = sandbox.now
        await sandbox.sleep(1)
        sandbox.deploy(app_with(0, "first", timeout=6000))
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        assert sandbox.now == began + timedelta(seconds=60)


async def test_a_replay_knows_when_the_run_is_due() -> None:
    app = app_with(0, "first", timeout=60)
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start("flow", "x", delay=10)
        for expected in (10, 70):
            record = sandbox.world.records[run.id]
            history = sf.events.decode_history(record.transitions)
            machine = rehydrate(app, sandbox.world.partition, run.id, record.head, b"", history)
            assert machine.next_due == record.head.created + expected * 1000
            await sandbox.sleep(20)
        [limit] = [event for event in sandbox.world.events(run.id) if isinstance(event, TimeoutSet)]
        assert limit.ms == 60_000
