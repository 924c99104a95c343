"""Starting with the same id again gives the same run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamflow as sf
from tests.guide.conftest import Serve
from tests.support.waiting import child_of

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def invoice(number: int) -> int:
    return number


@app.workflow
async def other() -> None: ...


async def test_the_same_id_again_is_the_same_run_whatever_the_arguments(serve: Serve) -> None:
    async with serve(app) as client:
        first = await client.start(invoice, 17, id="invoice-17")
        again = await client.start(invoice, 18, id="invoice-17")
        assert (first.created, again.created) == (True, False)
        assert await again.result(10) == 17


async def test_the_same_id_after_the_end_is_still_the_same_run(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(invoice, 17, id="invoice-17")).result(10)
        again = await client.start(invoice, 17, id="invoice-17")
        assert not again.created
        assert await again.result(10) == 17
        assert (await again.describe()).version == 1


async def test_of_many_starts_at_once_exactly_one_creates_the_run(serve: Serve) -> None:
    async with serve(app) as client:
        runs = await asyncio.gather(*(client.start(invoice, n, id="invoice-17") for n in range(50)))
        assert sum(run.created for run in runs) == 1
        assert len({await run.result(10) for run in runs}) == 1


async def test_an_id_of_another_workflows_run_is_refused(serve: Serve) -> None:
    async with serve(app) as client:
        await client.start(invoice, 17, id="number-1")
        with pytest.raises(sf.RunConflict, match="belongs to a run of workflow invoice, not other") as refused:
            await client.start(other, id="number-1")
        assert refused.value.run_id == "number-1"


async def test_without_an_id_each_start_is_a_run_of_its_own(serve: Serve) -> None:
    async with serve(app) as client:
        runs = [await client.start(invoice, n) for n in range(3)]
        assert [await run.result(10) for run in runs] == [0, 1, 2]
        assert len({run.id for run in runs}) == 3


@app.workflow
async def totals(number: int) -> int:
    return await invoice(number)


@app.workflow
async def audit(number: int) -> int:
    await sf.signal("go")
    return number


@app.workflow
async def ledger(number: int, is_awaited: bool) -> int:
    child = await sf.start(audit, number, on_parent_end="abandon")
    return await child.result() if is_awaited else 0


@app.workflow
async def charged(cents: int) -> list[object]:
    return [await charge(cents), cents]


@app.step
async def charge(cents: int) -> str:
    return sf.step_info().key


@app.workflow
async def names_its_child(number: int) -> object:
    try:
        child = await sf.start(audit, number, id="the-audit", on_parent_end="abandon")
        return await child.result() if number == 2 else None
    except sf.ChildFailed as error:
        return error.failure.kind


async def started_again(client: sf.Client, workflow: Any, *args: Any) -> sf.Run[Any]:
    assert await client.forget("nightly")
    run = await client.start(workflow, *args, id="nightly")
    assert run.created
    return run


async def test_a_run_that_is_started_again_has_children_of_its_own(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(totals, 1, id="nightly")
        assert await run.result(10) == 1
        assert await (await started_again(client, totals, 2)).result(10) == 2
        assert len(await client.runs(workflow="invoice", status="completed")) == 2


async def test_children_that_outlive_a_forgotten_run_report_to_no_later_one(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(ledger, 111, False, id="nightly")).result(10)
        old = await child_of(client, "nightly", 1)
        run = await started_again(client, ledger, 222, True)
        new = await child_of(client, "nightly", 1)
        await client.run(old).signal("go")
        assert await client.run(old).result(10) == 111
        await client.run(new).signal("go")
        assert await run.result(10) == 222


async def test_the_key_of_a_step_is_new_when_its_run_is_started_again(serve: Serve) -> None:
    async with serve(app) as client:
        first = await (await client.start(charged, 100, id="nightly")).result(10)
        second = await (await started_again(client, charged, 250)).result(10)
        assert (first[1], second[1]) == (100, 250)
        assert first[0] != second[0]


async def test_a_child_that_an_earlier_run_has_named_is_another_runs(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(names_its_child, 1, id="nightly")).result(10)
        run = await started_again(client, names_its_child, 2)
        assert await run.result(10) == "RunConflict"
        await client.run("the-audit").signal("go")
        assert await client.run("the-audit").result(10) == 1


async def test_a_forgotten_id_is_free_again(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(invoice, 17, id="invoice-17")
        await run.result(10)
        assert await client.forget("invoice-17")
        with pytest.raises(sf.RunNotFound):
            await run.result(10)
        assert await (await client.start(invoice, 18, id="invoice-17")).result(10) == 18
        with pytest.raises(sf.RunNotFound, match="another run has its id"):
            await run.result(10)
