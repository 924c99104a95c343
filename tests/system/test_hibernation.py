"""Runs that have waited for long are moved out of the server's memory, and come back when something comes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.actions import Terminate, perform
from streamflow.archive.storage import Files
from streamflow.client.histories import read_history, replay
from streamflow.daemon import parked_objects, put_off, waking
from streamflow.daemon.daemon import Daemon
from streamflow.errors import ArchiveError
from streamflow.store.connection import Call
from tests.support.waiting import child_of, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


CHARGED: list[int] = []


@app.step
async def charge(amount: int) -> int:
    CHARGED.append(amount)
    return amount


@app.workflow
async def order(amount: int) -> str:
    sf.publish("stage", "waits")
    sf.set_attributes(customer="kim")
    paid = await charge(amount)
    by = await sf.signal("approve", str)
    return f"{paid} approved by {by}"


@app.workflow
async def counter(left: int) -> int:
    while True:
        request = await sf.question("take", int)
        left -= request.value
        request.answer(left)


@app.reducer
def doorman(state: int, event: sf.Event) -> sf.Decision:
    if isinstance(event, sf.Asked):
        return sf.Decision(state + 1, [sf.Answer(event.id, state + 1)])
    return sf.Decision(state)


@app.step
async def long_step() -> None:
    await asyncio.sleep(60)


@app.workflow
async def slow_order() -> None:
    await long_step()


@app.workflow
async def reminder(seconds: float) -> str:
    await sf.sleep(seconds)
    return "reminded"


@app.workflow
async def parent(name: str) -> str:
    return f"parent of: {await (order.options(id=name) if name else order)(7)}"


@app.workflow
async def noted(text: str) -> int:
    await sf.signal("go", int)
    return len(text)


AFTER = 3600
"""Seconds: nothing is moved out but by `moved_out`."""


def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


def objects(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "archive").rglob("parked/**/*.run"))


async def sleeping(daemon: Daemon) -> int:
    return sum(shard.asleep for shard in daemon.owner.shards.values())


async def checked(daemon: Daemon) -> None:
    """Until all shards are: before, nothing of them is moved."""

    async def all_are() -> bool:
        return all(shard.is_checked for shard in daemon.owner.shards.values())

    await until(all_are)


async def moved_out(daemon: Daemon, count: int = 1) -> None:
    """Until so many runs sleep."""

    async def all_moved() -> bool:
        for shard in daemon.owner.shards.values():
            shard.hibernate_at = 0.0
        await daemon.hibernation.run_once()
        return await sleeping(daemon) == count

    daemon.hibernation.after_ms = 10
    try:
        await until(all_moved)
    finally:
        daemon.hibernation.after_ms = AFTER * 1000


async def waits(client: sf.Client, run: sf.Run[Any]) -> None:
    async def is_so() -> bool:
        with contextlib.suppress(sf.RunNotFound):
            return any(wait.kind in ("signal", "timer", "child") for wait in (await run.describe()).waits_for)
        return False

    await until(is_so)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails is tried again at once."""
    monkeypatch.setattr(put_off, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(waking, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(waking, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(put_off, "FIRST_PAUSE", 0.02)


async def test_a_run_is_moved_out_read_there_and_woken_by_a_signal(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 5, id="o1", tenant="acme")
        await waits(client, run)
        before, history = await run.describe(), await run.history()
        exported = await read_history(client, "o1")
        await moved_out(daemon)
        number = (await client.read_namespace()).shard_of("o1")
        keys = client.keys.shard(number)
        assert not await client.store.one(Call.plain("EXISTS", keys.run("o1"), keys.published("o1")))
        assert len(objects(tmp_path)) == 1

        found = await run.describe()
        assert found.hibernating is not None
        assert (found.status, found.tenant, found.attributes) == ("running", "acme", before.attributes)
        assert [wait.name for wait in found.waits_for] == ["approve"]
        assert await run.history() == history
        assert await run.published() == {"stage": "waits"}
        assert await read_history(client, "o1") == exported
        replay(app, await read_history(client, "o1"))
        assert not await client.runs(tenant="acme")
        with pytest.raises(sf.RunExists):
            await client.start(order, 5, id="o1", on_existing="reject")
        assert (await client.start(order, 5, id="o1")).created is False

        result = asyncio.create_task(run.result(20))
        await run.signal("approve", "ann")
        assert await result == "5 approved by ann"
        assert await sleeping(daemon) == 0
        assert [found.id for found in await client.runs(tenant="acme")] == ["o1"]


async def test_a_message_wakes_a_run_though_the_answer_of_the_move_was_lost(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 5, id="o1")
        await waits(client, run)
        one = daemon.owner._store.one

        async def twice(call: Call[Any], **options: Any) -> Any:
            """As the store does it when the connection is lost in between."""
            if call.script == "hibernate_runs":
                await one(call, **options)
            return await one(call, **options)

        monkeypatch.setattr(daemon.owner._store, "one", twice)
        await moved_out(daemon)
        monkeypatch.undo()
        await run.signal("approve", "ann")
        assert await run.result(20) == "5 approved by ann"


async def test_a_timer_wakes_its_run_in_time(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(reminder, 1.5, id="r1")
        await moved_out(daemon)
        described = await run.describe()
        assert [wait.kind for wait in described.waits_for] == ["timer"]
        assert described.waits_for[0].until is not None
        assert await run.result(20) == "reminded"
        took = [event async for event in run.events()]
        assert (took[-1][0] - took[0][0]).total_seconds() >= 1.5
        assert not objects(tmp_path) or daemon.owner.woken == 1


async def test_a_parent_and_its_child_may_both_sleep(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(parent, "c1", id="p1")
        await waits(client, client.run("c1"))
        await moved_out(daemon, 2)
        await client.run("c1").signal("approve", "ann")
        assert await run.result(20) == "parent of: 7 approved by ann"
        assert await sleeping(daemon) == 0


async def test_a_cancel_reaches_a_child_that_sleeps(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(parent, "c1", id="p1")
        await waits(client, client.run("c1"))
        await moved_out(daemon, 2)
        await run.cancel()
        with pytest.raises(sf.RunCancelled):
            await run.result(20)
        with pytest.raises(sf.RunCancelled):
            await client.run("c1").result(20)


async def test_questions_pauses_and_terminations_are_for_sleepers_too(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        desk = await client.start(counter, 5, id="desk")
        await moved_out(daemon)
        assert await desk.ask("take", 0, timeout=20) == 5
        await moved_out(daemon)
        await desk.pause(reason="lunch")
        await until(lambda: _has_status(desk, "paused"))
        await desk.resume()
        await until(lambda: _has_status(desk, "running"))
        await moved_out(daemon)
        await desk.terminate()
        with pytest.raises(sf.RunCancelled):
            await desk.result(20)


async def _has_status(run: sf.Run[Any], status: str) -> bool:
    return (await run.describe()).status == status


async def test_a_reducer_sleeps_too(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(doorman, 0, id="door")
        assert await run.ask("enter", timeout=20) == 1
        await moved_out(daemon)
        assert [wait.kind for wait in (await run.describe()).waits_for] == ["message"]
        assert await run.ask("enter", timeout=20) == 2


async def test_what_has_a_step_open_or_a_timer_that_is_nearly_due_stays(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=1.5, archive=url(tmp_path)) as (client, daemon):
        slow, soon_due = await client.start(slow_order, id="slow"), await client.start(reminder, 2.5, id="soon")
        late = await client.start(reminder, 3600, id="late")
        await until(lambda: _waits_for(slow, "step"))
        await until(lambda: _waits_for(soon_due, "timer"))
        await until(lambda: _waits_for(late, "timer"))
        await until(lambda: _hibernates(late))
        assert await soon_due.result(20) == "reminded"
        assert daemon.owner.woken == 0
        assert not (await slow.describe()).hibernating
        await slow.terminate()


async def _hibernates(run: sf.Run[Any]) -> bool:
    return (await run.describe()).hibernating is not None


async def _waits_for(run: sf.Run[Any], kind: str) -> bool:
    return any(wait.kind == kind for wait in (await run.describe()).waits_for)


async def test_a_shard_at_rest_is_not_looked_at_again(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=3600, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(reminder, 9999, id="r1")
        await waits(client, run)
        await checked(daemon)
        await daemon.hibernation.run_once()
        shards = daemon.owner.shards.values()
        [one] = [shard for shard in shards if shard.hibernate_at != float("inf")]
        assert one.number == (await client.read_namespace()).shard_of("r1")
        assert one.hibernate_at > daemon.owner.shards[one.number].acquired + 3_500_000, "when r1 has waited for an hour"


async def test_many_that_are_due_at_the_same_time_all_come_back(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        runs = await client.start_many(reminder, [(2.0,)] * 100)
        await moved_out(daemon, 100)
        for run in runs:
            assert await run.result(30) == "reminded"
        assert daemon.owner.woken == 100
        assert await sleeping(daemon) == 0


async def test_storage_that_is_down_delays_only_sleepers_and_says_so(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        asleep, due = await client.start(order, 1, id="o1"), await client.start(reminder, 1.0, id="r1")
        await waits(client, asleep)
        await moved_out(daemon, 2)
        get = Files.get
        monkeypatch.setattr(Files, "get", _away)
        await asleep.signal("approve", "ann")

        async def both_wait() -> bool:
            return daemon.owner.put_off.waits()[0] == 1 and daemon.waking.failing == 1

        await until(both_wait)
        found = await asleep.describe()
        assert found.hibernating is not None
        assert "the bucket is away" in found.waits_for[0].why
        other = await client.start(order, 2, id="o2")
        await waits(client, other)
        await other.signal("approve", "lee")
        assert await other.result(20) == "2 approved by lee"
        monkeypatch.setattr(Files, "get", get)
        assert await asleep.result(20) == "1 approved by ann"
        assert await due.result(20) == "reminded"


def _away(self: Files, name: str) -> bytes:
    raise OSError("the bucket is away")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
async def test_an_object_that_is_not_whole_is_named_and_nothing_is_lost(
    serve: Serve, tmp_path: Path, damage: str
) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        [path] = objects(tmp_path)
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(whole[:-3] + b"xyz")
        await run.signal("approve", "ann")

        async def says_so() -> bool:
            count, found = daemon.owner.put_off.waits()
            return count == 1 and path.name in found[0].error

        await until(says_so)
        with pytest.raises(ArchiveError, match=damage):
            await run.history()
        path.write_bytes(whole)
        assert await run.result(20) == "1 approved by ann"


@pytest.mark.parametrize("damage", ["missing", "damaged"])
async def test_a_terminate_ends_a_run_whose_object_is_lost(serve: Serve, tmp_path: Path, damage: str) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        CHARGED.clear()
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        [path] = objects(tmp_path)
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-3] + b"xyz")
        await run.signal("approve", "ann")
        await until(lambda: _says(daemon, path.name))
        await run.terminate("its history is gone")
        with pytest.raises(sf.RunCancelled, match=f"its history is gone; its history is lost: .*{damage}"):
            await run.result(20)
        found = await run.describe()
        assert (found.status, found.workflow, found.hibernating) == ("cancelled", "order", None)
        assert [one.id for one in await client.runs(status="cancelled", workflow="order")] == ["o1"]
        assert await sleeping(daemon) == 0
        shard = daemon.owner.shards[(await client.read_namespace()).shard_of("o1")]
        counts = shard.views.partials["runs"].workflows["order"]
        assert (counts.running, counts.stuck, counts.cancelled) == (0, 0, 1)
        assert CHARGED == [1], "no step ran again"
        again = await client.start(order, 2, id="o1", on_existing="new")
        await waits(client, again)
        await again.signal("approve", "lee")
        assert await again.result(20) == "2 approved by lee"


async def _says(daemon: Daemon, name: str) -> bool:
    count, found = daemon.owner.put_off.waits()
    return count == 1 and name in found[0].error


@pytest.mark.parametrize("told", [True, False])
async def test_the_parent_of_a_lost_child_is_told_if_the_id_says_who_it_is(
    serve: Serve, tmp_path: Path, told: bool
) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(parent, "" if told else "c1", id="p1")
        child = client.run(await child_of(client, "p1", 1))
        await waits(client, child)
        await waits(client, run)
        await moved_out(daemon, 2)
        for path in objects(tmp_path):
            if child.id.replace("~", "=7E") in path.name:
                path.unlink()
        await child.terminate()
        if told:
            with pytest.raises(sf.RunFailed, match="its history is lost"):
                await run.result(20)
        with pytest.raises(sf.RunCancelled) as raised:
            await child.result(20)
        assert ("its parent gets no outcome" in str(raised.value)) == (not told)
        assert (await run.describe()).status == ("failed" if told else "running")


async def test_storage_that_is_away_loses_no_run_that_is_terminated(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        monkeypatch.setattr(Files, "get", _away)
        done = await perform(client, Terminate(), "o1")
        assert "it hibernates" in done.text
        await until(lambda: _says(daemon, "the bucket is away"))
        assert await sleeping(daemon) == 1
        monkeypatch.undo()
        with pytest.raises(sf.RunCancelled):
            await run.result(20)
        names = [type(event).__name__ async for _, event in run.events()]
        assert "StepCompleted" in names, "with its history"


async def test_a_lost_run_stays_without_code_whenever_its_daemon_dies(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is back without its history, and its signal is recorded; who comes next doesn't begin it again."""
    async with serve(app, crash=True, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        objects(tmp_path)[0].unlink()
        await run.signal("approve", "ann")
        await until(lambda: _says(daemon, "is missing"))
        CHARGED.clear()
        [shard] = [shard for shard in daemon.owner.shards.values() if shard.put_off]
        await daemon.waking.wake_or_write_off(shard, "o1")  # and the terminate was lost
    async with serve(app) as (client, daemon):
        await until(lambda: _has_status(run, "stuck"))
        assert "its history is lost" in (await run.describe()).reason
        with pytest.raises(sf.NotRetried, match="its history is lost"):
            await run.retry()
        await run.terminate()
        with pytest.raises(sf.RunCancelled, match="its history is lost"):
            await run.result(20)
        assert CHARGED == []


async def test_a_write_that_fails_leaves_the_run_where_it_is(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await checked(daemon)
        put = Files.put
        monkeypatch.setattr(Files, "put", lambda self, name, data: _away(self, name))
        for shard in daemon.owner.shards.values():
            shard.hibernate_at = 0.0
        monkeypatch.setattr(daemon.hibernation, "after_ms", 1)
        await asyncio.sleep(0.01)
        await daemon.hibernation.run_once()
        assert await sleeping(daemon) == 0
        assert "the bucket is away" in str(daemon._troubles.current(stops=False))
        monkeypatch.setattr(Files, "put", put)
        await moved_out(daemon)
        await run.signal("approve", "ann")
        assert await run.result(20) == "1 approved by ann"


async def test_the_next_daemon_wakes_what_another_one_has_moved_out(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, crash=True, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        signalled, due = await client.start(order, 1, id="o1"), await client.start(reminder, 1.0, id="r1")
        await waits(client, signalled)
        await moved_out(daemon, 2)
    await signalled.signal("approve", "ann")
    async with serve(app) as (client, daemon):  # which has no such setting, and finds the archive in the namespace
        assert await signalled.result(20) == "1 approved by ann"
        assert await due.result(20) == "reminded"
        assert await sleeping(daemon) == 0


STEPS_OF_A_MOVE = ["before the object", "behind the object", "behind the verb"]


@pytest.mark.parametrize("where", STEPS_OF_A_MOVE)
async def test_a_daemon_may_die_between_any_two_steps_of_a_move(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    reached = asyncio.Event()
    async with serve(app, crash=True, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await checked(daemon)
        move, forget = daemon.hibernation._move, daemon.hibernation._forget

        async def never(*args: object) -> object:
            if where == "behind the verb":
                await forget(*args)  # type: ignore[arg-type]
            reached.set()
            await asyncio.Event().wait()

        if where == "before the object":
            monkeypatch.setattr(daemon.hibernation, "_move", never)
        else:
            monkeypatch.setattr(daemon.hibernation, "_forget", never)
        assert move
        daemon.hibernation.after_ms = 1
        await asyncio.sleep(0.01)
        for shard in daemon.owner.shards.values():
            shard.hibernate_at = 0.0
        moving = asyncio.create_task(daemon.hibernation.run_once())
        async with asyncio.timeout(10):
            await reached.wait()
        moving.cancel()
    assert len(objects(tmp_path)) == (0 if where == "before the object" else 1)
    async with serve(app) as (client, daemon):
        assert ((await run.describe()).hibernating is not None) == (where == "behind the verb")
        await run.signal("approve", "ann")
        assert await run.result(20) == "1 approved by ann"


async def test_a_daemon_may_die_between_the_wake_up_and_what_follows(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()
    async with serve(app, crash=True, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        put_back = daemon.waking._put_back

        async def never(*args: object) -> None:
            await put_back(*args)  # type: ignore[arg-type]
            reached.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(daemon.waking, "_put_back", never)
        await run.signal("approve", "ann")
        async with asyncio.timeout(10):
            await reached.wait()
    async with serve(app) as (client, daemon):
        assert await run.result(20) == "1 approved by ann"


async def test_a_bulk_of_messages_wakes_each_run_once(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(counter, 50, id="desk")
        await moved_out(daemon)
        answers = await asyncio.gather(*(run.ask("take", 1, timeout=20) for _ in range(50)))
        assert sorted(answers) == list(range(50)), "in the order in which they came"
        assert daemon.owner.woken == 1


async def test_objects_that_nobody_needs_are_deleted_and_others_are_not(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked_objects, "KEPT", 0.0)
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        awake, asleep = await client.start(order, 1, id="o1"), await client.start(order, 2, id="o2")
        await waits(client, awake)
        await waits(client, asleep)
        await moved_out(daemon, 2)
        [orphan] = [path for path in objects(tmp_path) if path.name.startswith("o2~")]
        lost = orphan.with_name(orphan.name.replace(".run", "")[:-8] + "0000abcd.run")
        lost.write_bytes(orphan.read_bytes())
        await awake.signal("approve", "ann")
        assert await awake.result(20)
        collected = daemon.hibernation.objects
        await collected.collect_once()
        assert sorted(path.name for path in objects(tmp_path)) == sorted([orphan.name, lost.name])
        folder = orphan.parent.name
        assert await collected.search(folder) == 0, "it is found for the first time"
        assert await collected.search(folder, twice=0.0) == 1
        assert objects(tmp_path) == [orphan]
        await asleep.signal("approve", "lee")
        assert await asleep.result(20) == "2 approved by lee"


async def test_it_can_be_listed_and_counted(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        first = await client.start(order, 1, id="o1")
        await waits(client, first)
        await client.start(reminder, 3600, id="r1")
        await moved_out(daemon, 2)
        page = await client.hibernating_runs()
        assert sorted((run.id, run.workflow, run.due is None) for run in page) == [
            ("o1", "order", True),
            ("r1", "reminder", False),
        ]
        assert [run.id for run in await client.hibernating_runs(workflow="reminder")] == ["r1"]
        one = await client.hibernating_runs(limit=1)
        rest = await client.hibernating_runs(limit=1, after=one.after)
        assert sorted(run.id for run in (*one, *rest)) == ["o1", "r1"]
        assert await client.hibernating() == 2


async def test_follow_and_wait_go_on_through_sleep(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        seen: list[str] = []

        async def follow() -> None:
            seen.extend([type(event).__name__ async for _, event in run.events(follow=True)])

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.1)
        await run.signal("approve", "ann")
        async with asyncio.timeout(20):
            await following
        assert seen == [type(event).__name__ async for _, event in run.events()]
        assert seen[-1] == "RunCompleted"


async def test_a_run_is_forked_from_where_it_sleeps(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        fork = await run.fork(id="o1-fork")
        await fork.signal("approve", "lee")
        assert await fork.result(20) == "1 approved by lee"
        assert (await run.describe()).hibernating is not None


async def test_signal_with_start_finds_the_sleeper(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        same = await client.signal_with_start(order, 9, id="o1", signal="approve", value="ann")
        assert await same.result(20) == "1 approved by ann"


async def test_ended_runs_are_forgotten_as_ever(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, hibernate_after=AFTER, archive=url(tmp_path)) as (client, daemon):
        run = await client.start(order, 1, id="o1")
        await waits(client, run)
        await moved_out(daemon)
        with pytest.raises(sf.RunError, match="cancel it first"):
            await client.forget("o1")
        await run.signal("approve", "ann")
        await run.result(20)
        assert await client.forget("o1")
        again = await client.start(order, 3, id="o1")
        assert again.created


async def test_a_run_with_large_payloads_stays_where_their_sweep_sees_it(serve: Serve, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"hibernate_after": AFTER, "large_payload": 4096, "archive": url(tmp_path)}
    async with serve(app, **settings) as (client, daemon):
        large = await client.start(noted, "x" * 5000, id="large")
        small = await client.start(noted, "x", id="small")
        for run in (large, small):
            await waits(client, run)
        await checked(daemon)
        await moved_out(daemon)
        assert [run.id for run in await client.runs()] == ["large"]
        assert [run.id for run in await client.hibernating_runs()] == ["small"]
        await large.signal("go", 1)
        assert await large.result(timeout=20) == 5000
