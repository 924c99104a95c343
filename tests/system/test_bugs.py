"""A run whose code has a bug is stuck with its history, whoever owns it, until a daemon has other code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow import actions
from streamflow.daemon.daemon import Daemon
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import RunStuck, SignalReceived, StepCompleted
from tests.support.shell import Shell
from tests.support.waiting import DEADLINE, events_of, happened, reduced, status_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

RAN: list[str] = []
"""The runs whose code was run up to the bug, each time."""


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()
    RATES.clear()


RATES: dict[str, int] = {}
"""What no fingerprint has: as a file, or an environment variable."""


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
    async def convert(amount: int) -> int:
        await price("x")
        RAN.append(sf.info().run_id)
        amount *= RATES["chf"]
        if amount > 100:
            amount += await sf.signal("tip", int)
        return amount

    @app.workflow
    async def declines(item: str) -> str:
        await price(item)
        if not fix:
            raise ValueError("no such item")
        return "declined" if fix == "mended" else {}["no such rule"]

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
    """How many runs its memory has anything of, because they are."""
    shards = daemon.owner.shards.values()
    return sum(len(shard.parked) + len(shard.bugs) + len(shard.again) for shard in shards)


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


async def test_a_stuck_run_is_tried_again_by_the_same_code_on_request(serve: Serve) -> None:
    async with serve(release(), crash=True) as (client, daemon):
        runs: list[sf.Run[Any]] = [await client.start("convert", amount, id=f"of-{amount}") for amount in (5, 500)]
        for run in runs:
            await happened(run, RunStuck)
            with pytest.raises(sf.NotRetried, match="is still stuck: KeyError: 'chf'"):
                await run.retry()
            await happened(run, RunStuck, 2)
            assert RAN.count(run.id) == 2
        assert parked(daemon) == 0
    async with serve(release()) as (_, daemon):
        await is_settled(daemon)
        RATES["chf"] = 2
        done = await runs[0].retry()
        assert (done.kept, done.steps, done.parent) == (1, [], None)
        assert await runs[0].result(DEADLINE) == 10
        await runs[1].retry()
        assert (await runs[1].describe()).status == "running"
        with pytest.raises(sf.NotRetried, match="is running: only a run that has failed or is stuck"):
            await runs[1].retry()
        await runs[1].signal("tip", 1)
        assert await runs[1].result(DEADLINE) == 1001
        assert len(RAN) == 6


async def test_a_command_that_waits_for_a_run_says_that_it_is_stuck(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.cli.commands.enqueue.LOOK_EVERY", 0.05)
    run = Shell(embedded_server.url, namespace)
    async with serve(release()):
        wait = ("enqueue", "order", "--input", '"tea"', "--wait", "--id", "o")
        said = await run(*wait, "--timeout", "3", code=1)
        assert said.count("run o is stuck: KeyError: 'amont'") == 1
        assert "it goes on when other code is deployed, or with streamflow retry o\n" in said


async def test_stuck_runs_are_retried_together_and_their_sample_says_why(serve: Serve, tmp_path: Path) -> None:
    async with serve(release()) as (client, daemon):
        runs = [await client.start("convert", amount, id=f"of-{amount}") for amount in (5, 6)]
        for run in runs:
            await happened(run, RunStuck)
        await is_settled(daemon)
        RATES["chf"] = 2
        frozen = await actions.freeze(client, actions.Retry(), tmp_path / "targets", status=sf.Status.STUCK)
        assert {(run.id, run.error) for run in frozen.sample} == {(run.id, "KeyError: 'chf'") for run in runs}
        outcome = await frozen.run()
        frozen.close()
        assert (outcome.targets, outcome.done, outcome.failed) == (2, 2, 0)
        assert [await run.result(DEADLINE) for run in runs] == [10, 12]


async def test_a_list_of_which_no_run_is_left_is_not_taken_for_another_try(
    serve: Serve, embedded_server: EmbeddedServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.actions.many.SHOWS_WITHIN", 0.05)
    shell = Shell(embedded_server.url, namespace)
    targets = str(tmp_path / "targets")
    async with serve(release()) as (client, daemon):
        await happened(await client.start("convert", 5, id="c"), RunStuck)
        await is_settled(daemon)
        first = await shell("retry", "--status", "stuck", "--yes", "--targets", targets, code=1)
        assert "is left" not in first
        tried = len(RAN)
        again = await shell("retry", "--resume", targets, code=1)
        assert f"no run of {targets} is left, and those that failed aren't tried again" in again
        assert "failed 1\n" in again
        assert len(RAN) == tried


async def test_a_reducer_is_tried_again_and_one_that_diverged_stays_stuck(serve: Serve) -> None:
    async with serve(release(), crash=True) as (client, _):
        run: sf.Run[Any] = await client.start("tally", id="tally")
        unknown: sf.Run[Any] = await client.start("nobody", id="nobody")
        await run.signal("add", 2)
        await status_of(run, sf.Status.STUCK)
        await status_of(unknown, sf.Status.STUCK)
        for each in (run, unknown):
            with pytest.raises(sf.NotRetried, match="is still stuck"):
                await each.retry()
        assert (await unknown.describe()).reason.startswith("workflow nobody is not registered")
        assert [type(event) for event in await events_of(unknown)].count(RunStuck) == 1
    async with serve(release("mended")):
        await run.signal("add", 9)
        assert await run.result(DEADLINE) == [2, 9]


async def test_a_request_is_taken_by_the_next_daemon_if_this_one_dies(serve: Serve) -> None:
    async with serve(release()) as (client, _):
        run: sf.Run[Any] = await client.start("convert", 5, id="of-5")
        await happened(run, RunStuck)
    RATES["chf"] = 3
    with pytest.raises(TimeoutError, match="no daemon has taken the retry of run of-5"):
        await run.retry(timeout=0.01)
    async with serve(release()):
        assert await run.result(DEADLINE) == 15


async def test_a_failed_run_whose_code_has_a_bug_now_is_not_retried(serve: Serve) -> None:
    async with serve(release()) as (client, _):
        run: sf.Run[Any] = await client.start("declines", "tea")
        with pytest.raises(sf.RunFailed, match="no such item"):
            await run.result(DEADLINE)
    async with serve(release("x")) as (_, daemon):
        with pytest.raises(sf.NotRetried, match="can't go on with today's code: KeyError: 'no such rule'"):
            await run.retry()
        assert (await run.describe()).status == "failed"
        assert parked(daemon) == 0
    async with serve(release("mended")):
        await run.retry()
        assert await run.result(DEADLINE) == "declined"


async def test_who_waits_for_it_is_told_why(serve: Serve) -> None:
    async with serve(release()) as (client, _):
        run = await client.start("order", "hat", id="o1")
        await status_of(run, sf.Status.STUCK)
        with pytest.raises(TimeoutError) as late:
            await run.result(0.05)
        why = "run o1 has not ended within 0.05 s: it is stuck until its code is mended: KeyError: 'amont' (File"
        assert str(late.value).startswith(why)


async def test_the_reason_of_a_cancel_is_not_told_as_that_of_a_stuck_run(serve: Serve) -> None:
    async with serve(release("mended")) as (client, _):
        run = await client.start("order", "hat", id="o1")
        await run.cancel("too late")
        await status_of(run, sf.Status.CANCELLED)
        with pytest.raises(TimeoutError) as late:
            await run.result(0)
        assert "stuck" not in str(late.value)


async def test_who_waits_for_one_that_goes_on_is_told_so(serve: Serve) -> None:
    async with serve(release("mended")) as (client, _):
        run = await client.start("order", "hat", id="o1")
        with pytest.raises(TimeoutError, match=r"run o1 has not ended within 0.05 s; it goes on$"):
            await run.result(0.05)
