"""A new version of a view is filled with what the logs don't have any more: each event once, whatever happens to runs,
daemons and storage meanwhile."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import streamflow as sf
from streamflow.archive.storage import Files
from streamflow.daemon import view_fill, view_folder
from streamflow.daemon.view_fill import ViewFill
from streamflow.embedded.server import EmbeddedServer
from streamflow.store.connection import Call
from tests.support.serving import client, no_unknown_keys_are_left, running_daemon
from tests.support.waiting import until

__all__ = ["client", "no_unknown_keys_are_left"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_unknown_keys_are_left")]

SHARDS = 2


@pytest.fixture(autouse=True)
def clocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """All daemons of these tests have one clock, so nothing has to be waited for."""
    monkeypatch.setattr(view_folder, "CUT_MS", 1)
    monkeypatch.setattr(view_fill, "SETTLE_MS", 0)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"rollup": 0.02, "crash": False, "shards": SHARDS, "archive": f"file://{tmp_path}/archive"}


def make_app(*, with_view: bool = True, fails: bool = False) -> sf.App:
    app = sf.App()

    @app.workflow
    async def paying(cents: int) -> int:
        sf.record("cents", cents)
        await sf.sleep(0.001)
        if cents > 500 and fails:
            raise ValueError("too much")
        sf.record("cents", 1000)
        return cents

    if with_view:
        app.view(sf.total("cents"), name="paid", by=["workflow"])
    return app


async def pay(client: sf.Client, *cents: int) -> None:
    for one in cents:
        run = await client.start("paying", one, id=f"pay-{one}")
        try:
            await run.result()
        except sf.RunFailed:
            assert one > 500


async def purge(client: sf.Client, *cents: int) -> None:
    for one in cents:
        await client.purge(f"pay-{one}")


async def trim(client: sf.Client, *, half: bool = False) -> None:
    """Remove all that the logs have, as a daemon does after a day; or the older half."""
    for number in range(SHARDS):
        keys = client.keys.shard(number)
        entries = await client.store.one(Call.plain("XRANGE", keys.log, "-", "+"))
        if half:
            entries = entries[: len(entries) // 2]
        if entries:
            last = entries[-1][0]
            await client.store.one(Call.plain("HSET", keys.views, "trim", last))
            await client.store.one(Call.plain("XDEL", keys.log, *(entry for entry, _ in entries)))


async def filled(client: sf.Client, runs: int) -> sf.ViewReading:
    async def is_filled() -> bool:
        if "paid" not in await client.views():
            return False
        found = await client.view("paid")
        return not found.unfilled and found.earlier == runs

    await until(is_filled)
    return await client.view("paid")


async def counted(client: sf.Client, events: int) -> sf.ViewReading:
    async def has_counted() -> bool:
        return "paid" in await client.views() and (await client.view("paid")).events == events

    await until(has_counted)
    return await client.view("paid")


async def before_the_view(embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: Any) -> None:
    """Runs 1 to 6, of which 1 to 3 are in the archive, and nothing is in the logs."""
    async with running_daemon(make_app(with_view=False), embedded_server, namespace, **settings):
        await pay(client, 1, 2, 3, 4, 5, 6)
        await purge(client, 1, 2, 3)
    await trim(client)


@asynccontextmanager
async def held_logs(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: Any
) -> AsyncGenerator[None]:
    """A daemon without the view, and a group that reads nothing."""
    async with running_daemon(make_app(with_view=False), embedded_server, namespace, **settings):
        async with client.events("holding"):
            pass
        yield


async def test_a_view_counts_what_is_on_the_server_and_in_the_archive(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: dict[str, Any]
) -> None:
    await before_the_view(embedded_server, namespace, client, settings)
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        found = await filled(client, 6)
        assert (found.events, found.sum()) == (12, 6021)
        assert [row.key for row in found.rows] == [{"workflow": "paying"}]
        assert found.counts_from is not None
        await pay(client, 7)
        assert (await counted(client, 14)).sum() == 7028
        assert (await client.view("paid")).earlier == 6


async def test_what_the_log_still_has_of_archived_runs_counts_once(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: dict[str, Any]
) -> None:
    """A group holds the logs up, so they have entries of runs that are in the archive, or on the server."""
    async with held_logs(embedded_server, namespace, client, settings):
        await pay(client, 1, 2, 3, 4, 5, 6)
        await purge(client, 1, 2, 3, 6)
    await trim(client, half=True)
    left = [await client.store.one(Call.plain("XLEN", client.keys.shard(n).log)) for n in range(SHARDS)]
    assert sum(left) >= 6
    async with running_daemon(make_app(), embedded_server, namespace, **settings):

        async def is_filled() -> bool:
            if "paid" not in await client.views():
                return False
            found = await client.view("paid")
            return found.events >= 12 and not found.unfilled

        await until(is_filled)
        found = await client.view("paid")
        assert (found.events, found.sum()) == (12, 6021)
        await client.remove_group("holding")


async def test_a_crash_at_any_portion_changes_nothing(
    embedded_server: EmbeddedServer,
    namespace: str,
    client: sf.Client,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await before_the_view(embedded_server, namespace, client, settings)
    monkeypatch.setattr(view_fill, "TRANSITIONS", 1)
    stored: list[str] = []
    fill = view_folder.ViewFolder.fill

    async def fill_once(*args: Any) -> bool:
        """Each daemon stores one portion that has runs, and then no more."""
        runs = args[3]
        if runs and stored:
            return False
        done = await fill(*args)
        stored.extend(run.run_id for run in runs if done)
        return done

    monkeypatch.setattr(view_folder.ViewFolder, "fill", fill_once)
    seen: list[str] = []
    crashing: dict[str, Any] = {**settings, "crash": True, "dead_after": 0.3}
    for _ in range(5):
        stored.clear()
        async with running_daemon(make_app(), embedded_server, namespace, **crashing):

            async def has_stored() -> bool:
                return bool(stored)

            await until(has_stored)
            seen += stored
    assert len(set(seen)) >= 4, "each daemon went on where the one before was"
    monkeypatch.undo()
    monkeypatch.setattr(view_fill, "SETTLE_MS", 0)
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        found = await filled(client, 6)
        assert (found.events, found.sum()) == (12, 6021)


async def test_a_run_that_is_archived_meanwhile_counts_once(
    embedded_server: EmbeddedServer,
    namespace: str,
    client: sf.Client,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some go before their records are read, the others behind it, and one comes back."""
    await before_the_view(embedded_server, namespace, client, settings)
    records, archive = ViewFill._count_records, ViewFill._count_archive
    moved = False

    async def count_records(*args: Any) -> None:
        nonlocal moved
        if not moved:
            moved = True
            await purge(client, 4)
        await records(*args)

    async def count_archive(*args: Any) -> None:
        if args[1]:
            for number in (5, 6):
                if not (await client.run(f"pay-{number}").describe()).archived:
                    await purge(client, number)
            if (await client.run("pay-1").describe()).archived:
                await client.restore("pay-1")
        await archive(*args)

    monkeypatch.setattr(ViewFill, "_count_records", count_records)
    monkeypatch.setattr(ViewFill, "_count_archive", count_archive)
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        found = await filled(client, 6)
        assert (found.events, found.sum()) == (12, 6021)


async def test_what_a_restored_run_does_later_is_counted_from_the_log(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: dict[str, Any]
) -> None:
    async with running_daemon(make_app(with_view=False, fails=True), embedded_server, namespace, **settings):
        await pay(client, 501)
        await purge(client, 501)
    await trim(client)
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        assert (await filled(client, 1)).sum() == 501
        await client.restore("pay-501")
        await client.run("pay-501").retry()
        assert await client.run("pay-501").result() == 501
        assert (await counted(client, 2)).sum() == 1501
        await client.purge("pay-501")
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        assert (await counted(client, 2)).sum() == 1501


async def test_storage_that_is_down_delays_the_fill_only_and_is_named(
    embedded_server: EmbeddedServer,
    namespace: str,
    client: sf.Client,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await before_the_view(embedded_server, namespace, client, settings)
    names, is_down = Files.names, True

    def failing(files: Files, folder: str) -> list[str]:
        if is_down:
            raise OSError("the disk is gone")
        return names(files, folder)

    monkeypatch.setattr(Files, "names", failing)
    async with running_daemon(make_app(), embedded_server, namespace, **settings) as daemon:
        troubles = daemon._troubles

        async def is_named() -> bool:
            return "view paid" in troubles.current(stops=False)

        await until(is_named)
        assert "is not filled with what happened before" in troubles.current(stops=False)["view paid"]
        assert "the disk is gone" in troubles.current(stops=False)["view paid"]
        await pay(client, 7)  # runs go on, and what they do is counted
        found = await counted(client, 8)
        assert (found.earlier, found.sum()) == (3, 4 + 5 + 6 + 7 + 4000)
        assert found.unfilled == SHARDS
        is_down = False
        for trouble in troubles._all.values():
            trouble.until = 0.0
        assert (await filled(client, 6)).sum() == 7028


async def test_each_run_that_had_an_id_counts_once(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: dict[str, Any]
) -> None:
    """Two are in the archive, one of them twice, and the third is on the server."""
    async with running_daemon(make_app(with_view=False), embedded_server, namespace, **settings):
        await pay(client, 1)
        await client.purge("pay-1")
        await client.restore("pay-1")
        await client.purge("pay-1")
        await pay(client, 1)
        await client.purge("pay-1")
        await pay(client, 1)
    await trim(client)
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        assert (await filled(client, 3)).sum() == 3003


async def test_without_an_archive_the_records_of_the_server_are_counted(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, settings: dict[str, Any]
) -> None:
    del settings["archive"]
    async with running_daemon(make_app(with_view=False), embedded_server, namespace, **settings):
        await pay(client, 4, 5)
    await trim(client)
    async with running_daemon(make_app(), embedded_server, namespace, **settings):
        assert (await filled(client, 2)).sum() == 2009
