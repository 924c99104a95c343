"""The runs whose status has changed last, in one read."""

from __future__ import annotations

import json

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def waits() -> None:
    await sf.signal("go")


async def test_the_runs_that_changed_last_come_first(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    shell = Shell(embedded_server.url, namespace)
    async with serve(app, shards=4) as (client, _):
        assert (await client.newest()).runs == []
        first = await client.start(waits, id="first")
        for number in range(3):
            await client.start(waits, id=f"other-{number}")
        await first.signal("go")
        await first.result(DEADLINE)

        async def are_merged() -> bool:
            found = (await client.newest()).runs
            return len(found) == 4 and ("first", "completed") in [(run.id, run.status) for run in found]

        await until(are_merged)
        found = await client.newest()
        statuses = {run.id: (run.workflow, run.status) for run in found.runs}
        assert statuses.pop("first") == ("waits", sf.Status.COMPLETED)
        assert set(statuses.values()) == {("waits", sf.Status.RUNNING)}
        times = [run.at for run in found.runs]
        assert times == sorted(times, reverse=True)
        assert found.since is None, "these are all"
        assert found.as_of is not None
        assert found.as_of >= found.runs[0].at
        shown = json.loads(await shell("runs", "--newest", "--limit", "2", "--json"))
        assert [run["id"] for run in shown["runs"]] == [run.id for run in found.runs[:2]]
        assert found.runs[0].id in (await shell("runs", "--newest")).splitlines()[1]
        assert "has no filters" in await shell("runs", "--newest", "--workflow", "waits", code=2)
