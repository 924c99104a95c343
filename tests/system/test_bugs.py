"""A run whose code has a bug is stuck with its history, whoever owns it, until a daemon has other code."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.events import RunStuck, SignalReceived, StepCompleted
from tests.support.waiting import DEADLINE, events_of, happened, reduced, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

RAN: list[str] = []
"""The runs whose code was run up to the bug, each time."""


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def release(fix: str = "") -> sf.App:
    """Two with the same `fix` are the same code."""
    app = sf.App()

    @app.step
    async def price(item: str) -> dict[str, int]:
        return {"amount": len(item)}

    @app.workflow
    async def order(item: str) -> int:
        got = await price(item)
        RAN.append(sf.info().run_id)
        amount = got["amount"] if fix == "mended" else got["amont" + fix]
        return amount + await sf.signal("tip", int)

    @app.workflow
    async def shop(item: str) -> int:
        return await order.options(id=f"order-{item}")(item)

    @app.reducer
    def tally(state: list[int], event: sf.Event) -> sf.Decision:
        if isinstance(event, sf.Signal):
            RAN.append("tally")
            state.append(event.value)
            if event.value == 2 and fix != "mended":
                return sf.Decision([state[99]])
            if event.value == 9:
                return sf.Decision(state, [sf.Complete(state)])
        return sf.Decision(state)

    return app


def parked(daemon: Daemon) -> int:
    return sum(len(shard.parked) + len(shard.bugs) for shard in daemon.owner.shards.values())


async def is_settled(daemon: Daemon) -> None:
    """All stuck runs that it has found were looked at."""

    async def settled() -> bool:
        shards = daemon.owner.shards.values()
        return bool(shards) and not any(shard.stuck or shard.has_work or shard.busy for shard in shards)

    await until(settled)


async def test_a_bug_parks_its_run_and_mended_code_goes_on_by_itself(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(release(), crash=True) as (client, daemon):
        run: sf.Run[Any] = await client.start("order", "tea", id="tea")
        await happened(run, RunStuck)
        why = await run.describe()
        assert why.status == "stuck"
        assert why.reason.startswith("KeyError: 'amont' (File ")
        assert why.failure is not None
        assert (why.failure.kind, why.error) == ("KeyError", "KeyError: 'amont'")
        assert "in order" in why.traceback
        assert why.cause is not None
        assert why.cause.where.endswith(" in order")
        [listed] = await client.runs(status="stuck", error="amont")
        assert (listed.reason, listed.error) == (why.reason, why.error)
        await run.signal("tip", 4)
        await happened(run, SignalReceived)
        assert RAN == ["tea"], "it is not tried again for what comes"
        assert parked(daemon) == 0
    assert "run tea of order is stuck, its code raised KeyError: 'amont' (File " in caplog.text
    async with serve(release(), crash=True) as (_, daemon):
        await is_settled(daemon)
        await run.signal("more", 1)
        await happened(run, SignalReceived, 2)
        assert (RAN, parked(daemon)) == (["tea"], 0), "nor by another daemon with the same code"
    async with serve(release("mended")):
        assert await run.result(DEADLINE) == 3 + 4
    assert [type(event) for event in await events_of(run)].count(StepCompleted) == 1


async def test_other_code_with_a_bug_is_tried_once_and_says_its_own(serve: Serve) -> None:
    async with serve(release()) as (client, _):
        run: sf.Run[Any] = await client.start("order", "tea", id="tea")
        await happened(run, RunStuck)
    for _ in range(2):
        async with serve(release("x")) as (_, daemon):
            await happened(run, RunStuck, 2)
            await is_settled(daemon)
    assert (await run.describe()).error == "KeyError: 'amontx'"
    assert RAN == ["tea", "tea"]
    async with serve(release("mended")):
        await run.signal("tip", 4)
        assert await run.result(DEADLINE) == 7


async def test_a_parent_waits_for_a_child_that_is_parked(serve: Serve) -> None:
    async with serve(release()) as (client, _):
        parent: sf.Run[Any] = await client.start("shop", "tea")
        child = client.run("order-tea")
        await reduced(client, child.id)
        await status_of(child, sf.Status.STUCK)
        assert (await parent.describe()).status == "running"
    async with serve(release("mended")):
        await child.signal("tip", 1)
        assert await parent.result(DEADLINE) == 4


async def test_a_reducer_keeps_its_state_from_before_the_bug(serve: Serve) -> None:
    async with serve(release(), crash=True) as (client, _):
        run: sf.Run[Any] = await client.start("tally", id="tally")
        for value in (1, 2, 3):
            await run.signal("add", value)
        await status_of(run, sf.Status.STUCK)
        await happened(run, SignalReceived, 3)
        assert (await run.describe()).error == "IndexError: list index out of range"
    tried = len(RAN)
    async with serve(release(), crash=True) as (_, daemon):
        await is_settled(daemon)
        assert len(RAN) == tried
    async with serve(release("mended")):
        await run.signal("add", 9)
        assert await run.result(DEADLINE) == [1, 2, 3, 9]


async def test_thousands_of_parked_runs_leave_nothing_in_memory(serve: Serve) -> None:
    many = 2000
    app = release()
    async with serve(app, shards=2, cache=10) as (client, daemon):
        order: Any = app.workflows["order"]
        await client.start_many(order, [("tea",)] * many)

        async def have_run() -> bool:
            return len(RAN) >= many

        await until(have_run)
        await is_settled(daemon)
        assert parked(daemon) == 0
        assert daemon.owner.live <= 10
        assert len(RAN) == many
    RAN.clear()
    async with serve(release(), shards=2, cache=10) as (_, daemon):
        await is_settled(daemon)
        assert (RAN, parked(daemon)) == ([], 0)
        assert daemon.owner.live <= 10
