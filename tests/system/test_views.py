"""Views: what is known about all runs together. Folded from the logs, exact once the system is idle, and rebuilt."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon.rollup import rebuild_views
from streamflow.events import RunResumed, RunStuck, StepCompleted
from streamflow.store.connection import Call
from tests.support.serving import view, views_of_one_merge
from tests.support.waiting import happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()

VIEWS = ("runs", "run_durations", "step_durations", "failures", "stuck", "causes", "quarantine", "oldest")
"""Those that do not depend on what time it is."""
LISTED = 10
"""Runs in `oldest`."""


@app.step(retry=sf.Retry(attempts=3, initial=0))
async def halve(n: int) -> int:
    if n % 2 and sf.step_info().attempt < 3:
        raise ArithmeticError(f"{n} is odd")
    return n // 2


@app.workflow
async def halving(n: int) -> int:
    return await halve(n)


@app.workflow
async def failing(message: str) -> None:
    raise ValueError(message)


@app.workflow
async def waiting() -> None:
    await sf.signal("go")


async def settled(client: sf.Client, **status: int) -> dict[str, Any]:
    """The views of one merge that counts this many runs of each status and no other, and lists those that are open."""
    found: dict[str, Any] = {}

    async def counted() -> bool:
        found.update(await views_of_one_merge(client, *VIEWS))
        runs = found.get("runs")
        if not runs or {name: n for name, n in runs["status"].items() if n} != status:
            return False
        return len(found["oldest"]) == min(LISTED, status.get("running", 0))  # read later than what is counted

    await until(counted)
    return found


async def a_bit_of_everything(client: sf.Client) -> None:
    runs: list[sf.Run[Any]] = [await client.start(halving, n, tenant="acme") for n in range(10)]
    messages = [f"number {n}" for n in range(3)]
    runs += [await client.start(failing, message, tenant="globex") for message in messages]
    cancelled = await client.start(waiting)
    await cancelled.cancel()
    for run in (*runs, cancelled):
        with contextlib.suppress(sf.RunError):
            await run.result(10)
    for n in range(2):
        await client.start(waiting, id=f"waiting-{n}")


async def test_runs_are_counted_by_status_workflow_and_tenant(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await a_bit_of_everything(client)
        runs = (await settled(client, running=2, completed=10, failed=3, cancelled=1))["runs"]
        assert runs["workflows"]["halving"]["completed"] == 10
        assert runs["workflows"]["failing"]["failed"] == 3
        assert (runs["workflows"]["waiting"]["running"], runs["workflows"]["waiting"]["cancelled"]) == (2, 1)
        assert runs["tenants"]["acme"]["completed"] == 10
        assert runs["tenants"]["globex"]["failed"] == 3
        assert runs["tenants"]["-"]["running"] == 2


async def test_durations_retries_and_failures_are_known_by_name(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await a_bit_of_everything(client)
        views = await settled(client, running=2, completed=10, failed=3, cancelled=1)
        steps, runs = views["step_durations"]["halve"], views["run_durations"]
        assert (steps["count"], steps["retries"], steps["failures"]) == (10, 10, 0)
        assert 0 <= steps["p50"] <= steps["p95"] <= steps["p99"] <= steps["max"]
        assert (runs["halving"]["count"], runs["failing"]["failures"]) == (10, 3)


async def test_the_latest_failures_are_shown_with_their_errors(serve: Serve) -> None:
    async with serve(app) as (client, _):
        for n in range(3):
            with pytest.raises(sf.RunFailed):
                await (await client.start(failing, f"number {n}", id=f"f{n}")).result(10)
        failures = (await settled(client, failed=3))["failures"]
        assert failures["count"] == 3
        assert [(row["run_id"], row["kind"], row["message"]) for row in failures["latest"]] == [
            ("f2", "ValueError", "number 2"),
            ("f1", "ValueError", "number 1"),
            ("f0", "ValueError", "number 0"),
        ]


@app.step(retry=sf.NO_RETRY)
async def charge(n: int) -> None:
    raise ConnectionError(f"card {n} of 'customer-{n}' was refused")


@app.workflow
async def paying(n: int) -> None:
    await charge(n)


@app.workflow
async def ordering(n: int) -> None:
    await paying.options(id=f"paying-{n}")(n)


async def test_each_failed_run_has_one_line_in_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(app) as (client, _):
        with pytest.raises(sf.RunFailed):
            await (await client.start(ordering, 7, id="ordering-7")).result(10)
        await settled(client, failed=2)
    lines = [record.getMessage() for record in caplog.records if record.name == "streamflow.runs"]
    what = "failed: ConnectionError: card 7 of 'customer-7' was refused ("
    assert [line.partition(what)[0] for line in lines] == ["run paying-7 of paying ", "run ordering-7 of ordering "]
    assert all("step charge, attempt 1, test_views.py:" in line for line in lines)
    assert "(run paying-7 of paying, step charge" in lines[1]


async def test_failures_of_two_causes_are_two_rows_also_from_the_log(serve: Serve) -> None:
    """Parents count at the cause of their children. A takeover folds the log, which has no tracebacks."""
    async with serve(app) as (client, _):
        runs: list[sf.Run[Any]] = [await client.start(ordering, n, id=f"ordering-{n}") for n in range(20)]
        messages = [f"number {n}" for n in range(5)]
        runs += [await client.start(failing, message) for message in messages]
        for run in runs:
            with pytest.raises(sf.RunFailed):
                await run.result(10)
        causes = (await settled(client, failed=45))["causes"]
        rows = {row["kind"]: row for row in causes["causes"]}
        assert {kind: row["failed"] for kind, row in rows.items()} == {"ConnectionError": 40, "ValueError": 5}
        refused = rows["ConnectionError"]
        assert (refused["workflow"], refused["message"]) == ("paying", "card # of '…' was refused")
        assert refused["where"].startswith("test_views.py:")
        assert refused["where"].endswith(" in charge")
        assert refused["run_id"].startswith("ordering-")
        assert causes["others"] == 0
    await rebuild_views(client.store, client.kernel, 8, 0)
    assert await view(client, "causes") == causes, "counted again from the log"


async def test_a_failure_that_was_retried_is_no_cause_any_more(serve: Serve) -> None:
    local = sf.App()
    is_mended = False

    @local.step(retry=sf.NO_RETRY)
    async def pay(card: str) -> None:
        if not is_mended:
            raise ConnectionError(f"no answer for {card}: " + "x" * 2000)  # too long for the log

    @local.workflow
    async def buying(card: str) -> None:
        await pay(card)

    async with serve(local) as (client, _):
        runs = [await client.start(buying, card) for card in ("'card 1'", "'card 2'", "'card 3'")]
        for run in runs:
            with pytest.raises(sf.RunFailed):
                await run.result(10)
        [row] = (await settled(client, failed=3))["causes"]["causes"]
        assert (row["kind"], row["failed"]) == ("ConnectionError", 3)
        is_mended = True
        for run in runs[:2]:
            await run.retry()
            await run.result(10)
        [row] = (await settled(client, completed=2, failed=1, retried=2))["causes"]["causes"]
        assert row["failed"] == 1
        await runs[2].retry()
        await runs[2].result(10)
        before = await settled(client, completed=3, retried=3)
        assert before["causes"]["causes"] == []
    await rebuild_views(client.store, client.kernel, 8, 0)
    assert await view(client, "causes") == before["causes"], "counted again from the log"


async def test_the_oldest_open_runs_are_shown_first(serve: Serve) -> None:
    async with serve(app) as (client, _):
        for n in range(3):
            await client.start(waiting, id=f"w{n}")
        await client.run("w0").signal("go")
        await client.run("w0").result(10)
        views = await settled(client, running=2, completed=1)
        assert [(run_id, workflow) for run_id, workflow, _ in views["oldest"]] == [("w1", "waiting"), ("w2", "waiting")]


async def test_rates_are_counted_by_the_second(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await a_bit_of_everything(client)

        async def shown() -> bool:
            rates = await view(client, "rates")
            return bool(rates) and sum(rates["starts"]) == 16

        await until(shown)  # a second is shown when it is over
        rates = await view(client, "rates")
        assert (sum(rates["completions"]), sum(rates["failures"]), sum(rates["steps"])) == (
            10,
            3,
            10,
        )  # the cancelled run is not a failure


async def test_a_daemon_that_takes_over_counts_what_the_last_one_did_not_store(serve: Serve) -> None:
    async with serve(app, rollup=3600, crash=True) as (client, _):
        await a_bit_of_everything(client)
        assert await view(client, "runs") is None
    async with serve(app):
        await (await client.start(halving, 2, tenant="acme")).result(10)
        await settled(client, running=2, completed=11, failed=3, cancelled=1)


async def test_views_rebuilt_from_the_logs_are_the_same(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await client.start_many(halving, [(n,) for n in range(0, 40, 2)])
        await settled(client, completed=20)
        await a_bit_of_everything(client)
        before = await settled(client, running=2, completed=30, failed=3, cancelled=1)
    for name in VIEWS:
        await client.store.one(Call.plain("DEL", client.keys.view(name)))
    for number in range(8):
        await client.store.one(Call.plain("HDEL", client.keys.shard(number).views, "partial"))
    folded = await rebuild_views(client.store, client.kernel, 8, 0)
    assert folded > 0, "there was more in the logs than in the first checkpoints"
    assert {name: await view(client, name) for name in VIEWS} == before


async def test_after_a_rebuild_counting_goes_on(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await a_bit_of_everything(client)
        await settled(client, running=2, completed=10, failed=3, cancelled=1)
    await rebuild_views(client.store, client.kernel, 8, 0)
    async with serve(app):
        await (await client.start(halving, 2)).result(10)
        await settled(client, running=2, completed=11, failed=3, cancelled=1)


async def test_every_checkpoint_says_up_to_where_it_counts(serve: Serve) -> None:
    async with serve(app, shards=1) as (client, daemon):
        run = await client.start(waiting)
        await settled(client, running=1)
        keys = client.keys.shard(0)
        [(last, _)] = await client.store.one(Call.plain("XREVRANGE", keys.log, "+", "-", "COUNT", 1))
        assert await client.store.one(Call.plain("HGET", keys.views, "offset")) == last
        assert daemon.rollup.unfolded == 0
        assert (await run.describe()).version == 1


def app_with(order: list[str], *, name: str = "flow", hurry: bool = False) -> sf.App:
    """A workflow that takes these steps, then waits for two signals, then takes a last step."""
    app = sf.App()

    async def act() -> str:
        return sf.step_info().step

    steps = {step: app.step(name=step)(act) for step in ("pack", "weigh", "send", "bill")}

    @app.workflow(name=name)
    async def flow() -> list[str]:
        if hurry:
            return ["in a hurry"]
        done = [await steps[step]() for step in order]
        done += [await sf.signal("go", str), await sf.signal("go", str)]
        return [*done, await steps["bill"]()]

    return app


async def test_stuck_runs_are_listed_and_counted(serve: Serve) -> None:
    async with serve(app_with(["pack"])) as (client, _):
        run: sf.Run[Any] = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(app_with(["weigh"])):
        await run.signal("go", "first")
        await happened(run, RunStuck)
        assert [stuck.id for stuck in await client.runs(status="stuck")] == [run.id]

        async def counted() -> bool:
            runs, stuck, causes = [await view(client, name) for name in ("runs", "stuck", "causes")]
            if not (runs and runs["status"]["stuck"] == 1 and stuck["latest"][0]["run_id"] == run.id):
                return False
            [row] = causes["causes"]
            return (row["kind"], row["workflow"], row["stuck"], row["run_id"]) == ("stuck", "flow", 1, run.id)

        await until(counted)
    async with serve(app_with(["pack"])):
        await run.signal("go", "second")
        await run.result(10)

        async def counted_again() -> bool:
            status, causes = (await view(client, "runs"))["status"], await view(client, "causes")
            assert status["stuck"] or not causes["causes"], "it is stuck no more"
            return (status["stuck"], status["running"], status["completed"]) == (0, 0, 1)

        await until(counted_again)


async def test_a_run_that_was_stuck_is_as_old_as_its_start(serve: Serve) -> None:
    async with serve(app_with(["pack"])) as (client, _):
        run: sf.Run[Any] = await client.start("flow")
        await happened(run, StepCompleted)
    async with serve(app_with(["weigh"])):
        await happened(run, RunStuck)
    async with serve(app_with(["pack"])):
        await happened(run, RunResumed)
        began = round((await run.describe()).created.timestamp() * 1000)
        indexes = [client.keys.shard(n).index("running", "flow") for n in range((await client.read_namespace()).shards)]
        scores = await client.store.send([Call.plain("ZSCORE", index, run.id) for index in indexes])
        assert [score for score in scores if score is not None] == [began], "the oldest open runs are sorted by it"
