"""What a start does when there is a run of its id."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def invoice(number: int) -> int:
    sf.publish("number", number)
    sf.set_attributes(number=number)
    if number < 0:
        raise ValueError("no such invoice")
    return number


@app.workflow
async def patient() -> str:
    return await sf.signal("go", str)


@app.workflow
async def other() -> None: ...


async def test_reject_wants_an_id_that_no_run_has(serve: Serve) -> None:
    async with serve(app) as client:
        first = await client.start(invoice, 1, id="a", on_existing="reject")
        assert first.created
        assert await first.result(10) == 1
        with pytest.raises(sf.RunExists, match="there is a run a already, which is completed") as caught:
            await client.start(invoice, 2, id="a", on_existing="reject")
        assert (caught.value.run_id, caught.value.status) == ("a", "completed")
        await client.start(patient, id="open")
        with pytest.raises(sf.RunExists, match="open already"):
            await client.start(patient, id="open", on_existing="reject")


async def test_of_many_starts_that_reject_exactly_one_creates_the_run(serve: Serve) -> None:
    async with serve(app) as client:
        starts = [client.start(invoice, i, id="a", on_existing="reject") for i in range(20)]
        found = await asyncio.gather(*starts, return_exceptions=True)
        assert sum(isinstance(one, sf.Run) for one in found) == 1
        assert sum(isinstance(one, sf.RunExists) for one in found) == 19


async def test_new_begins_another_run_in_place_of_an_ended_one(serve: Serve) -> None:
    async with serve(app) as client:
        first = await client.start(invoice, -1, id="a", tenant="acme")
        with pytest.raises(sf.RunFailed):
            await first.result(10)
        again = await client.start(invoice, 2, id="a", on_existing="new")
        assert again.created
        assert await again.result(10) == 2
        with pytest.raises(sf.RunNotFound):
            await first.result(10)  # a handle is of the run that it is of
        found = await again.describe()
        assert (found.status, found.tenant, found.attributes) == ("completed", "", {"number": 2})
        assert await again.published() == {"number": 2}
        assert [run.id for run in await client.runs(attributes={"number": -1})] == []
        assert [run.id for run in await client.runs(tenant="acme")] == []
        assert [run.id for run in await client.runs(status="failed", workflow="invoice")] == []
        names = [type(event).__name__ for transition in await again.history() for event in transition.events]
        assert names == ["RunStarted", "RunCompleted"]


async def test_new_returns_an_open_run_as_it_is(serve: Serve) -> None:
    async with serve(app) as client:
        first = await client.start(patient, id="a")
        again = await client.start(patient, id="a", on_existing="new")
        assert (first.created, again.created) == (True, False)
        await again.signal("go", "on")
        assert await first.result(10) == "on"


async def test_of_many_starts_that_want_a_new_run_one_creates_it(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(patient, id="a")).cancel()
        with pytest.raises(sf.RunCancelled):
            await client.run("a").result(10)
        runs = await asyncio.gather(*(client.start(patient, id="a", on_existing="new") for _ in range(20)))
        assert sum(run.created for run in runs) == 1
        await runs[0].signal("go", "on")
        assert [await run.result(10) for run in runs] == ["on"] * 20


@pytest.mark.parametrize("policy", ["existing", "reject", "new"])
async def test_a_run_of_another_workflow_is_a_conflict(serve: Serve, policy: Any) -> None:
    async with serve(app) as client:
        await (await client.start(other, id="a")).result(10)
        with pytest.raises(sf.RunConflict, match="belongs to a run of workflow other") as caught:
            await client.start(invoice, 1, id="a", on_existing=policy)
        assert not isinstance(caught.value, sf.RunExists)


async def test_a_new_run_can_be_delayed(serve: Serve) -> None:
    async with serve(app) as client:
        await (await client.start(invoice, 1, id="a")).result(10)
        again = await client.start(invoice, 2, id="a", on_existing="new", delay=0.2)
        assert (await again.describe()).begins is not None
        assert await again.result(10) == 2


async def test_the_sandbox_has_the_same_policies() -> None:
    async with sft.Sandbox(app) as sandbox:
        first = await sandbox.start(invoice, 1, id="a")
        assert await first.result() == 1
        with pytest.raises(sf.RunExists):
            await sandbox.start(invoice, 2, id="a", on_existing="reject")
        assert not (await sandbox.start(invoice, 2, id="a")).created
        again = await sandbox.start(invoice, 2, id="a", on_existing="new")
        assert again.created
        assert await again.result() == 2
        with pytest.raises(sf.RunNotFound):
            await first.result()
        sandbox.crash()
        assert (await again.describe()).attributes == {"number": 2}
        with pytest.raises(sf.RunConflict):
            await sandbox.start(other, id="a", on_existing="new")


async def test_another_policy_is_refused(serve: Serve) -> None:
    async with serve(app) as client:
        with pytest.raises(sf.UsageError, match="on_existing must be one of existing, reject, new"):
            await client.start(invoice, 1, id="a", on_existing="replace")  # pyright: ignore[reportArgumentType, reportCallIssue]
