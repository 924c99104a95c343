"""Signals that a run's code never took: shown so when it has ended, also if it could not run when they came."""

from __future__ import annotations

import pytest

import streamflow as sf
from streamflow.embedded.server import EmbeddedServer
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, reduced, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def selling(bug: bool) -> str:
    taken = await sf.signal("approve", str)
    await sf.signal("close")
    if bug:
        {}["b"]
    return taken


async def test_signals_that_no_code_took_are_shown(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    shell = Shell(embedded_server.url, namespace)
    async with serve(app, shards=4) as (client, _):
        run = await client.start(selling, False, id="order-1")
        for name, value in (("approve", "first"), ("approve", "second"), ("amend", 7), ("close", None)):
            await run.signal(name, value)
        assert await run.result(DEADLINE) == "first"
        assert (await run.describe()).untaken == {"approve": 1, "amend": 1}
        (first,) = [line for line in (await shell("show", "order-1")).splitlines() if "first" in line and "◆" in line]
        assert "not taken" not in first
        for value in ("second", "7"):
            assert f"not taken, run ended: {value}" in " ".join(
                (await shell("show", "order-1")).replace('"', "").split()
            )
        assert '"untaken":{"approve":1,"amend":1}' in (await shell("show", "order-1", "--json")).replace(" ", "")
        clean = await client.start(selling, False, id="order-2")
        await clean.signal("approve", "yes")
        await clean.signal("close")
        assert await clean.result(DEADLINE) == "yes"
        assert (await clean.describe()).untaken == {}


async def test_what_came_while_a_run_was_stuck_is_not_taken_by_force(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str
) -> None:
    shell = Shell(embedded_server.url, namespace)
    async with serve(app, shards=4) as (client, _):
        run = await client.start(selling, True, id="order-1")
        await run.signal("approve", "yes")
        await run.signal("close")

        async def is_stuck() -> bool:
            return (await run.describe()).status == "stuck"

        await until(is_stuck)
        await run.signal("approve", "late")
        await reduced(client, "order-1")
        await run.terminate()
        with pytest.raises(sf.RunCancelled):
            await run.result(DEADLINE)
        shown = " ".join((await shell("show", "order-1")).replace('"', "").split())
        assert "not taken, stuck: late" in shown
