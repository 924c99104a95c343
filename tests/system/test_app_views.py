"""Views of apps beside the runs: crashes, takeovers, deploys, and code that raises or hangs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import streamflow as sf
from streamflow.client.views import forget_view
from streamflow.daemon import view_fill, view_folder
from streamflow.daemon.namespace_figures import put_app_views
from streamflow.embedded.server import EmbeddedServer
from streamflow.events import decode_transition
from streamflow.http import catalog
from streamflow.http.figures import Figures
from streamflow.screen.layout import status_lines
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from streamflow.store.kernel import view_position
from tests.support.serving import client, no_unknown_keys_are_left, running_daemon
from tests.support.shell import Shell
from tests.support.waiting import until

__all__ = ["client", "no_unknown_keys_are_left"]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_unknown_keys_are_left")]

FAST: dict[str, Any] = {"rollup": 0.02, "crash": False}


def make_app(aggregate: Any = None, **options: Any) -> sf.App:
    app = sf.App()

    @app.workflow
    async def paying(cents: int) -> int:
        sf.record("cents", cents, currency="eur" if cents % 2 else "usd")
        return cents

    chosen: dict[str, Any] = {"name": "paid", "by": ["currency"], **options}
    app.view(aggregate or sf.total("cents"), **chosen)
    app.view(sf.count("cents"), name="others")
    return app


async def pay(client: sf.Client, *cents: int) -> None:
    for one in cents:
        await (await client.start("paying", one)).result()


async def counted(client: sf.Client, events: int, name: str = "paid") -> sf.ViewReading:
    async def has_counted() -> bool:
        return name in await client.views() and (await client.view(name)).events == events

    await until(has_counted)
    return await client.view(name)


async def test_each_event_counts_once_however_often_daemons_crash(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    app = make_app()
    for number in range(4):
        async with running_daemon(app, embedded_server, namespace, **{**FAST, "crash": True}, dead_after=0.5):
            await pay(client, 1, 2, 3)
            if number % 2:
                await counted(client, 3 * (number + 1))
    async with running_daemon(app, embedded_server, namespace, **FAST):
        found = await counted(client, 12)
        assert {row.key["currency"]: row.value for row in found.rows} == {"eur": 16, "usd": 8}


async def test_shards_that_move_are_counted_on(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    app = make_app()
    async with running_daemon(app, embedded_server, namespace, **FAST):
        await pay(client, 1, 2, 3)
        async with running_daemon(app, embedded_server, namespace, **FAST):
            await pay(client, 1, 2, 3)
        await pay(client, 1, 2, 3)
        assert (await counted(client, 9)).sum() == 18


class Broken:
    """Raises for 13, while it is told to."""

    raises = True

    def zero(self) -> int:
        return 0

    def fold(self, state: int, event: sf.ViewEvent) -> int:
        value = int(getattr(event.event, "value", 0))
        if value == 13 and self.raises:
            raise ValueError("thirteen")
        return state + value

    def merge(self, one: int, other: int) -> int:
        return one + other


async def test_code_that_raises_stops_its_view_only_and_goes_on_after_a_deploy(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_daemon(make_app(Broken(), version="1"), embedded_server, namespace, **FAST, shards=1) as daemon:
        await pay(client, 1)
        await counted(client, 1)
        await pay(client, 13, 5)
        assert (await counted(client, 3, "others")).sum() == 3, "the other view goes on, and so do runs"
        assert (await client.view("paid")).events == 1

        async def is_said() -> bool:
            return "view paid" in daemon._troubles.current(stops=False)  # pyright: ignore[reportPrivateUsage]

        await until(is_said)
        said = daemon._troubles.current(stops=False)["view paid"]  # pyright: ignore[reportPrivateUsage]
        assert "does not count the events of shard 0" in said
        assert "ValueError: thirteen" in said
        assert "test_app_views.py" in said, "with its line"
    mended = Broken()
    mended.raises = False
    async with running_daemon(make_app(mended, version="1"), embedded_server, namespace, **FAST, shards=1):
        assert (await counted(client, 3)).sum() == 19


class Hanging(Broken):
    """Never returns for 13."""

    def fold(self, state: int, event: sf.ViewEvent) -> int:
        while getattr(event.event, "value", 0) == 13:
            pass
        return super().fold(state, event)


async def test_code_that_never_returns_is_interrupted_and_runs_go_on(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_folder, "CODE_SECONDS", 0.1)
    monkeypatch.setattr(view_folder, "MOST_HANGS", 1)
    async with running_daemon(make_app(Hanging()), embedded_server, namespace, **FAST, shards=1) as daemon:
        await pay(client, 1)
        await counted(client, 1)
        await pay(client, 13, 5)
        assert (await counted(client, 3, "others")).sum() == 3

        async def is_off() -> bool:
            said = daemon._troubles.current(stops=False).get("view paid", "")  # pyright: ignore[reportPrivateUsage]
            return "is off until this process is started again" in said and "test_app_views.py" in said

        await until(is_off)
        assert (await client.view("paid")).events == 1

    async def has_ended() -> bool:
        return not any(thread.name == "view paid" for thread in threading.enumerate())

    await until(has_ended)


async def test_a_changed_view_is_filled_beside_the_old_one(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    async with running_daemon(make_app(), embedded_server, namespace, **FAST):
        await pay(client, 1, 2)
        old = await counted(client, 2)
    async with running_daemon(make_app(sf.highest("cents")), embedded_server, namespace, **FAST):

        async def has_changed() -> bool:
            return (await client.view("paid")).version != old.version

        await until(has_changed)
        await pay(client, 7)
        found = await counted(client, 3)
        assert {row.key["currency"]: row.value for row in found.rows} == {"eur": 7, "usd": 2}
        assert found.counts_from is None, "the logs had everything"


async def test_a_view_says_from_when_it_counts_if_logs_were_trimmed(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = make_app()
    without.views.clear()
    async with running_daemon(without, embedded_server, namespace, **FAST, shards=1):
        await pay(client, 1, 2, 3)
    keys = client.keys.shard(0)
    entries = await client.store.one(Call.plain("XRANGE", keys.log, "-", "+"))
    first = [entry.decode() for entry, _ in entries][1]
    await client.store.one(Call.plain("HSET", keys.views, "trim", entries[0][0]))
    await client.store.one(Call.plain("XTRIM", keys.log, "MINID", first))
    monkeypatch.setattr(view_folder, "CUT_MS", 1)
    monkeypatch.setattr(view_fill, "SETTLE_MS", 10**9)  # what was before isn't counted here
    async with running_daemon(make_app(), embedded_server, namespace, **FAST, shards=1):
        await pay(client, 9)

        found = await counted(client, 2)
        assert found.sum() == 3 + 9
        assert found.counts_from is not None
        latest = max(decode_transition(data).at for data in entries[1][1].values())
        assert round(found.counts_from.timestamp() * 1000) == latest + 1
        assert found.unfilled == 1
        assert found.missed is None


async def test_what_a_view_has_not_counted_is_not_trimmed(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    """Its code fails, no daemon has it for a while, and the runs are forgotten: it counts all when it is back."""
    broken, mended, without = make_app(Broken(), version="1"), make_app(Broken(), version="1"), make_app()
    without.views.clear()
    small: dict[str, Any] = {**FAST, "shards": 1, "log_bytes": 2000}
    log = client.keys.shard(0).log
    async with running_daemon(broken, embedded_server, namespace, **small):
        await pay(client, 1)
        await counted(client, 1)
        await pay(client, 13, *range(20, 60))
        await counted(client, 42, "others")
    async with running_daemon(without, embedded_server, namespace, **small):
        await pay(client, *range(60, 80))
        run = await client.start("paying", 80)
        await run.result()
        assert await client.forget(run.id) == 1
        assert await client.store.one(Call.plain("XLEN", log)) >= 62
    Broken.raises = False
    try:
        async with running_daemon(mended, embedded_server, namespace, **small):
            found = await counted(client, 63)
            assert found.sum() == 14 + sum(range(20, 81))
            assert found.missed is None
            assert found.counts_from is None
            await counted(client, 63, "others")

            async def is_trimmed() -> bool:
                return await client.store.one(Call.plain("XLEN", log)) < 30

            await until(is_trimmed)
    finally:
        Broken.raises = True


async def test_what_was_trimmed_before_it_was_counted_is_named(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    """Also while a daemon has the view, and its code fails at an event."""
    small: dict[str, Any] = {**FAST, "shards": 1, "log_bytes": 2000, "group_bytes": 0}
    keys = client.keys.shard(0)

    async def is_beyond() -> bool:
        await pay(client, 2)
        return not await client.store.one(Call.plain("HEXISTS", keys.positions, view_position("paid")))

    async with running_daemon(make_app(Broken(), version="1"), embedded_server, namespace, **small):
        await pay(client, 1)
        await counted(client, 1)
        await pay(client, 13)
        await until(is_beyond)
        await pay(client, 5)

        async def is_said() -> bool:
            return (await client.view("paid")).missed is not None

        await until(is_said)
        found = await client.view("paid")
        assert found.missed is not None
        assert found.missed[0] <= found.missed[1]


async def test_a_view_that_is_removed_holds_no_log(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    async with running_daemon(make_app(), embedded_server, namespace, **FAST, shards=1):
        await pay(client, 1)
        await counted(client, 1)
        await counted(client, 1, "others")
    positions = client.keys.shard(0).positions
    assert await client.store.one(Call.plain("HLEN", positions)) == 2
    for name in ("paid", "others"):
        await forget_view(client.store, client.kernel, 1, name, 1, merged=True)
    assert await client.store.one(Call.plain("HLEN", positions)) == 0


async def test_a_view_is_counted_again_while_daemons_run(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    async with running_daemon(make_app(), embedded_server, namespace, **FAST):
        await pay(client, 1, 2)
        await counted(client, 2)
        shards = (await client.read_namespace()).shards
        assert await forget_view(client.store, client.kernel, shards, "paid", 1, merged=False) > 0
        await pay(client, 3)

        async def is_again() -> bool:
            return (await client.view("paid")).sum() == 6

        await until(is_again)
    assert await forget_view(client.store, client.kernel, shards, "paid", 1, merged=True) == shards
    with pytest.raises(sf.UnknownView, match="known views: others"):
        await client.view("paid")


async def test_a_view_that_is_removed_while_a_daemon_has_it_is_counted_again(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    async with running_daemon(make_app(), embedded_server, namespace, **FAST):
        await pay(client, 1, 2)
        await counted(client, 2)
        shards = (await client.read_namespace()).shards
        await forget_view(client.store, client.kernel, shards, "paid", 1, merged=True)

        async def is_again() -> bool:
            return "paid" in await client.views() and (await client.view("paid")).sum() == 3

        await until(is_again)


async def test_the_status_has_the_largest_keys(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    app = make_app()
    async with running_daemon(app, embedded_server, namespace, **FAST):
        await pay(client, 1, 2, 3)
        await counted(client, 3)
        await counted(client, 3, "others")
        status = await StatusCollector(client).collect()
        assert [(view.name, view.rows[0].key, view.rows[0].value) for view in status.app_views] == [
            ("others", {}, 3),
            ("paid", {"currency": "eur"}, 4),
        ]
        figures = Figures()
        put_app_views(figures, app.views, await client.store.one(Call.plain("HGETALL", client.keys.app_view_heads)))
        assert figures.values[catalog.VIEW_EVENTS] == {("others",): 3, ("paid",): 3}
        assert figures.values[catalog.VIEW_VALUE] == {
            ("others", ""): 3,
            ("paid", "currency=eur"): 4,
            ("paid", "currency=usd"): 2,
        }
        lines = [line.plain for line in status_lines(status, 120)]
        assert any(line.lstrip().startswith("paid") or " paid " in line for line in lines)
        assert any("currency=eur" in line for line in lines)


async def test_commands_print_views_and_remove_them(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shell = Shell(embedded_server.url, namespace)
    async with running_daemon(make_app(window="day"), embedded_server, namespace, **FAST):
        await pay(client, 1, 2, 3)
        await counted(client, 3)
        await counted(client, 3, "others")
        listed = await shell("view")
        assert [line.split()[0] for line in listed.splitlines()] == ["VIEW", "others", "paid"]
        printed = await shell("view", "paid")
        rows = [line.split() for line in printed.splitlines() if line.strip()]
        assert rows[0][0] == "PAID"
        assert rows[1:3] == [["eur", "4"], ["usd", "2"]]
        assert "counts 3 events from the beginning" in printed
        exact = await shell.data("view", "paid", "--by", "currency=usd")
        assert [(row["key"], row["value"]) for row in exact["windows"][0]["rows"]] == [({"currency": "usd"}, 2)]
        assert "known views: others, paid" in await shell("view", "pad", code=2)
        assert "has no label 'tenant'; it has: currency" in await shell("view", "paid", "--by", "tenant=x", code=2)
        assert "known views: others, paid" in await shell("views", "rebuild", "pad", code=2)
        assert "known views: others, paid" in await shell("views", "remove", "pad", code=2)
        assert "count view paid again" in await shell("views", "rebuild", "paid")
    assert (await shell.data("views", "remove", "paid"))["view"] == "paid"
    assert await shell.data("view") == [await shell.data("view", "others")]


async def test_an_app_without_views_starts_no_loop_and_stores_nothing(
    embedded_server: EmbeddedServer, namespace: str, client: sf.Client
) -> None:
    app = make_app()
    app.views.clear()
    async with running_daemon(app, embedded_server, namespace, **FAST) as daemon:
        await pay(client, 1)
        assert daemon.view_folders == []
        assert await client.views() == []
