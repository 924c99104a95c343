"""Runs by the beginning of their ids: on a real server, by a bounded search over all shards."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamflow as sf
from streamflow.client import listing
from streamflow.client.listing import FoundRuns, _depth  # pyright: ignore[reportPrivateUsage]
from streamflow.errors import InvalidName
from streamflow.store.connection import Call
from tests.support.shell import Shell
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def waits() -> str:
    sf.publish("stage", "here")
    (await sf.question("price")).answer(1)
    while not await sf.signal("go", bool):
        ...
    return "went"


@app.workflow
async def parent(children: int) -> None:
    await sf.gather(*(waits() for _ in range(children)))


@app.workflow
async def fails() -> None:
    raise ValueError("no")


async def test_a_whole_id_is_found_alone_whatever_begins_with_it(serve: Serve) -> None:
    async with serve(app) as (client, _):
        for run_id in ("r", "r-1", "r-2", "x-1"):
            await client.start(waits, id=run_id)
        assert await client.find("r") == FoundRuns(["r"], 1, 1)
        assert await client.find("r-") == FoundRuns(["r-2", "r-1"], 4, 4)
        assert await client.find("x") == FoundRuns(["x-1"], 4, 4)
        assert await client.find("y") == FoundRuns([], 4, 4)
        with pytest.raises(InvalidName):
            await client.find("-")


async def test_a_parent_is_found_in_front_of_its_children(serve: Serve) -> None:
    async with serve(app, shards=3) as (client, _):
        await client.start(parent, 9, id="3f9a11")

        async def have_begun() -> bool:
            return len(await client.runs()) == 10

        await until(have_begun)
        assert (await client.find("3f9a")).ids == ["3f9a11"]
        assert len((await client.find("3f9a11.")).ids) == 6
        await client.start(waits, id="v1.2")
        await client.start(waits, id="v1")
        assert sorted((await client.find("v")).ids) == ["v1", "v1.2"], "one isn't the other's child"
        children = [run.id for run in await client.runs(workflow="waits") if run.parent]
        assert (await client.find(children[0][:-3])).ids == children[:1]


async def test_the_newest_of_each_listing_are_compared_and_no_more(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_SCANNED", 10)
    async with serve(app, shards=2) as (client, _):
        for number in range(30):
            await client.start(waits, id=f"r-{number:02}")
        found = await client.find("r-")
        assert (len(found.ids), found.looked_at, found.total, found.is_certain) == (6, 10, 30, False)
        assert found.ids[0] == "r-29", "the newest"
        assert (await client.find("r-00")).ids == ["r-00"], "a whole id needs no search"
        assert not (await client.find("r-0")).ids, "too old"


async def test_only_the_shard_of_a_partition_is_searched(serve: Serve) -> None:
    async with serve(app, shards=8, partition="tenant") as (client, _):
        for tenant in ("a", "b", "c", "d", "e"):
            await client.start(waits.options(id="one", tenant=tenant))
        found = await client.find("b/o")
        assert found.ids == ["b/one"]
        assert found.total < 5
        assert (await client.find("b")).total == 5


async def test_a_damaged_listing_or_record_hides_no_other_run(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(app, shards=4) as (client, _):
        ids = [f"{n}-{n**5}" for n in range(8)]
        for run_id in ids:
            await client.start(waits, id=run_id)
        namespace = await client.read_namespace()
        damaged = namespace.shard_of("3-243")
        keys = client.keys.shard(damaged)
        await client.store.one(Call.plain("SET", keys.run("3-243"), "x"))
        assert (await client.find("3-243")).ids == ["3-243"], "the command then says what is wrong with it"
        await client.store.one(Call.plain("SET", keys.index("running", "waits"), "x"))
        others = [run_id for run_id in ids if namespace.shard_of(run_id) != damaged]
        assert others
        for run_id in others:
            assert (await client.find(run_id[:2])).ids == [run_id]
        assert "is damaged on the server" in caplog.text


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 200))
def test_no_more_ids_are_read_than_allowed_and_no_fewer_than_can_be(lengths: list[int], limit: int) -> None:
    depth = _depth(lengths, limit)
    read = sum(min(length, depth) for length in lengths)
    assert read <= limit
    assert read == sum(lengths) or sum(min(length, depth + 1) for length in lengths) > limit


def test_the_depth_is_that_of_the_listings_that_are_longer() -> None:
    depths = [_depth([3, 100, 100], limit) for limit in (3, 9, 13, 103, 203, 10_000)]
    assert depths == [1, 3, 5, 50, 100, 100]
    assert all(one <= other for one, other in pairwise(depths))


async def test_every_command_takes_the_beginning_of_an_id(serve: Serve) -> None:
    async with serve(app) as (client, _):
        shell = Shell(client.store.url, client.namespace)
        whole = "order-7b02cd"
        run = await client.start(waits, id=whole)
        await client.start(waits, id="order-9aa")
        for part in ("order-7", "order-7b", "order-7b02c"):
            assert (await shell.data("show", part))["run_id"] == whole
        assert await shell.data("read", "order-7b") == {"stage": "here"}
        assert whole in await shell("export", "order-7b")
        assert await shell.data("ask", "order-7b", "price") == {"run_id": whole, "ask": "price", "answer": 1}
        assert await shell("signal", "order-7b", "go", "false") == f"signal go sent to {whole}\n"
        assert (await shell.data("signal", "order-7b", "go", "false"))["run_id"] == whole
        assert await shell("cancel", "order-7b") == f"asked {whole} to cancel\n"
        with pytest.raises(sf.RunCancelled):
            await run.result(10)
        assert await shell("forget", "order-7b", whole) == f"deleted {whole}\n"
        assert await shell("terminate", "order-9a") == "asked for the termination of order-9aa\n"
        failed = await client.start(fails, id="odd-4f")
        with pytest.raises(sf.RunFailed):
            await failed.result(10)
        assert (await shell("retry", "odd-4")).startswith("odd-4f goes on")


async def test_a_command_says_why_it_takes_no_run(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(app, shards=1) as (client, _):
        shell = Shell(client.store.url, client.namespace)
        for run_id in ("order-17", "order-7b1", "order-7b2"):
            await client.start(waits, id=run_id)
        several = "error: there is no run order-7, and several whose ids begin so: order-7b2, order-7b1. Give"
        assert several in await shell("cancel", "order-7", code=2)
        assert several in await shell("forget", "order-17", "order-7", code=2)
        assert "there is no run order-1, and" in await shell("cancel", "order-1", code=2)
        assert (await shell.data("show", "order-1"))["run_id"] == "order-17"
        assert "there is no run nothing in this namespace" in await shell("cancel", "nothing", code=1)
        monkeypatch.setattr(listing, "MAX_SCANNED", 2)
        said = await shell("show", "order-1", code=1)
        assert "there is no run order-1" in said
        assert "nor one whose id begins so; 2 of 3 runs were looked at" in said
        said = await shell("show", "order-7b2x"[:-2], code=2)
        assert "several whose ids begin so: order-7b2, order-7b1, and there are more" in said

        async def none_has_acted() -> bool:
            return {run.status for run in await client.runs()} == {"running"}

        await until(none_has_acted)
