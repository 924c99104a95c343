"""When the code of a run begins, and when its time is over: in every state that the run may be in."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow import events
from streamflow.events import StartDue, TimeoutSet
from streamflow.machine.factory import new_machine, rehydrate
from streamflow.machine.retry_point import retry_point
from streamflow.machine.transition import Due, Oversize, RetryRequest
from streamflow.model.record import Header, Status
from streamflow.model.sharding import Partition
from streamflow.model.start_word import StartWord

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
        assert kinds(sandbox, run) == ["RunStarted", "StartDelayed", "RunStuck"]
        sandbox.deploy(app_with(3, "first"))
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


@pytest.mark.parametrize("crash", [False, True])
async def test_time_for_which_it_is_paused_twice_counts_once(crash: bool) -> None:
    async with sft.Sandbox(app_with(0, "first", timeout=60)) as sandbox:
        run = await sandbox.start("flow", "x")
        began = sandbox.now

        async def stop_or_go(change: Any, seconds: float) -> None:
            await change
            if crash:
                sandbox.crash()
            await sandbox.sleep(seconds)

        await sandbox.sleep(10)
        await stop_or_go(run.pause(), 10)
        await stop_or_go(sandbox.pause_workflow("flow"), 10)
        await stop_or_go(run.resume(), 10)
        assert (await run.describe()).status == "paused"
        await sandbox.resume_workflow("flow")
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        assert sandbox.now == began + timedelta(seconds=60 + 30)


async def test_a_clean_up_after_its_time_is_held_up_with_its_workflow() -> None:
    """Whoever owns the run: that its time is over is no cancel, which nobody may hold up."""
    app = sf.App()

    @app.step
    async def undo(number: int) -> None: ...

    @app.workflow(timeout=60)
    async def flow() -> None:
        try:
            await sf.sleep(1000)
        finally:
            await undo(1)
            await undo(2)

    async def scenario(sandbox: sft.Sandbox) -> list[str]:
        sandbox.stub(undo, takes=10)
        run = await sandbox.start(flow)
        await sandbox.sleep(65)
        machine = sandbox.world.machine(run.id)
        assert machine is not None
        assert not machine.is_cancelling  # as was_cancelled(), which its next owner asks
        await sandbox.pause_workflow("flow")
        await sandbox.sleep(100)
        assert (await run.describe()).status == "paused"
        await sandbox.resume_workflow("flow")
        with pytest.raises(sf.RunTimedOut):
            await run.result()
        return kinds(sandbox, run)

    survived = await sft.survives_crashes(app, scenario)
    assert survived.result[-6:] == [
        "RunPaused", "StepCompleted", "PauseEnded", "StepScheduled", "StepCompleted", "RunFailed",
    ]  # fmt: skip


async def test_a_retry_before_its_start_is_due_waits_for_that() -> None:
    app = app_with(0, "first", timeout=60)
    machine = new_machine(app, Partition.RUN, "r", "flow", word=str(StartWord(100_000)))
    begun = machine.advance([events.RunStarted("flow", "", msgspec.Raw(b"\x91\xa1x"), created=1000)], 1000)
    failed = machine.advance([Oversize("it is too large")], 2000)
    history = [events.Transition(1000, begun.events), events.Transition(2000, failed.events)]
    header = Header(Status.FAILED, 2, "-", 1000, 2000, "flow", "", "", start=str(StartWord(100_000)))
    machine = rehydrate(app, Partition.RUN, "r", header, b"", history, retry=retry_point("r", history))
    effects = machine.advance([RetryRequest("a" * 32, 1000, 2)], 3000)
    assert [type(event).__name__ for event in effects.events] == ["RunRetried"]
    assert (effects.status, machine.next_due) == (Status.PENDING, 100_000)
    history.append(events.Transition(3000, effects.events))
    again = rehydrate(app, Partition.RUN, "r", header_with(header, Status.PENDING), b"", history)
    assert (again.reason, again.status, again.next_due) == ("", Status.PENDING, 100_000)
    assert again.advance([Due()], 100_000).status is Status.RUNNING
    assert again.over_at == 160_000


def header_with(header: Header, status: Status) -> Header:
    return msgspec.structs.replace(header, status=status, version=header.version + 1, ended=0)


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


def walking(*, bug: bool = False, gone: bool = False) -> sf.App:
    app = sf.App()

    @app.step(name="act")
    async def act(number: int) -> int:
        return number

    if gone:
        return app

    @app.workflow(name="kid", timeout=40)
    async def kid(seconds: int) -> int:
        await sf.sleep(seconds)
        return seconds

    @app.workflow(name="flow", timeout=120)
    async def flow(generation: int) -> int:
        total = 0
        try:
            for i in range(3):
                total += await act(i)
                with contextlib.suppress(TimeoutError):
                    total += await sf.signal("go", int, timeout=20)
                with contextlib.suppress(sf.ChildFailed):
                    total += await kid(30 if i % 2 else 60)
            if not generation:
                raise sf.ContinueAs(1)
            if bug:
                {}["b"]  # pyright: ignore[reportUnusedExpression]
            await sf.sleep(50)
        finally:
            await act(-1)
        return total

    return app


async def walk(sandbox: sft.Sandbox, seed: int) -> tuple[object, list[str], object]:
    """What may happen to a run, in an order that the seed decides: how it ends, its events, and when."""
    dice = random.Random(seed)
    timeout = dice.choice([None, 10, 100, 1000])
    run = await sandbox.start("flow", 0, delay=dice.choice([0, 5, 30]), timeout=timeout)
    for _ in range(12):
        action = dice.choice(["sleep", "sleep", "signal", "gone", "bug", "cancel", "retry"])
        with contextlib.suppress(sf.RunEnded, sf.NotRetried):
            if action == "sleep":
                await sandbox.sleep(dice.choice([1, 10, 45]))
            elif action == "signal":
                await run.signal("go", 1)
            elif action in ("gone", "bug"):
                sandbox.deploy(walking(bug=action == "bug", gone=action == "gone"))
                await sandbox.sleep(dice.choice([0, 25, 100]))
                sandbox.deploy(walking())
            elif action == "retry":
                await run.retry(anyway=True)
            elif dice.random() < 0.3:
                await run.cancel("enough")
    end: object
    try:
        end = await run.result()
    except (sf.RunFailed, sf.RunCancelled) as error:
        end = str(error)
    return end, [event.describe() for event in sandbox.world.events(run.id)], sandbox.now


@pytest.mark.parametrize("seed", range(20))
async def test_owners_that_die_all_the_time_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sft.Sandbox(walking()) as sandbox:
        calm = await walk(sandbox, seed)
    async with sft.Sandbox(walking()) as sandbox:
        settle = sandbox._settle

        async def crash_and_settle() -> None:
            sandbox.crash()
            await settle()
            sandbox.crash()

        monkeypatch.setattr(sandbox, "_settle", crash_and_settle)
        assert await walk(sandbox, seed) == calm
