"""Runs that wait for long are moved out of the server's memory, and come back by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamflow as sf
from tests.guide.conftest import Serve
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step
async def charge(customer: str) -> str:
    return f"charged {customer}"


@app.workflow
async def subscription(customer: str) -> str:
    sf.set_attributes(customer=customer)
    charged = await charge(customer)
    reason = await sf.signal("end", str)
    return f"{charged}, ended: {reason}"


@app.workflow
async def reminder(seconds: float) -> str:
    await sf.sleep(seconds)
    return "it is time"


@pytest.fixture
def archive(tmp_path: Path) -> str:
    """Where they go: here a directory; s3://bucket/folder is another one."""
    return f"file://{tmp_path}/archive"


async def hibernates(run: sf.Run[str]) -> bool:
    return (await run.describe()).hibernating is not None


async def test_a_run_that_has_waited_for_long_hibernates_until_something_comes(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive, hibernate_after=0.5) as client:
        run = await client.start(subscription, "kim", id="subscription-kim")
        await until(lambda: hibernates(run))

        assert await client.runs() == [], "it isn't in the server's memory"
        assert [one.id for one in await client.hibernating_runs()] == ["subscription-kim"]
        described = await run.describe()
        assert (described.status, described.attributes) == ("running", {"customer": "kim"})
        assert [wait.name for wait in described.waits_for] == ["end"]
        assert (await run.history())[0].events

        await run.signal("end", "moved away")
        assert await run.result(20) == "charged kim, ended: moved away"
        assert await client.hibernating() == 0


async def test_a_timer_wakes_its_run(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive, hibernate_after=0.4) as client:
        run = await client.start(reminder, 2.0, id="r")
        await until(lambda: hibernates(run))
        assert await run.result(20) == "it is time"


async def test_its_id_stays_in_use(serve: Serve, archive: str) -> None:
    async with serve(app, archive=archive, hibernate_after=0.5) as client:
        run = await client.start(subscription, "lee", id="subscription-lee")
        await until(lambda: hibernates(run))
        again = await client.start(subscription, "lee", id="subscription-lee")
        assert not again.created
        with pytest.raises(sf.RunExists):
            await client.start(subscription, "lee", id="subscription-lee", on_existing="reject")


async def test_without_an_archive_nothing_is_moved(serve: Serve) -> None:
    async with serve(app, hibernate_after=0.2) as client:
        run = await client.start(reminder, 1.5, id="r")
        assert await run.result(20) == "it is time"
        assert await client.hibernating() == 0
