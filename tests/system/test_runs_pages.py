"""Listings page by page: each run once, whatever starts meanwhile; by time of creation, and without children."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import streamflow as sf
from streamflow.client import listing
from streamflow.client.listing import RunPage
from streamflow.errors import UsageError
from streamflow.store.connection import Call
from streamflow.store.node import Node
from streamflow.testing import Sandbox
from tests.support.shell import Shell
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def waits() -> None:
    sf.set_attributes(kind="waiting")
    await sf.signal("go")


@app.workflow
async def fails(n: int) -> None:
    raise ValueError("odd" if n % 2 else "even")


@app.workflow
async def parent() -> None:
    await waits()


async def pages(client: sf.Client, limit: int, *, after: str = "", **filters: Any) -> list[RunPage]:
    found = [await client.runs(limit=limit, after=after, **filters)]
    while found[-1].after:
        found.append(await client.runs(limit=limit, after=found[-1].after, **filters))
    return found


async def said_beside(shell: Shell, *words: str) -> str:
    """What `runs` says on stderr."""
    _, said = await shell._call(("runs", *words), 0, "")  # pyright: ignore[reportPrivateUsage]
    return said


def ids(found: list[RunPage]) -> list[str]:
    return [run.id for page in found for run in page]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"status": "running"},
        {"workflow": "waits", "sort": "changed"},
        {"tenant": "acme"},
        {"attributes": {"kind": "waiting"}},
    ],
    ids=["all", "status", "workflow", "tenant", "attribute"],
)
@pytest.mark.parametrize("limit", [1, 7, 30, 100])
async def test_each_run_is_in_one_page(serve: Serve, filters: dict[str, Any], limit: int) -> None:
    async with serve(app, shards=3) as (client, _):
        names = [f"r-{n:02}" for n in range(30)]
        for name in names:
            await client.start(waits.options(id=name, tenant="acme"))

        async def have_begun() -> bool:
            return len(await client.runs(attributes={"kind": "waiting"}, limit=100)) == 30

        await until(have_begun)
        whole = await client.runs(limit=100, **filters)
        assert not whole.after
        assert sorted(run.id for run in whole) == names
        first = await client.runs(limit=limit, **filters)
        for n in range(5):
            await client.start(waits.options(id=f"later-{n}", tenant="acme"))
        rest = await pages(client, limit, after=first.after, **filters) if first.after else []
        assert ids([first, *rest]) == [run.id for run in whole], "what has started since is in no later page"


async def test_times_and_roots_choose_by_creation(serve: Serve) -> None:
    async with serve(app, shards=3) as (client, _):
        shell = Shell(client.store.url, client.namespace)
        for n in range(4):
            await client.start(parent, id=f"p{n}")

        async def have_children() -> bool:
            return len(await client.runs()) == 8

        await until(have_children)
        created = sorted(run.created for run in await client.runs(roots=True))
        assert sorted(run.id for run in await client.runs(roots=True)) == ["p0", "p1", "p2", "p3"]
        middle = created[2]
        more: list[dict[str, Any]] = [{}, {"status": "running"}, {"workflow": "parent"}]
        for filters in more:
            chosen: dict[str, Any] = {"roots": True, **filters}
            newer = await client.runs(since=middle, **chosen)
            older = await client.runs(until=middle, **chosen)
            assert all(run.created >= middle for run in newer)
            assert all(run.created < middle for run in older)
            assert len(newer) + len(older) == 4
        assert not await client.runs(since=datetime.now(UTC) + timedelta(hours=1))
        assert len(await client.runs(since="1h")) == 8
        assert not await client.runs(until="1h")
        rows = await shell.data("runs", "--since", "1h", "--roots")
        assert {row["run_id"] for row in rows} == {"p0", "p1", "p2", "p3"}
        assert "4 of 8 runs looked at" in await said_beside(shell, "--roots")
        assert "error: since: 'soon' is not a time" in await shell("runs", "--since", "soon", code=2)
        unknown = "no daemon has registered workflow nosuch. Known workflows: "
        for words in ((), ("--hibernating",), ("--json",)):
            assert unknown in await said_beside(shell, *words, "--workflow", "nosuch")
        assert unknown in await shell("cancel", "--workflow", "nosuch", "--yes")


async def test_a_page_keeps_the_times_of_the_first_one(serve: Serve) -> None:
    async with serve(app, shards=3) as (client, _):
        for n in range(6):
            await client.start(waits, id=f"r{n}")
        first = await client.runs(since="1h", limit=4)
        second = await client.runs(since="1s", limit=4, after=first.after)
        assert len(first) == 4
        assert len(second) == 2, "an hour before the first page, whatever is given now"
        with pytest.raises(UsageError, match="another listing"):
            await client.runs(limit=4, after=first.after)


async def test_a_filter_says_what_it_looked_at(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(app, shards=3) as (client, _):
        for n in range(20):
            with pytest.raises(sf.RunFailed):
                await (await client.start(fails, n, id=f"f-{n:02}")).result(10)
        found = await client.runs(error="even", limit=100)
        assert (len(found), found.looked_at, found.after) == (10, 20, "")
        assert (await client.runs(limit=100)).looked_at == 20
        some = await client.runs(error="even", limit=3)
        assert (len(some), some.looked_at) == (3, 6)
        monkeypatch.setattr(listing, "MAX_SCANNED", 8)
        found = await client.runs(error="odd", limit=5)
        assert (len(found), found.looked_at) == (4, 8), "it stops there"
        assert sorted(ids(await pages(client, 5, error="odd"))) == [f"f-{n:02}" for n in range(1, 20, 2)]
        shell = Shell(client.store.url, client.namespace)
        said = await said_beside(shell, "--error", "odd", "--limit", "5")
        assert "4 of 8 runs looked at\nnext page: --next " in said
        after = said.split()[-1]
        rows = await shell.data("runs", "--error", "odd", "--limit", "5", "--next", after)
        assert [row["run_id"] for row in rows] == ["f-11", "f-09", "f-07", "f-05"]


async def test_an_order_that_the_server_does_not_keep_is_refused(serve: Serve) -> None:
    async with serve(app) as (client, _):
        by_change: list[dict[str, Any]] = [{}, {"status": "failed"}, {"workflow": "waits"}]
        for filters in by_change:
            with pytest.raises(UsageError, match="can be sorted by created where"):
                await client.runs(sort="created", **filters)
        by_start: list[dict[str, Any]] = [{"tenant": "a"}, {"attributes": {"kind": "waiting"}}, {"status": "pending"}]
        for filters in by_start:
            assert await client.runs(sort="created", **filters) == []
            with pytest.raises(UsageError, match="can't be sorted by changed where"):
                await client.runs(sort="changed", **filters)
        with pytest.raises(UsageError, match="created or changed"):
            await client.runs(sort="name")


async def test_the_sandbox_has_the_same_pages() -> None:
    async with Sandbox(app) as sandbox:
        for n in range(9):
            await sandbox.start(waits, id=f"r{n}")
            await sandbox.sleep(1)
        whole = [run.id for run in await sandbox.runs()]
        assert whole == [f"r{n}" for n in reversed(range(9))]
        found = [await sandbox.runs(limit=4)]
        while found[-1].after:
            found.append(await sandbox.runs(limit=4, after=found[-1].after))
        assert [len(page) for page in found] == [4, 4, 1]
        assert ids(found) == whole
        assert await sandbox.runs(since="1h", roots=True) == await sandbox.runs()
        assert [run.id for run in await sandbox.runs(since="3.5s")] == ["r8", "r7", "r6"]
        assert await sandbox.runs(until="1h") == []
        with pytest.raises(UsageError):
            await sandbox.runs(sort="created")


async def test_a_listing_reads_no_more_of_workflows_than_names(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they take and show, with the schemas, is up to 16 KB for each parameter."""
    async with serve(app) as (client, _):
        await client.start(waits.options(id="r"))
        read: list[str] = []
        send = Node.send

        async def noted(
            store: Node, calls: Sequence[Call[Any]], patience: float | None = None, **options: bool
        ) -> list[Any]:
            read.extend(str(call.args[0]) for call in calls if client.keys.workflows in call.args)
            return await send(store, calls, patience, **options)

        monkeypatch.setattr(Node, "send", noted)
        assert ids([await client.runs()]) == ["r"]
        assert read == ["HKEYS"]
