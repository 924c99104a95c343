"""Histories: what a sandbox records is what a daemon records, and a saved history is replayed against new code."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import streamflow as sf
import streamflow.testing as sft
from tests.guide.conftest import Serve

pytestmark = pytest.mark.anyio

R = TypeVar("R")

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


async def play(start: Callable[..., Awaitable[R]]) -> R:
    """The same words for a client and for a sandbox."""
    run: Any = await start(family, [1, 5, 2], id="family-1", tenant="acme")
    await run.signal("limit", 3)
    return run


async def second_child(client: Any, run: Any) -> list[Any]:
    started = [
        event for one in await run.history() for event in one.events if isinstance(event, sf.events.ChildStarted)
    ]
    return await client.run(started[1].run_id).history()


async def test_a_sandbox_records_what_a_daemon_records(serve: Serve) -> None:
    async with serve(app) as client:
        run = await play(client.start)
        await run.result(10)
        recorded = [event.describe() for one in await run.history() for event in one.events]
        of_child = [event.describe() for one in await second_child(client, run) for event in one.events]
    async with sft.Sandbox(app) as sandbox:
        run = await play(sandbox.start)
        assert await run.result() == [1, 2]
        assert [event.describe() for one in await run.history() for event in one.events] == recorded
        assert [event.describe() for one in await second_child(sandbox, run) for event in one.events] == of_child


async def test_a_saved_history_is_replayed_against_the_code_of_today(tmp_path: Path) -> None:
    async with sft.Sandbox(app) as sandbox:
        run = await play(sandbox.start)
        await run.result()
        sft.save_history(await run.export(), tmp_path / "family-1.json")
    history = sft.load_history(tmp_path / "family-1.json")
    sft.replay(app, history)
    changed = sf.App()
    changed.steps |= app.steps
    changed.workflows |= app.workflows

    @changed.workflow(name="family")
    async def family_of_tomorrow(values: list[int]) -> list[int]:
        return [await child(value) for value in values]

    with pytest.raises(sf.Diverged, match="run family-1 diverged at event 2"):
        sft.replay(changed, history)
