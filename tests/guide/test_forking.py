"""Fork a run: a new one shares its history up to an event, and goes on from there."""

from __future__ import annotations

import pytest

import streamflow as sf
import streamflow.testing as sft

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def research(topic: str) -> str:
    return f"all about {topic}"


@app.step(retry=sf.NO_RETRY)
async def mail(text: str, to: str) -> str:
    if "@" not in to:
        raise ValueError(f"{to} is no address")
    return f"{text}, sent to {to}"


@app.workflow
async def report(topic: str, to: str) -> str:
    found = await research(topic)
    sf.publish("found", found)
    return await mail(found, to)


@app.workflow
async def approved(topic: str) -> str:
    who = await sf.signal("approve", str)
    return f"{await report.options(id='press')(topic, 'press@example.com')} by {who}"


async def test_one_bad_input_is_mended_in_a_fork_that_keeps_what_was_done() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(report, "cats", "kim.example.com", id="report-17")
        with pytest.raises(sf.RunFailed, match="no address"):
            await run.result()
        fork = await run.fork(4, input=("cats", "kim@example.com"), reason="mistyped")
        assert await fork.result() == "all about cats, sent to kim@example.com"
        assert len(sandbox.calls(research)) == 1
        assert (await run.describe()).status == "failed"
        assert (await fork.describe()).attributes["forked_from"] == run.id
        assert [found.id for found in await run.forks()] == [fork.id]
        assert await fork.read("found") == "all about cats"


async def test_a_completed_run_is_forked_with_other_code() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(report, "cats", "kim@example.com")
        await run.result()
        mended = sf.App()
        mended.steps.update(app.steps)

        @mended.workflow(name="report")
        async def polite(topic: str, to: str) -> str:
            return "Dear Kim: " + await mail(await research(topic), to)

        sandbox.deploy(mended)
        assert await (await run.fork(4)).result() == "Dear Kim: all about cats, sent to kim@example.com"
        assert await run.result() == "all about cats, sent to kim@example.com"
        with pytest.raises(sf.NotForked, match="has completed") as refused:
            await run.fork()
        assert refused.value.failure.kind == "SayWhere"


async def test_signals_before_the_event_count_and_a_fork_has_ids_of_its_own() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(approved, "cats")
        await run.signal("approve", "kim")
        assert await run.result() == "all about cats, sent to press@example.com by kim"
        fork = await run.fork(3)  # the child has an id that the code has chosen
        with pytest.raises(sf.RunFailed, match="RunConflict"):
            await fork.result()
        early = await run.fork(2)
        with pytest.raises(sft.Stalled, match="signal approve"):
            await early.result()


async def test_the_same_id_is_the_same_fork() -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await sandbox.start(report, "cats", "kim@example.com")
        await run.result()
        first = await run.fork(4, id="again")
        second = await run.fork(4, id="again")
        assert (first.created, second.created, second.id) == (True, False, "again")
        with pytest.raises(sf.RunConflict):
            await run.fork(2, id="again")


async def test_a_fork_survives_a_crash_at_every_transition() -> None:
    async def scenario(sandbox: sft.Sandbox) -> str:
        run = await sandbox.start(report, "cats", "kim.example.com")
        with pytest.raises(sf.RunFailed):
            await run.result()
        fork = await run.fork(4, input=("cats", "kim@example.com"))
        return await fork.result()

    await sft.survives_crashes(app, scenario)
