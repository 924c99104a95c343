"""A run is forked: the new one shares what was before, and nothing changes for the other, whatever dies meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow import actions, errors, events
from streamflow.client import forking
from streamflow.daemon.daemon import Daemon
from streamflow.events import RunForked, StepCompleted
from streamflow.store.connection import Call
from tests.support.serving import view
from tests.support.waiting import events_of, names_of, status_of, until
from tests.system.conftest import Serve, Work

pytestmark = pytest.mark.anyio

QUICK: dict[str, Any] = {"beat": 0.02, "dead_after": 0.1}
SMALL, LARGE = "x", "y" * 6000  # the start of a fork joins the inbox, or waits beside it
calls: list[str] = []
broken = {"bank"}


@pytest.fixture(autouse=True)
def fresh() -> None:
    calls.clear()
    broken.clear()
    broken.add("bank")


app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def act(what: str) -> str:
    calls.append(what[0])
    if what in broken:
        raise ConnectionError(f"{what} is down")
    return what.upper()


@app.step(queue="gpu", retry=sf.NO_RETRY)
async def queued(what: str) -> str:
    return await act.function(what)


@app.workflow
async def order(first: str, last: str = "bank") -> list[str]:
    got = [(await act(first))[:3]]
    sf.publish("got", len(got))
    sf.set_attributes(customer="kim")
    got.append(await act(last))
    return got


@app.workflow
async def held(what: str) -> str:
    kid = await child(what)
    return f"{kid} {await sf.signal('end', str)}"


@app.workflow
async def child(what: str) -> str:
    return what + await sf.signal("kid", str)


@app.workflow
async def far(what: str) -> str:
    first = await act(what)
    return first[:3] + await queued("gpu")


async def failed(client: sf.Client, *args: Any, run_id: str = "order-1") -> sf.Run[Any]:
    start: Any = client.start
    run: sf.Run[Any] = await start(order, *(args or (SMALL,)), id=run_id)
    with pytest.raises(sf.RunFailed):
        await run.result(10)
    return run


async def knows(daemon: Daemon, *workflows: str) -> None:
    """Wait until the daemon has heard which workflows are paused."""

    async def heard() -> bool:
        return daemon.owner.paused.notes.keys() == set(workflows)

    await until(heard)


async def refused(run: sf.Run[Any], kind: str, **options: Any) -> str:
    with pytest.raises(errors.NotForked) as found:
        await run.fork(**options)
    assert found.value.failure.kind == kind
    return str(found.value)


@pytest.mark.parametrize("what", [SMALL, LARGE], ids=["small", "large"])
async def test_it_goes_on_where_the_other_failed_which_stays(serve: Serve, what: str) -> None:
    async with serve(app) as (client, daemon):
        run = await failed(client, what)
        before = await events_of(run)
        broken.clear()
        fork = await run.fork(by="kim", reason="the bank is back")
        assert fork.created
        assert await fork.result(10) == [what.upper()[:3], "BANK"]
        assert calls == [what[0], "b", "b"]
        assert await events_of(run) == before
        found = await events_of(fork)
        assert [event.describe() for event in found[:4]] == [event.describe() for event in before[:4]]
        assert isinstance(event := found[4], RunForked)
        assert (event.of, event.shared, event.attempts, event.by) == (run.id, 4, [(2, 1)], "kim")
        assert event.history == []
        description = await fork.describe()
        assert description.attributes == {"customer": "kim", "forked_from": run.id}
        assert description.forked_from == run.id
        assert (await run.describe()).forked_from is None
        assert description.version < len(found)
        assert await fork.published() == {"got": 1}
        assert [one.id for one in await run.forks()] == [fork.id]
        await daemon.rollup.run_once()
        counts = (await view(client, "runs"))["workflows"]["order"]
        assert (counts["running"], counts["failed"], counts["completed"]) == (0, 1, 1)


async def test_with_another_input_it_begins_again(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client)
        fork = await run.fork(input=("a", "b"), id="order-2")
        assert await fork.result(10) == ["A", "B"]
        assert (await names_of(fork))[:2] == ["RunStarted", "RunForked"]
        fork = await run.fork(5, input=("other", "b"))  # what is shared was decided from another input
        with pytest.raises(sf.RunFailed, match=r"NotForked.*diverged at event 2"):
            await fork.result(10)


async def test_no_daemon_has_to_run_and_a_second_call_starts_no_other(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client)
    broken.clear()
    fork = await run.fork(id="again")
    assert not (await run.fork(id="again")).created
    other = await client.start(order, "z", id="plain")
    async with serve(app) as (client, _):
        assert await fork.result(10) == ["X", "BANK"]
        assert await other.result(10) == ["Z", "BANK"]
        assert not (await run.fork(id="again")).created
        with pytest.raises(sf.RunConflict, match="isn't this fork"):
            await run.fork(id="plain")
        with pytest.raises(sf.RunConflict, match="isn't this fork"):
            await run.fork(2, id="again")
    assert calls.count("b") == 3
    assert len(await run.forks()) == 1


@pytest.mark.parametrize("what", [SMALL, LARGE], ids=["small", "large"])
async def test_owners_die_while_a_fork_goes_on(serve: Serve, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as soon as one of its commits is seen."""
    monkeypatch.setattr("streamflow.machine.run.MAX_WORKER_LOSSES", 1000)
    async with serve(app, crash=True, **QUICK) as (client, _):
        run = await failed(client, what)
    broken.clear()
    fork = await run.fork()
    deaths = 0
    while (await fork.describe()).status != "completed":
        deaths += 1
        assert deaths < 100
        async with serve(app, crash=True, **QUICK) as (client, _):
            version = (await fork.describe()).version

            async def moved(version: int = version) -> bool:
                found = await fork.describe()  # it may have ended before the first look
                return found.version > version or found.status == "completed"

            await until(moved)
    assert await fork.result(10) == [what.upper()[:3], "BANK"]
    names = await names_of(fork)
    assert names.count("RunForked") == 1
    assert [event.seq for event in await events_of(fork) if isinstance(event, StepCompleted)] == [1, 2]
    assert calls[0] == what[0]
    assert calls.count(what[0]) == 1


async def test_the_owner_dies_right_after_the_commit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(app, crash=True, **QUICK) as (client, daemon):
        run = await failed(client)
        monkeypatch.setattr(daemon.owner, "_apply_run", lambda *_: None)
        broken.clear()
        fork = await run.fork()

        async def begun() -> bool:
            return (await fork.describe()).version == 1

        await until(begun)
    monkeypatch.undo()
    async with serve(app, **QUICK) as (client, _):
        assert await fork.result(10) == ["X", "BANK"]
    assert (await names_of(fork)).count("RunForked") == 1


async def test_it_needs_nothing_of_the_other_run(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await failed(client)
        broken.clear()
        fork = await run.fork()
        assert await client.forget(run.id)
        assert await fork.result(10) == ["X", "BANK"]
        again = await fork.fork(2)
        assert await again.result(10) == ["X", "BANK"]
        assert [one.id for one in await fork.forks()] == [again.id]


async def test_children_and_signals_of_a_run_that_waits(serve: Serve) -> None:
    async with serve(app) as (client, _):
        run = await client.start(held, "kid", id="held-1")
        await run.signal("end", "early")
        await until(lambda: waits_for_child(run))
        fork = await run.fork()
        [started] = [event for event in await events_of(run) if isinstance(event, events.ChildStarted)]
        await until(lambda: waits_for_child(fork))
        [wait] = [wait for wait in (await fork.describe()).waits_for if wait.kind == "child"]
        assert wait.run_id != started.run_id
        await client.run(wait.run_id).signal("kid", "-fork")
        assert await fork.result(10) == "kid-fork early"
        await client.run(started.run_id).signal("kid", "-first")
        assert await run.result(10) == "kid-first early"


async def test_a_signal_that_comes_before_it_begins_is_behind_its_start(serve: Serve) -> None:
    """Its start waits on the server, since it is large: the signal is in the inbox, and is read first."""
    async with serve(app) as (client, _):
        run = await client.start(held, LARGE, id="held-1")
        await until(lambda: waits_for_child(run))
        [wait] = (await run.describe()).waits_for
        await client.run(wait.run_id).signal("kid", "-kid")
        await until(lambda: waits_for_signal(run))
    fork = await run.fork()
    await fork.signal("end", "late")
    async with serve(app) as (client, _):
        assert await fork.result(10) == f"{LARGE}-kid late"
        assert (await names_of(fork)).count("SignalReceived") == 1
        await run.signal("end", "other")
        assert await run.result(10) == f"{LARGE}-kid other"


async def waits_for_signal(run: sf.Run[Any]) -> bool:
    return any(wait.kind == "signal" for wait in (await run.describe()).waits_for)


async def waits_for_child(run: sf.Run[Any]) -> bool:
    return any(wait.kind == "child" for wait in (await run.describe()).waits_for)


async def test_a_paused_workflow_has_no_forks(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is on its way when somebody pauses it begins nothing, and fails."""
    async with serve(app) as (client, daemon):
        run = await failed(client)
        broken.clear()
        calls.clear()
        await client.pause_workflow("order", reason="429")
        await knows(daemon, "order")
        assert "429: resume it first" in await refused(run, "Paused")
        assert await run.forks() == []
        with monkeypatch.context() as late:
            late.setattr(forking, "check_not_paused", lambda *_: None)
            fork = await run.fork()
        with pytest.raises(sf.RunFailed, match=r"Paused: its workflow is paused.*429"):
            await fork.result(10)
        assert (await names_of(fork))[-2:] == ["RunForked", "RunFailed"]
        assert calls == []
        await client.resume_workflow("order")
        await knows(daemon)
        assert await (await run.fork()).result(10) == ["X", "BANK"]
        assert calls == ["b"]


async def test_a_pause_right_behind_a_fork_holds_it(serve: Serve) -> None:
    """Both are in the batch in which it begins."""
    async with serve(app) as (client, _):
        run = await failed(client)
    broken.clear()
    fork = await run.fork()
    await fork.pause(reason="a look at it")
    async with serve(app) as (client, _):
        await status_of(fork, sf.Status.PAUSED)
        assert "RunCompleted" not in await names_of(fork)
        await fork.resume()
        assert await fork.result(10) == ["X", "BANK"]


async def test_a_queued_step_begins_again_with_its_own_attempt(serve: Serve, work: Work) -> None:
    async with serve(app) as (client, _):
        run = await client.start(far, "a", id="far-1")

        async def waits() -> bool:
            return any(wait.queue for wait in (await run.describe()).waits_for)

        await until(waits)
        fork = await run.fork()
        async with work(app, "gpu"):
            assert await run.result(10) == "AGPU"
            assert await fork.result(10) == "AGPU"
    assert calls == ["a", "g", "g"]


async def test_a_run_of_any_status_and_who_follows_its_fork(serve: Serve) -> None:
    async with serve(app) as (client, _):
        broken.clear()
        run = await client.start(order, "a", id="done")
        assert await run.result(10) == ["A", "BANK"]
        assert "say from which event" in await refused(run, "SayWhere")
        assert "no event 99" in await refused(run, "NoSuchEvent", at=99)
        fork = await run.fork(4)
        followed = [type(event).__name__ async for _, event in fork.events(follow=True)]
        assert followed == await names_of(fork)
        assert "RunForked" in followed
        waiting = await client.start(held, "kid", id="held-1")
        await until(lambda: waits_for_child(waiting))
        await waiting.cancel("enough")
        with pytest.raises(sf.RunCancelled):
            await waiting.result(10)
        fork = await waiting.fork()
        await until(lambda: waits_for_child(fork))


async def test_a_stuck_run_is_forked_with_mended_code(serve: Serve) -> None:
    buggy, mended = sf.App(), sf.App()
    for each in (buggy, mended):
        each.steps.update(app.steps)

    @buggy.workflow(name="flow")
    async def bug() -> str:
        return (await act("a")) + {}["b"]  # type: ignore[index, no-any-return]

    @mended.workflow(name="flow")
    async def right() -> str:
        return (await act("a")) + "!"

    async with serve(buggy) as (client, _):
        run = await client.start(bug, id="stuck-1")
        await status_of(run, sf.Status.STUCK)
        fork = await run.fork()  # the same code: it has the same bug, and fails at once
        with pytest.raises(sf.RunFailed, match="KeyError"):
            await fork.result(10)
    kept = await run.fork(id="kept")
    async with serve(mended) as (client, _):
        assert await kept.result(10) == "A!"
        assert await fork.retry() is not None
        assert await fork.result(10) == "A!"
        assert await run.result(10) == "A!"
    assert calls == ["a"]


async def test_in_bulk_each_run_gets_one_fork_however_often_it_is_resumed(serve: Serve, tmp_path: Path) -> None:
    """As when the command was killed after the forks had begun, and before the file said so."""
    async with serve(app) as (client, _):
        runs = [await failed(client, run_id=f"order-{number}") for number in range(3)]
        broken.clear()
        file, early = tmp_path / "targets", tmp_path / "early"
        bulk = await actions.freeze(client, actions.Fork(reason="again"), file, workflow="order", status="failed")
        early.write_bytes(file.read_bytes())
        assert (await bulk.run(rate=0)).done == 3
        bulk.close()
        again = await actions.open_file(client, early)
        assert (await again.run(rate=0)).done == 3
        again.close()
        for run in runs:
            [fork] = await run.forks()
            assert await client.run(fork.id).result(10) == ["X", "BANK"]
            assert fork.id.startswith(f"{run.id}.fork-")
    assert calls.count("b") == 6


async def test_a_body_that_is_no_fork_fails_its_run_and_no_other(serve: Serve) -> None:
    """As a client of another release may send it."""
    from streamflow.store.kernel import Start

    async with serve(app) as (client, _):
        shard = (await client.read_namespace()).shard_of("bad")
        start = Start("bad", "order", "", b"\xc9\x00\x00\x00\x02\x46\x91\x01")
        await client._batcher.start(shard, start)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(sf.RunFailed):
            await client.run("bad").result(10)
        assert await client._batcher.call(Call.plain("XLEN", client.keys.shard(shard).poison)) == 1  # pyright: ignore[reportPrivateUsage]
        broken.clear()
        assert await (await client.start(order, "a", id="good")).result(10) == ["A", "BANK"]
