"""Logs stay short: what is counted in a checkpoint may go, and the views can still be made again from what is left."""

from __future__ import annotations

from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon.rollup import rebuild_views
from streamflow.daemon.shard import IN_LOG
from streamflow.daemon.takeover import fold_entry
from streamflow.store.connection import Call
from streamflow.views.shard_views import ShardViews
from tests.support.serving import view
from tests.support.waiting import until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()

MOST = 4000
"""Bytes of the log; each of the entries here takes about a fortieth of it."""


@app.step
async def add(n: int) -> int:
    return n + 1


@app.workflow
async def chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await add(n)
    return n


@app.step
async def report(size: int, mark: str) -> str:
    return mark + "x" * size


@app.workflow
async def reports(count: int, size: int, mark: str = "") -> int:
    for _ in range(count):
        await report(size, mark)
    return count


async def log_bytes(client: sf.Client) -> int:
    return await client.store.one(Call.plain("MEMORY", "USAGE", client.keys.shard(0).log, "SAMPLES", 0)) or 0


async def payload_bytes(client: sf.Client, part: bytes) -> int:
    """Bytes of all values on the server, dumped, that have this text in them."""
    found = 0
    cursor: Any = 0
    while True:
        cursor, keys = await client.store.one(Call.plain("SCAN", cursor, "COUNT", 1000))
        for key in keys:
            kind = (await client.store.one(Call.plain("TYPE", key))).decode()
            read = {"list": ("LRANGE", key, 0, -1), "hash": ("HGETALL", key), "string": ("GET", key)}
            value = (
                await client.store.one(Call.plain(*read.get(kind, ("XRANGE", key, "-", "+"))))
                if kind
                in {
                    *read,
                    "stream",
                }
                else b""
            )
            found += sum(len(text) for text in texts_of(value) if part in text)
        if not int(cursor):
            return found


def texts_of(value: Any) -> list[bytes]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, bytes) else []


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
    async with serve(app, shards=1, log_bytes=MOST) as (client, _):
        written = await rounds(client, 12)
        entries, _ = await log_and_views(client)
        assert written > 150
        size = sum(len(value) + IN_LOG for _, fields in entries for value in fields.values())
        assert MOST / 2 <= size <= MOST + 16 * size / len(entries)


async def test_a_log_gets_no_longer_by_large_results(serve: Serve) -> None:
    async with serve(app, shards=1, log_bytes=20_000) as (client, _):
        for number in range(10):
            await (await client.start(reports, 10, 100_000)).result(10)
            assert await log_bytes(client) < 60_000, f"after {(number + 1) * 1_000_000:,} bytes of results"


async def test_the_log_of_a_quiet_shard_is_gone_when_it_is_old(serve: Serve) -> None:
    async with serve(app, shards=2, log_age=1.0) as (client, _):
        for number in range(4):
            await (await client.start(chain, 3, id=f"r{number}")).result(10)
        await quiet(client, 4)

        async def gone() -> bool:
            return not any(
                await client.store.send([Call.plain("XLEN", client.keys.shard(number).log) for number in range(2)])
            )

        await until(gone)
        assert len(await client.run("r0").history()) == 4, "the run's own history stays"
        assert (await view(client, "step_durations"))["add"]["count"] == 12


async def test_what_a_forgotten_run_leaves_is_nothing(serve: Serve) -> None:
    """Neither what it was started with, however small, nor its results, are left anywhere on the server."""
    async with serve(app, shards=1) as (client, _):
        await (await client.start(reports, 3, 50_000, id="other")).result(10)
        before = await payload_bytes(client, b"xxxxxxxx")
        assert 150_000 < before < 160_000, "each result is stored once"
        for run_id in ("forgotten", "forgotten-too"):
            await (await client.start(reports, 3, 50_000, "SECRET-4711", id=run_id)).result(10)
        assert await payload_bytes(client, b"SECRET-4711") > 0
        await client.forget("forgotten")
        await client.forget("forgotten-too")

        async def gone() -> bool:
            return await payload_bytes(client, b"SECRET-4711") == 0

        await until(gone)
        assert await payload_bytes(client, b"xxxxxxxx") == before
        assert (await view(client, "runs"))["status"]["completed"] == 3


async def test_marks_of_a_forgotten_run_are_found_after_a_takeover(serve: Serve) -> None:
    async with serve(app, shards=1, crash=True) as (client, _):
        run = await client.start(reports, 1, 10, "SECRET-4711", id="r")
        await run.result(10)
        await client.forget("r")
    async with serve(app, shards=1) as (client, _):

        async def gone() -> bool:
            return await payload_bytes(client, b"SECRET-4711") == 0

        await until(gone)


async def test_the_base_and_the_log_behind_it_are_what_the_checkpoint_counts(serve: Serve) -> None:
    async with serve(app, shards=1, log_bytes=MOST) as (client, _):
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
    async with serve(app, shards=1, log_bytes=MOST) as (client, _):
        await rounds(client, 8)
        before = [await view(client, name) for name in ("runs", "run_durations", "step_durations")]
        assert before[2]["add"]["count"] == 120
    assert await rebuild_views(client.store, client.kernel, 1, 0) < 120
    assert [await view(client, name) for name in ("runs", "run_durations", "step_durations")] == before


async def test_a_takeover_goes_on_counting_from_a_trimmed_log(serve: Serve) -> None:
    async with serve(app, shards=1, log_bytes=MOST, crash=True) as (client, _):
        await rounds(client, 6)
    async with serve(app, shards=1, log_bytes=MOST):
        await (await client.start(chain, 15)).result(10)
        await quiet(client, 7)
        assert (await view(client, "step_durations"))["add"]["count"] == 105
