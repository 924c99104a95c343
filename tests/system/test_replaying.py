"""Histories of a real server, read whole and replayed without one."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
import streamflow.testing as sft
from streamflow.client.histories import read_history
from tests.support.waiting import reduced
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio


app = sf.App()


@app.step(retry=sf.Retry(attempts=2, initial=0.01))
async def flaky(value: int) -> int:
    if sf.step_info().attempt == 1:
        raise ConnectionError("down")
    return value


@app.workflow
async def child(value: int) -> int:
    await sf.sleep(0.01)
    return await flaky(value)


@app.workflow
async def family(values: list[int]) -> list[int]:
    limit = await sf.signal("limit", int, timeout=3600)
    return [await child(value) for value in values if value < limit]


@app.reducer
def tally(state: int = 0, event: sf.Event | None = None) -> sf.Decision:
    return sf.Decision(state + event.value if isinstance(event, sf.Signal) else state)


async def play(start: Any) -> sf.Run[list[int]]:
    """The same words for a client and for a sandbox."""
    run = await start(family, [1, 5, 2], id="family-1", tenant="acme")
    await run.signal("limit", 3)
    return run


async def test_a_history_of_a_server_is_exported_whole_and_replayed(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await play(client.start)
        assert await run.result(10) == [1, 2]
        history = await read_history(client, run.id)
        assert history.decoded() == await run.history()
    assert (history.head.workflow, history.head.tenant, history.head.status) == ("family", "acme", "completed")
    assert history.partition == "run"
    sft.replay(app, history)


async def test_a_run_that_is_open_is_replayed_as_far_as_it_got(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(family, [1], id="family-1")
        await reduced(client, run.id)
        sft.replay(app, await read_history(client, run.id))
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)


async def test_a_reducers_history_is_exported_with_its_snapshot(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(tally, None, id="tally-1")
        await run.signal("add", 3)
        await reduced(client, run.id)
        history = await read_history(client, run.id)
        assert history.state
        sft.replay(app, history)
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(10)


async def test_a_run_that_was_not_taken_yet_has_an_empty_history_that_fits(serve: Serve) -> None:
    async with serve(app) as (client, _):
        pass
    await client.start(family, [1], id="family-1")
    history = await read_history(client, "family-1")
    assert history.transitions == []
    sft.replay(app, history)
    with pytest.raises(sf.RunNotFound):
        await read_history(client, "family-2")
