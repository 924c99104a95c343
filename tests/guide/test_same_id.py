"""Starting with the same id again gives the same run."""

from __future__ import annotations

import asyncio

import pytest

import streamflow as sf
from tests.guide.conftest import Serve

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


async def test_a_forgotten_id_is_free_again(serve: Serve) -> None:
    async with serve(app) as client:
        run = await client.start(invoice, 17, id="invoice-17")
        await run.result(10)
        assert await client.forget("invoice-17")
        with pytest.raises(sf.RunNotFound):
            await run.result(10)
        assert await (await client.start(invoice, 18, id="invoice-17")).result(10) == 18
