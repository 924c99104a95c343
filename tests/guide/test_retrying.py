"""A run that has failed goes on from where it failed: `run.retry()`."""

from __future__ import annotations

import anyio
import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.events import RunRetried

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(retry=sf.Retry(attempts=2))
async def charge(order: str) -> str:
    return f"receipt of {order}"


@app.step
async def pack(order: str) -> str:
    return f"parcel of {order}"


@app.step
async def cancel(what: str) -> None:
    pass


@app.workflow
async def sell(order: str) -> list[str]:
    parcel = await pack(order)
    receipt = await charge(order)
    comment = await sf.signal("comment", str)
    return [parcel, receipt, comment]


@app.workflow
async def trip() -> str:
    async with sf.saga() as saga:
        saga.compensate(cancel, "flight")
        await pack("flight")
        return await charge("flight")


@app.workflow
async def shop() -> str:
    try:
        return str(await sell.options(id="kid")("x"))
    except sf.ChildFailed:
        return "without it"


async def sells(sandbox: sft.Sandbox) -> list[str]:
    sandbox.stub(charge, raises=ConnectionError("the bank is down"), times=2)
    run = await sandbox.start(sell, "o-1", id="sell")
    with pytest.raises(sf.RunFailed, match="the bank is down"):
        await run.result()
    retried = await run.retry(by="kim", reason="the bank is back")
    assert retried.kept == 1
    assert [(step.name, step.attempt) for step in retried.steps] == [("charge", 3)]
    await run.signal("comment", "late")
    return await run.result()


async def test_the_failed_step_is_tried_again_and_results_are_kept() -> None:
    async with sft.Sandbox(app) as sandbox:
        assert await sells(sandbox) == ["parcel of o-1", "receipt of o-1", "late"]
        assert len(sandbox.calls(pack)) == 1
        [event] = [event async for _, event in sandbox.run("sell").events() if isinstance(event, RunRetried)]
        assert (event.by, event.reason) == ("kim", "the bank is back")


async def test_a_retried_run_survives_a_crash_at_every_event() -> None:
    survived = await sft.survives_crashes(app, sells)
    assert survived.result == ["parcel of o-1", "receipt of o-1", "late"]
    assert survived.points > 5


async def test_mended_code_goes_on_behind_the_last_result() -> None:
    buggy, mended = sf.App(parks=()), sf.App()  # else it would be stuck, and go on by itself
    for each in (buggy, mended):
        each.steps.update(app.steps)

    @buggy.workflow(name="flow")
    async def with_a_bug() -> int:
        return len(await pack("a")) // 0

    @mended.workflow(name="flow")
    async def without_it() -> int:
        return len(await pack("a")) // 2

    async with sft.Sandbox(buggy) as sandbox:
        run = await sandbox.start(with_a_bug)
        with pytest.raises(sf.RunFailed, match="ZeroDivisionError"):
            await run.result()
        sandbox.deploy(mended)
        await run.retry()
        assert await run.result() == 5
        assert len(sandbox.calls(pack)) == 1


async def test_what_was_undone_is_named_and_one_may_insist() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(charge, raises=ConnectionError("down"), times=2)
        run = await sandbox.start(trip)
        with pytest.raises(sf.RunFailed):
            await run.result()
        with pytest.raises(sf.NotRetried, match=r"step cancel \(number 3\)") as refused:
            await run.retry()
        assert refused.value.failure.kind == "StepsUndone"
        assert (await run.describe()).status == "failed"
        await run.retry(anyway=True)
        assert await run.result() == "receipt of flight"


async def test_only_a_failed_run_is_retried() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(sell, "o-1")
        with pytest.raises(sf.NotRetried, match="is running: only a run that has failed or is stuck"):
            await run.retry()
        await run.signal("comment", "")
        await run.result()
        with pytest.raises(sf.NotRetried, match="has completed"):
            await run.retry()
        with pytest.raises(sf.RunNotFound):
            await sandbox.run("nobody").retry()


async def test_a_reducer_can_not_go_back() -> None:
    reducers = sf.App()

    @reducers.reducer
    def counter(state: int, event: sf.Event) -> sf.Decision:
        return sf.Decision(state, [sf.Fail("no")])

    async with sft.Sandbox(reducers) as sandbox:
        run = await sandbox.start(counter, 0)
        with pytest.raises(sf.NotRetried, match="is a reducer"):
            await run.retry()


async def test_a_step_that_hangs_is_tried_again() -> None:
    async with sft.Sandbox(app, patience=0.1) as sandbox:

        async def hang(order: str) -> str:
            await anyio.sleep_forever()
            return order

        sandbox.stub(charge, hang, times=1)
        run = await sandbox.start(sell, "o-1")
        with pytest.raises(TimeoutError):
            await run.result(1)
        retried = await run.retry(step="charge", reason="it hangs")
        assert (retried.kept, retried.steps) == (1, [sf.RetriedStep("charge", 2, 2)])
        await run.signal("comment", "")
        assert (await run.result())[1] == "receipt of o-1"
        with pytest.raises(sf.NotRetried, match="has ended: none of its steps runs"):
            await run.retry(step="charge")


async def test_a_parent_that_went_on_gets_nothing() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(charge, raises=ConnectionError("down"), times=2)
        run = await sandbox.start(shop)
        assert await run.result() == "without it"
        kid = sandbox.run("kid")
        assert (await kid.retry()).parent == run.id
        await kid.signal("comment", "late")
        assert (await kid.result())[2] == "late"
