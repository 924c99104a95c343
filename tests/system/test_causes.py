"""Why runs failed, as `describe` and listings say it: also of what can't be read any more."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.client.listing import LARGEST_READ, failure_in
from streamflow.errors import Failure
from streamflow.events import RunFailed, RunStuck, StepCompleted, encode_transition
from streamflow.store.connection import Call
from tests.support.waiting import happened, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(queue="cards", retry=sf.Retry(attempts=3, initial=0))
def charge(n: int) -> None:
    raise ConnectionError(f"card {n} refused {sf.step_info().attempt} times")


@app.workflow
async def paying(n: int) -> None:
    await charge(n)


@app.workflow
async def ordering(n: int) -> None:
    await paying.options(id=f"pay-{n}")(n)


@app.workflow
async def fine() -> str:
    return "connectionerror"


async def failed_order(client: sf.Client, n: int) -> sf.Run[Any]:
    run: sf.Run[Any] = await client.start(ordering, n, id=f"order-{n}")
    with pytest.raises(sf.RunFailed):
        await run.result(20)
    return run


async def test_the_cause_is_found_through_a_child_and_a_queue(serve: Serve, work: Work) -> None:
    async with serve(app) as (client, _), work(app, "cards"):
        why = await (await failed_order(client, 7)).describe()
        cause = why.cause
        assert cause is not None
        assert (cause.run_id, cause.workflow, cause.step, cause.attempt) == ("pay-7", "paying", "charge", 3)
        assert (cause.kind, cause.message) == ("ConnectionError", "card 7 refused 3 times")
        assert cause.where.startswith("test_causes.py:")
        assert cause.where.endswith(" in charge")
        assert why.error == "ConnectionError: card 7 refused 3 times"
        assert "in charge" in why.traceback
        assert "in ordering" not in why.traceback, "that of the step, not of those who awaited it"
        assert [(one.attempt, one.failure.message) for one in why.attempts] == [
            (1, "card 7 refused 1 times"),
            (2, "card 7 refused 2 times"),
        ]
        await (await client.start(fine, id="fine")).result(10)
        assert {run.id: run.error for run in await client.runs()} == {
            "order-7": why.error,
            "pay-7": why.error,
            "fine": "",
        }
        found = await client.runs(error="CARD 7", workflow="ordering")
        assert [(run.id, run.cause) for run in found] == [("order-7", cause)]
        assert await client.runs(error="connectionerror", status="completed") == []


async def test_stuck_runs_are_found_by_their_reason(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def release(name: str) -> sf.App:
        app = sf.App()

        @app.step(name=name)
        async def act() -> None: ...

        @app.workflow
        async def flow() -> None:
            await act()
            await sf.signal("go")

        return app

    async with serve(release("pack")) as (client, _):
        run: sf.Run[Any] = await client.start("flow", id="f")
        await happened(run, StepCompleted)
    async with serve(release("weigh")):
        await happened(run, RunStuck)

        async def found() -> bool:
            return [stuck.id for stuck in await client.runs(error="diverged")] == ["f"]

        await until(found)
        assert await client.runs(error="no such reason") == []
        monkeypatch.setattr("streamflow.client.listing.MAX_REASONS", 0)
        assert await client.runs(error="diverged") == [], "so many are read and no more"


async def test_what_is_gone_or_damaged_hides_nothing_else(serve: Serve, work: Work) -> None:
    async with serve(app) as (client, _), work(app, "cards"):
        runs = [await failed_order(client, n) for n in range(3)]
        namespace = await client.read_namespace()
        keys = [client.keys.shard(namespace.shard_of(f"pay-{n}")).run(f"pay-{n}") for n in range(3)]
        await client.forget("pay-0")
        await client.store.one(Call.plain("DEL", keys[1]))
        await client.store.one(Call.plain("SET", keys[1], "overwritten"))
        await client.store.one(Call.plain("RPUSH", keys[2], b"\xc1"))
        for run in runs:
            why = await run.describe()
            assert why.attempts == [], "the child's history isn't readable"
            assert why.cause is not None
            assert why.cause.step == "charge"
        listed = {run.id: run.error for run in await client.runs(status="failed")}
        assert listed == {
            **{f"order-{n}": f"ConnectionError: card {n} refused 3 times" for n in range(3)},
            "pay-2": "",
        }, "a run whose last transition can't be decoded is listed, without its error"


def test_a_large_or_undecodable_last_transition_has_no_error() -> None:
    failed = encode_transition(1, [RunFailed("w", "", 1, Failure("E", "boom"))])
    assert failure_in(failed) == Failure("E", "boom")
    assert failure_in(failed + bytes(LARGEST_READ)) is None
    for data in (b"", b"\xc1", b"\x92" * 100_000, failed[:-1]):
        assert failure_in(data) is None
