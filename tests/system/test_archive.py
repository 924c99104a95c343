"""Ended runs go into the namespace's archive before they are deleted, and are read there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.archive import storage as storage_module
from streamflow.archive.storage import Files
from streamflow.client.histories import read_history, replay
from streamflow.daemon.daemon import Daemon
from streamflow.errors import ArchiveDamaged, ArchiveError
from streamflow.events import TimerSet
from streamflow.model.retention import RetentionRules
from streamflow.store.connection import Call
from tests.support.waiting import happened, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.step(retry=sf.NO_RETRY)
async def charge(order: str, works: bool) -> str:
    if not works:
        raise ConnectionError("the bank is away")
    return f"charged {order}"


@app.workflow
async def order(name: str, works: bool = True) -> str:
    sf.publish("stage", "charging")
    sf.set_attributes(customer=name)
    return await charge(name, works)


@app.workflow
async def parent(name: str) -> str:
    return await order(name)


@app.workflow
async def waits() -> None:
    await sf.sleep(3600)


def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/archive"


def objects(tmp_path: Path, kind: str) -> list[Path]:
    return sorted((tmp_path / "archive").rglob(f"*.{kind}"))


def everything_after(seconds: float) -> RetentionRules:
    return RetentionRules(seconds)


async def ended(client: sf.Client, *names: str, works: bool = True) -> list[sf.Run[str]]:
    runs = [await client.start(order, name, works, id=name, tenant="acme") for name in names]
    for run in runs:
        with contextlib.suppress(sf.RunFailed):
            await run.result(10)
    return runs


async def swept(client: sf.Client, daemon: Daemon) -> None:
    """Until no ended run is on the server any more."""

    async def none_left() -> bool:
        for shard in daemon.owner.shards.values():
            shard.forget_at = 0.0
        await daemon.retention.forget_once()
        return not [run for run in await client.runs(limit=100) if run.ended]

    await until(none_left)


async def test_what_a_sweep_deletes_is_in_the_archive_and_reads_as_before(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        [run] = await ended(client, "o1")
        before, history, events = await run.describe(), await run.history(), [one async for one in run.events()]
        exported = await read_history(client, "o1")
        await swept(client, daemon)
        assert not await client.runs(tenant="acme")
        found = await run.describe()
        assert found.archived
        assert not before.archived
        assert (found.status, found.result, found.attributes) == ("completed", "charged o1", {"customer": "o1"})
        assert await run.history() == history
        assert [one async for one in run.events()] == events
        assert [one async for one in run.events(follow=True)] == events
        assert await run.published() == {"stage": "charging"}
        assert await run.read("stage") == "charging"
        assert await client.run("o1").result(5) == "charged o1"
        assert await read_history(client, "o1") == exported
        replay(app, await read_history(client, "o1"))
        assert (await client.find("o1")).ids == ["o1"]


async def test_a_failed_run_has_its_cause_and_its_attempts_there(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        [run] = await ended(client, "bad", works=False)
        before = await run.describe()
        await swept(client, daemon)
        found = await run.describe()
        assert (found.error, found.cause, found.attempts) == (before.error, before.cause, before.attempts)
        assert "the bank is away" in found.error
        with pytest.raises(sf.RunFailed, match="the bank is away"):
            await run.result(5)
        [listed] = await client.archived_runs(error="bank is AWAY")
        assert (listed.id, listed.error) == ("bad", before.error)


async def test_a_run_is_forked_from_the_archive(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        [run] = await ended(client, "o1")
        await swept(client, daemon)
        fork = await run.fork(input=("o2",))
        assert await fork.result(10) == "charged o2"
        assert (await fork.describe()).forked_from == "o1"


async def test_a_restored_run_is_retried_and_archived_again(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        [run] = await ended(client, "bad", works=False)
        await swept(client, daemon)
        with pytest.raises(sf.RunNotFound, match="streamflow restore bad"):
            await run.retry()
        with pytest.raises(sf.RunNotFound, match="streamflow restore bad"):
            await run.signal("go")
        assert await run.stream_facts() is None
        daemon.retention._rules = everything_after(3600)
        restored = await client.restore("bad")
        assert not (await restored.describe()).archived
        assert [found.id for found in await client.runs(tenant="acme", attributes={"customer": "bad"})] == ["bad"]
        assert await client.archived_runs() == [], "it is on the server, too"
        await run.retry()
        with contextlib.suppress(sf.RunFailed):
            await run.result(10)
        again = await run.history()
        daemon.retention._rules = everything_after(0.001)
        await swept(client, daemon)
        assert len(objects(tmp_path, "run")) == 2, "its first end, and its second"
        assert await run.history() == again
        assert len(await client.archived_runs()) == 1


async def test_the_sweep_finds_what_was_restored_in_a_shard_at_rest(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        await ended(client, "o1")
        await swept(client, daemon)
        await daemon.retention.look_for_ended()
        await client.restore("o1")
        daemon.retention._sweeps = 0
        await daemon.retention.run_once()
        assert len(await client.runs()) == 1, "its shard had no ended run, and nothing was committed since"
        daemon.retention._sweeps = 59

        async def gone() -> bool:
            await daemon.retention.run_once()
            daemon.retention._sweeps = 59
            return not await client.runs()

        await until(gone)


async def test_the_id_is_free_again_and_the_earlier_run_is_still_read(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        [first] = await ended(client, "o1")
        old = await first.describe()
        await swept(client, daemon)
        daemon.retention._rules = everything_after(3600)
        second = await client.start(order, "other", id="o1")
        assert second.created
        assert await second.result(10) == "charged other"
        assert await client.run("o1").result(5) == "charged other", "the live one is read"
        assert await first.result(5) == "charged o1", "its handle is of the first"
        earlier = client.archived_run("o1", created=old.created)
        assert (await earlier.describe()).archived
        assert [one.created for one in await client.archived_runs()] == [old.created]
        with pytest.raises(sf.RunConflict, match="another run"):
            await client.restore("o1")
        daemon.retention._rules = everything_after(0.001)
        await swept(client, daemon)
        assert await client.run("o1").result(5) == "charged other", "the last one that had the id"
        assert await earlier.result(5) == "charged o1"
        await client.restore("o1", created=old.created)
        assert (await client.run("o1").describe()).created == old.created


async def test_what_an_archived_run_refuses_says_where_it_is(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        [run] = await ended(client, "o1")
        await swept(client, daemon)
        for refused in (run.signal("x"), run.ask("x"), run.cancel(), run.retry(), run.pause(), anext(run.stream())):
            with pytest.raises(sf.RunNotFound, match="streamflow restore o1"):
                await refused
        assert [value async for value in run.watch("stage")] == ["charging"]
        assert [value async for value in run.watch("nothing")] == []
        assert await run.stream_facts() is None
        with pytest.raises(sf.RunNotFound, match="no run nobody"):
            await client.run("nobody").stream_facts()


async def test_forget_deletes_from_the_archive_and_its_listing_too(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        await ended(client, "o1", "secret")
        await swept(client, daemon)
        assert await client.forget("secret")
        with pytest.raises(sf.RunNotFound):
            await client.run("secret").describe()
        assert [run.id for run in await client.archived_runs()] == ["o1"]
        left = [path for path in (tmp_path / "archive").rglob("*") if path.is_file() and "secret" in path.parent.name]
        assert left == []
        assert not await client.forget("secret")


async def test_archived_runs_are_listed_by_filters_and_in_pages(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        await ended(client, *(f"o{n}" for n in range(7)))
        await swept(client, daemon)
        await ended(client, "bad", works=False)
        await swept(client, daemon)
        everything = await client.archived_runs(limit=100)
        assert everything[0].id == "bad", "it was archived last"
        assert {run.id for run in everything} == {"bad", *(f"o{n}" for n in range(7))}
        assert everything.after == ""
        assert [run.id for run in await client.archived_runs(status="failed", workflow="order")] == ["bad"]
        assert [run.id for run in await client.archived_runs(attributes={"customer": "o3"}, since="1h")] == ["o3"]
        assert await client.archived_runs(tenant="nobody") == []
        assert await client.archived_runs(until="1h") == []
        seen: list[str] = []
        after = ""
        while True:
            page = await client.archived_runs(limit=3, after=after)
            seen += [run.id for run in page]
            if not (after := page.after):
                break
        assert seen == [run.id for run in everything]
        with pytest.raises(sf.UsageError, match="another listing"):
            await client.archived_runs(status="failed", after=(await client.archived_runs(limit=3)).after)


async def test_sweeps_at_the_same_time_archive_each_run_once(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        await ended(client, *(f"o{n}" for n in range(5)))
        for shard in daemon.owner.shards.values():
            shard.forget_at = 0.0
        await asyncio.gather(*(daemon.retention.forget_once() for _ in range(3)))
        await swept(client, daemon)
        archive = (await client._needed_archive()).archive
        listed = [entry.run_id async for _, entries in archive.entries() for entry in entries]
        assert sorted(listed) == [f"o{n}" for n in range(5)]


async def test_purge_archives_before_the_time(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=url(tmp_path) + "/") as (client, _):
        assert await client._archived_runs() is await client._archived_runs()
        runs = await ended(client, *(f"o{n}" for n in range(10)))
        assert all(await asyncio.gather(*(client.purge(run.id) for run in runs)))
        assert len(objects(tmp_path, "idx")) == 1, "what is archived at about the same time is listed together"
        assert (await client.run("o7").describe()).archived
        assert not await client.purge("o7")
        slow = await client.start(waits)
        with pytest.raises(sf.RunError, match="only ended runs"):
            await client.purge(slow.id)


async def test_without_an_archive_nothing_is_purged(serve: Serve) -> None:
    async with serve(app) as (client, _):
        await ended(client, "o1")
        with pytest.raises(sf.UsageError, match="has no archive"):
            await client.purge("o1")
        with pytest.raises(sf.UsageError, match="has no archive"):
            await client.archived_runs()
        assert not (await client.run("o1").describe()).archived


async def test_rules_keep_runs_by_workflow_and_status(serve: Serve) -> None:
    rules = "*:failed=30d, waits=keep, parent:completed=1h"
    async with serve(app, retention=0.001, retention_rules=rules) as (client, daemon):
        await ended(client, "good")
        await ended(client, "bad", works=False)
        await (await client.start(parent, "o9", id="p")).result(10)
        slow = await client.start(waits, id="slow")
        await happened(slow, TimerSet)
        await slow.cancel()
        with contextlib.suppress(sf.RunCancelled):
            await slow.result(10)

        async def only_those() -> bool:
            await daemon.retention.forget_once()
            return {run.id for run in await client.runs()} == {"bad", "p", "slow"}

        await until(only_those)


async def test_a_week_later_it_is_in_the_archive(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=url(tmp_path)) as (client, daemon):
        [run] = await ended(client, "o1")
        await daemon.retention.run_once()
        assert not (await run.describe()).archived

        class Later:
            def __init__(self, clock: Any) -> None:
                self._clock = clock

            def now_ms(self) -> int:
                return self._clock.now_ms() + 7 * 86_400_000 + 1000

        daemon.retention._clock = Later(daemon.retention._clock)  # type: ignore[assignment]
        for shard in daemon.owner.shards.values():
            shard.forget_at = 0.0
        await daemon.retention.forget_once()
        assert (await run.describe()).archived


# --- storage that fails -----------------------------------------------------------------------------------------------


class Failing:
    """A storage that does what is said, in front of a directory."""

    def __init__(self, url: str) -> None:
        self.files = Files(url)
        self.fails: Callable[[str], None] = lambda _: None

    def put(self, name: str, data: bytes) -> None:
        self.fails(name)
        self.files.put(name, data)

    def get(self, name: str) -> bytes | None:
        self.fails(name)
        return self.files.get(name)

    def names(self, folder: str) -> list[str]:
        self.fails(folder)
        return self.files.names(folder)

    def remove(self, name: str) -> None:
        self.fails(name)
        self.files.remove(name)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failing:
    storage = Failing(url(tmp_path))
    monkeypatch.setattr(storage_module, "open_storage", lambda _: storage)
    return storage


def raises(error: Exception) -> Callable[[str], None]:
    def fails(_: str) -> None:
        raise error

    return fails


async def test_storage_that_is_down_keeps_runs_and_is_named(serve: Serve, tmp_path: Path, failing: Failing) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        runs = await ended(client, "o1", "o2")
        failing.fails = raises(ConnectionError("refused by s3cret-host"))

        async def named() -> bool:
            assert not await daemon.retention.forget_once()
            return "archive" in daemon._troubles.current(stops=False)

        await until(named)
        assert len(await client.runs()) == 2, "they stay"
        assert "is not written, so ended runs stay" in daemon._troubles.current(stops=False)["archive"]
        assert await (await client.start(order, "o3", id="o3")).result(10) == "charged o3", "all else goes on"
        with pytest.raises(ArchiveError, match="can't be used"):
            await client.purge("o1")
        with pytest.raises(ArchiveError, match="can't be used"):
            await client.forget("o1")
        assert not (await runs[0].describe()).archived
        failing.fails = lambda _: None
        await swept(client, daemon)
        assert "archive" not in daemon._troubles.current(stops=False)
        assert (await runs[0].describe()).archived


async def test_storage_that_hangs_blocks_nobody(serve: Serve, tmp_path: Path, failing: Failing) -> None:
    goes_on = threading.Event()
    hung = threading.Event()

    def hangs(_: str) -> None:
        hung.set()
        goes_on.wait(30)

    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        archive = await daemon.retention._archiving.current()
        assert archive is not None
        archive._storage._timeout = 0.2
        [run] = await ended(client, "o1")
        failing.fails = hangs
        sweep = asyncio.create_task(until_named(daemon))
        try:
            await until(lambda: returned(hung.is_set()))
            assert await (await client.start(order, "o2", id="o2")).result(10) == "charged o2", "all else goes on"
            await sweep
            assert "no answer within 0.2 s" in daemon._troubles.current(stops=False)["archive"]
            await until(lambda: returned(daemon._beat().hung > 0))
            assert not (await run.describe()).archived
        finally:
            goes_on.set()
        failing.fails = lambda _: None
        archive._storage._timeout = 10.0
        await swept(client, daemon)
        await until(lambda: returned(daemon._beat().hung == 0))


async def test_storage_that_works_again_is_used_though_calls_never_return(
    serve: Serve, tmp_path: Path, failing: Failing
) -> None:
    goes_on, hung = threading.Event(), list[str]()

    def hangs(name: str) -> None:
        hung.append(name)
        goes_on.wait(60)

    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        archive = await daemon.retention._archiving.current()
        assert archive is not None
        archive._storage._timeout = 0.2
        await ended(client, *(f"o{number}" for number in range(storage_module.AT_ONCE)))
        failing.fails = hangs
        try:
            while len(hung) < storage_module.AT_ONCE:
                await daemon.retention.run_once()
            failing.fails = lambda _: None
            archive._storage._timeout = 10.0
            await swept(client, daemon)
            assert daemon._beat().hung >= storage_module.AT_ONCE, "and those have not returned"
            assert len(await client.archived_runs()) == storage_module.AT_ONCE
        finally:
            goes_on.set()


async def returned(value: bool) -> bool:
    return value


async def until_named(daemon: Daemon) -> None:
    async def named() -> bool:
        await daemon.retention.forget_once()
        return "archive" in daemon._troubles.current(stops=False)

    await until(named)


class Died(Exception):
    pass


async def test_who_dies_between_writing_and_deleting_writes_once_more(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what two daemons do after a takeover: the same runs are written by both, and read once."""
    settings: dict[str, Any] = {"retention": 0.001, "archive": url(tmp_path)}
    async with serve(app, crash=True, **settings) as (client, daemon):
        await ended(client, "o1", "o2")

        async def dies(*_: Any) -> tuple[int, int]:
            raise Died

        monkeypatch.setattr(daemon.retention, "_forget", dies)

        async def written() -> bool:
            with contextlib.suppress(Died):
                await daemon.retention.forget_once()
            return bool(objects(tmp_path, "run"))

        await until(written)
        assert len(await client.runs()) == 2, "what is there is here, too"
    async with serve(app, **settings) as (client, daemon):
        await swept(client, daemon)
        assert len(objects(tmp_path, "run")) == 2, "the same objects"
        assert len(objects(tmp_path, "idx")) > 1, "one of them was listed twice"
        assert sorted(run.id for run in await client.archived_runs()) == ["o1", "o2"]


async def test_a_damaged_object_harms_its_run_only(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(app, retention=0.001, archive=url(tmp_path)) as (client, daemon):
        await ended(client, "o1", "o2")
        await swept(client, daemon)
        [damaged] = [path for path in objects(tmp_path, "run") if path.parent.name == "o1"]
        damaged.write_bytes(damaged.read_bytes()[:-3])
        with pytest.raises(ArchiveDamaged, match="is damaged"):
            await client.run("o1").describe()
        assert (await client.run("o2").describe()).archived
        for index in objects(tmp_path, "idx"):
            index.write_bytes(b"garbage")
        assert await client.archived_runs() == []
        assert "left out of listings" in caplog.text
        assert await client.forget("o1"), "what is damaged can be deleted"


async def test_a_new_daemon_without_the_setting_archives_too(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=url(tmp_path)) as (client, _):
        await ended(client, "o1")
    async with serve(app, retention=0.001) as (client, daemon):
        await swept(client, daemon)
        assert (await client.run("o1").describe()).archived
    async with serve(app, retention=0.001, archive="none") as (client, daemon):
        await ended(client, "o2")
        await swept(client, daemon)
        assert len(objects(tmp_path, "run")) == 1


async def test_what_is_no_run_of_a_damaged_record_stays(serve: Serve, tmp_path: Path) -> None:
    async with serve(app, archive=url(tmp_path)) as (client, daemon):
        await ended(client, "o1", "o2")
        keys = client.keys.shard((await client.read_namespace()).shard_of("o1"))
        await client.store.one(Call.plain("DEL", keys.published("o1")))
        await client.store.one(Call.plain("SET", keys.published("o1"), "x"))
        daemon.retention._rules = everything_after(0.001)

        async def only_the_damaged_one() -> bool:
            for shard in daemon.owner.shards.values():
                shard.forget_at = 0.0
            await daemon.retention.forget_once()
            return [run.id for run in await client.runs()] == ["o1"]

        await until(only_the_damaged_one)
        assert [path.parent.name for path in objects(tmp_path, "run")] == ["o2"]
        await client.store.one(Call.plain("DEL", keys.published("o1")))


async def test_a_client_may_reach_the_archive_elsewhere(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(app, archive=url(tmp_path)) as (client, _):
        await ended(client, "o1")
        await client.purge("o1")
        (tmp_path / "archive").rename(tmp_path / "mounted")
        with pytest.raises(ArchiveError, match="is not there any more"):
            await client.run("o1").describe()
        monkeypatch.setenv("STREAMFLOW_ARCHIVE", f"file://{tmp_path}/mounted")
        monkeypatch.setenv("STREAMFLOW_REDIS", client.store.url)
        async with sf.connect(namespace=client.namespace) as other:
            assert (await other.run("o1").describe()).archived
