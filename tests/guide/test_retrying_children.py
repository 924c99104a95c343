"""A run that failed because of a child, or had others open, goes on, and its children with it."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.events import RunRetried

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def act(what: str) -> str:
    return what.upper()


@app.step
async def undo(what: str) -> None:
    pass


@app.workflow
async def kid(what: str) -> str:
    return await act(what)


@app.workflow
async def waits(what: str) -> str:
    return f"{await act(what)} {await sf.signal('go', str)}"


@app.workflow
async def careful(what: str) -> str:
    async with sf.saga() as saga:
        saga.compensate(undo, what)
        return await act(what)


@app.workflow
async def alone(what: str) -> str:
    return await kid.options(id="kid")(what)


@app.workflow
async def grand(what: str) -> str:
    return await alone.options(id="alone")(what)


@app.workflow
async def both() -> list[str]:
    return list(await sf.gather(waits.options(id="waits")("a"), kid.options(id="kid")("b")))


@app.workflow
async def step_fails() -> list[str]:
    return list(await sf.gather(waits.options(id="waits")("a"), act("b")))


@app.workflow
async def leaves() -> list[str]:
    left = await sf.start(waits, "a", id="waits", on_parent_end="abandon")
    return [await act("b"), await left.result()]


@app.workflow
async def safe(what: str) -> str:
    return await careful.options(id="careful")(what)


def only_a(what: str) -> str:
    if what != "a":
        raise ConnectionError("down")
    return what


async def failed(run: sf.Run[Any]) -> None:
    with pytest.raises(sf.RunFailed):
        await run.result()


async def names(sandbox: sft.Sandbox, run_id: str) -> list[str]:
    return [type(event).__name__ async for _, event in sandbox.run(run_id).events()]


async def test_the_child_that_failed_goes_on_and_its_parent_gets_the_outcome() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, raises=ConnectionError("down"), times=1)
        run = await sandbox.start(grand, "a", id="grand")
        await failed(run)
        retried = await run.retry(by="kim", reason="the bank is back")
        assert retried.children == ["alone"]
        assert await run.result() == "A"
        for run_id in ("grand", "alone", "kid"):
            [event] = [event async for _, event in sandbox.run(run_id).events() if isinstance(event, RunRetried)]
            assert (event.by, event.reason) == ("kim", "the bank is back")
        assert await sandbox.run("kid").result() == "A"


@pytest.mark.parametrize("workflow", [both, step_fails])
async def test_children_that_were_cancelled_go_on_from_before_that(workflow: Any) -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, only_a)
        run = await sandbox.start(workflow)
        await failed(run)
        sandbox.stub(act, lambda what: f"{what}!")
        await run.retry()
        await sandbox.run("waits").signal("go", "on")
        result = await run.result()
        assert result[1] == "b!"
        assert result[0].endswith(" on")
        found = await names(sandbox, "waits")
        assert found.count("RunCancelled") == found.count("RunRetried") == 1
        assert found[-1] == "RunCompleted"


async def test_a_child_that_completed_meanwhile_gives_its_outcome_again() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, only_a)
        run = await sandbox.start(leaves)
        await failed(run)
        await sandbox.run("waits").signal("go", "on")
        assert await sandbox.run("waits").result() == "a on"
        sandbox.stub(act, lambda what: f"{what}!")
        await run.retry()
        assert await run.result() == ["b!", "a on"]
        assert "RunRetried" not in await names(sandbox, "waits")


async def test_a_child_that_still_runs_needs_nothing() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, only_a)
        run = await sandbox.start(leaves)
        await failed(run)
        sandbox.stub(act, lambda what: f"{what}!")
        await run.retry()
        await sandbox.run("waits").signal("go", "on")
        assert await run.result() == ["b!", "a on"]
        assert "RunRetried" not in await names(sandbox, "waits")


async def test_a_child_that_has_undone_things_says_so_and_one_may_insist() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, raises=ConnectionError("down"), times=1)
        run = await sandbox.start(safe, "a")
        await failed(run)
        await run.retry()
        with pytest.raises(sf.RunFailed, match=r"NotRetried: StepsUndone: .*undo"):
            await run.result()
        assert "RunRetried" not in await names(sandbox, "careful")
        await run.retry(anyway=True)
        assert await run.result() == "A"


@pytest.mark.parametrize("again", [False, True])
async def test_a_child_that_was_forgotten_is_not_found(again: bool) -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, raises=ConnectionError("down"), times=1)
        run = await sandbox.start(alone, "a")
        await failed(run)
        sandbox.world.forget("kid")
        if again:
            await sandbox.start(kid, "other", id="kid")
        await run.retry()
        with pytest.raises(sf.RunFailed, match="RunNotFound") as found:
            await run.result()
        assert found.value.failure.fields["run_id"] == "kid"


async def test_a_child_in_the_archive_is_restored_before_its_parent_is_retried() -> None:
    async with sft.Sandbox(app, archive=True) as sandbox:
        sandbox.stub(act, raises=ConnectionError("down"), times=1)
        run = await sandbox.start(alone, "a")
        await failed(run)
        await sandbox.purge("kid")
        await run.retry()
        with pytest.raises(sf.RunFailed, match="streamflow restore kid"):
            await run.result()
        await sandbox.restore("kid")
        await run.retry()
        await run.result()


async def test_a_child_that_somebody_cancelled_stays_cancelled() -> None:
    @app.workflow
    async def one() -> str:
        return await waits.options(id="waits")("a")

    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(one)
        await sandbox.run("waits").cancel("not wanted")
        await failed(run)
        await run.retry()
        with pytest.raises(sf.RunFailed, match="was cancelled"):
            await run.result()
        assert "RunRetried" not in await names(sandbox, "waits")


async def test_children_go_on_as_often_as_their_parent_does() -> None:
    async with sft.Sandbox(app) as sandbox:
        sandbox.stub(act, raises=ConnectionError("down"), times=3)
        run = await sandbox.start(grand, "a", id="grand")
        for _ in range(3):
            await failed(run)
            await run.retry()
        assert await run.result() == "A"
        for run_id in ("grand", "alone", "kid"):
            assert (await names(sandbox, run_id)).count("RunRetried") == 3


async def _all_of_it(sandbox: sft.Sandbox) -> Any:
    sandbox.stub(act, only_a)
    run = await sandbox.start(both)
    await failed(run)
    sandbox.stub(act, lambda what: f"{what}!")
    await run.retry()
    await sandbox.run("waits").signal("go", "on")
    result = await run.result()
    assert (await names(sandbox, "kid")).count("ChildFailed") == 0
    assert (await names(sandbox, run.id)).count("ChildFailed") == 1
    return result


async def test_it_survives_a_crash_at_every_event() -> None:
    survived = await sft.survives_crashes(app, _all_of_it)
    assert survived.points > 10
