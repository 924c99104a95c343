"""Ended runs go to an archive when their time is over, and are read, forked and restored from there."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from pathlib import Path

import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow import actions
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def charge(customer: str) -> str:
    if customer == "nobody":
        raise ValueError("there is no customer nobody")
    return f"charged {customer}"


@app.workflow
async def invoice(customer: str) -> str:
    sf.set_attributes(customer=customer)
    return await charge(customer)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """The URL of an archive: here a directory; s3://bucket/folder is another one."""
    return f"file://{tmp_path}/archive"


async def test_an_ended_run_is_moved_to_the_archive_and_read_there(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive) as client:
        run = await client.start(invoice, "kim", id="invoice-17")
        await run.result(10)
        history = await run.history()

        assert await client.purge("invoice-17")  # a daemon does it when `retention` is over

        assert await client.runs() == []
        assert (await run.describe()).archived
        assert await run.result(10) == "charged kim"
        assert await run.history() == history


async def test_archived_runs_are_found_by_filters(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive) as client:
        for customer in ("kim", "nobody", "lee"):
            run = await client.start(invoice, customer, id=f"invoice-{customer}")
            with contextlib.suppress(sf.RunFailed):
                await run.result(10)
        done = await actions.bulk(client, actions.Purge(), workflow="invoice", rate=0)
        assert done.done == 3

        [failed] = await client.archived_runs(status="failed")
        assert failed.error == "ValueError: there is no customer nobody"
        [of_kim] = await client.archived_runs(attributes={"customer": "kim"}, since="1h")
        assert of_kim.id == "invoice-kim"


async def test_a_run_is_forked_from_the_archive(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive) as client:
        run = await client.start(invoice, "nobody", id="invoice-18")
        with pytest.raises(sf.RunFailed):
            await run.result(10)
        await client.purge("invoice-18")

        fork = await client.run("invoice-18").fork(input=("kim",), reason="the name was mistyped")
        assert await fork.result(10) == "charged kim"


async def test_what_is_restored_can_be_retried(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive) as client:
        run = await client.start(invoice, "nobody", id="invoice-18")
        with pytest.raises(sf.RunFailed):
            await run.result(10)
        await client.purge("invoice-18")
        with pytest.raises(sf.RunNotFound, match="streamflow restore invoice-18"):
            await run.retry()

        restored = await client.restore("invoice-18")
        assert not (await restored.describe()).archived
        await restored.retry(reason="nobody is a customer by now")


async def test_the_id_of_an_archived_run_is_free_again(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive) as client:
        first = await client.start(invoice, "kim", id="invoice-17")
        await first.result(10)
        earlier = await first.describe()
        await client.purge("invoice-17")

        second = await client.start(invoice, "lee", id="invoice-17")
        assert await second.result(10) == "charged lee"
        assert await client.run("invoice-17").result(10) == "charged lee"
        assert await client.archived_run("invoice-17", created=earlier.created).result(10) == "charged kim"


async def test_forget_deletes_it_there_too(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive) as client:
        await (await client.start(invoice, "kim", id="invoice-17")).result(10)
        await client.purge("invoice-17")
        assert await client.forget("invoice-17")
        assert await client.archived_runs() == []
        with pytest.raises(sf.RunNotFound):
            await client.run("invoice-17").describe()


async def test_the_testing_kit_has_retention_and_an_archive() -> None:
    week = timedelta(days=7)
    async with sft.Sandbox(app, retention=week, retention_rules="invoice:failed=90d", archive=True) as sandbox:
        good, bad = await sandbox.start(invoice, "ann"), await sandbox.start(invoice, "nobody")
        assert await good.result() == "charged ann"
        with pytest.raises(sf.RunFailed):
            await bad.result()
        await sandbox.sleep(week)
        assert [run.id for run in await sandbox.runs()] == [bad.id], "failed invoices are kept for longer"
        assert (await good.describe()).archived
        assert await good.result() == "charged ann"
        assert [run.id for run in await sandbox.archived_runs(attributes={"customer": "ann"})] == [good.id]
        await sandbox.restore(good.id)
        assert not (await good.describe()).archived
        await sandbox.sleep(week - timedelta(seconds=1))
        assert not (await good.describe()).archived, "its time began again"
        await sandbox.sleep(1)
        assert (await good.describe()).archived


async def test_a_sandbox_without_an_archive_deletes_what_is_over() -> None:
    async with sft.Sandbox(app, retention=60) as sandbox:
        run = await sandbox.start(invoice, "ann")
        await sandbox.sleep(61)
        with pytest.raises(sf.RunNotFound):
            await run.describe()
