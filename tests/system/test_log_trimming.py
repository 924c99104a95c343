"""Logs stay short: what is counted in a checkpoint may go, and the views can still be made again from what is left."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon.rollup import rebuild_views
from streamflow.daemon.takeover import fold_entry
from streamflow.store.connection import Call
from streamflow.views.shard_views import ShardViews
from tests.support.serving import view
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()

KEEP = 20


@app.step
async def add(n: int) -> int:
    return n + 1


@app.workflow
async def chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await add(n)
    return n


async def quiet(client: sf.Client, runs: int) -> None:
    """Wait until the stored views count everything."""

    async def counted() -> bool:
        shown = await view(client, "runs")
        return bool(shown) and shown["status"]["completed"] == runs

    await until(counted)


async def log_and_views(client: sf.Client) -> tuple[list[Any], dict[bytes, bytes]]:
    keys = client.keys.shard(0)
    entries = await client.store.one(Call.plain("XRANGE", keys.log, "-", "+"))
    words = await client.store.one(Call.plain("HGETALL", keys.views))
    return entries, words if isinstance(words, dict) else dict(zip(words[::2], words[1::2], strict=True))


async def rounds(client: sf.Client, count: int) -> int:
    """Rounds of work with a quiet moment after each; gives the number of log entries that were ever there."""
    for number in range(1, count + 1):
        await (await client.start(chain, 15)).result(10)
        await quiet(client, number)
    return count * 16


async def test_a_log_stays_short_however_much_happens(serve: Serve) -> None:
    async with serve(app, shards=1, log_entries=KEEP) as (client, _):
        written = await rounds(client, 12)
        entries, _ = await log_and_views(client)
        assert written > 150
        assert KEEP <= len(entries) <= 2 * KEEP + 16


async def test_the_base_and_the_log_behind_it_are_what_the_checkpoint_counts(serve: Serve) -> None:
    async with serve(app, shards=1, log_entries=KEEP) as (client, _):
        await rounds(client, 8)
    entries, stored = await log_and_views(client)
    views = ShardViews.decode(stored[b"base"])
    base = tuple(map(int, stored[b"base_offset"].split(b"-")))
    for entry_id, fields in entries:
        if tuple(map(int, entry_id.split(b"-"))) > base:
            fold_entry(views, fields)
    assert views.encode() == stored[b"partial"]
    assert entries[-1][0] == stored[b"offset"]


async def test_a_rebuild_from_a_trimmed_log_is_exact(serve: Serve) -> None:
    async with serve(app, shards=1, log_entries=KEEP) as (client, _):
        await rounds(client, 8)
        before = [await view(client, name) for name in ("runs", "run_durations", "step_durations")]
        assert before[2]["add"]["count"] == 120
    assert await rebuild_views(client.store, client.kernel, 1, 0) < 120
    assert [await view(client, name) for name in ("runs", "run_durations", "step_durations")] == before


async def test_a_takeover_goes_on_counting_from_a_trimmed_log(serve: Serve) -> None:
    async with serve(app, shards=1, log_entries=KEEP, crash=True) as (client, _):
        await rounds(client, 6)
    async with serve(app, shards=1, log_entries=KEEP):
        await (await client.start(chain, 15)).result(10)
        await quiet(client, 7)
        assert (await view(client, "step_durations"))["add"]["count"] == 105
