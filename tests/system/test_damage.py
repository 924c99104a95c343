"""Keys of one shard that somebody has damaged: that shard may stop, loudly; the others go on, and so do the daemons."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

import streamflow as sf
from streamflow.daemon.daemon import Daemon
from streamflow.errors import StoreError
from streamflow.model.retention import RetentionRules
from streamflow.status.collector import StatusCollector
from streamflow.store.connection import Call
from streamflow.store.keys import NamespaceKeys
from tests.support.waiting import reduced, until
from tests.system.conftest import Serve

pytestmark = pytest.mark.anyio

app = sf.App()


@app.workflow
async def listens() -> int:
    return await sf.signal("go", int)


@app.workflow
async def naps() -> float:
    """How many seconds a short timer took."""
    begun = sf.now()
    await sf.sleep(0.05)
    return (sf.now() - begun).total_seconds()


Words = tuple[str | bytes | int, ...]

DAMAGE: dict[str, Callable[[NamespaceKeys], Words]] = {
    "inbox deleted": lambda keys: ("DEL", keys.shard(0).inbox),
    "inbox replaced": lambda keys: ("SET", keys.shard(0).inbox, "x"),
    "agenda replaced": lambda keys: ("SET", keys.shard(0).agenda, "x"),
    "agenda with garbage": lambda keys: ("ZADD", keys.shard(0).agenda, 0, b"\xff", -1, b"\xfe", 1, "nobody"),
    "log replaced": lambda keys: ("SET", keys.shard(0).log, "x"),
    "log with garbage": lambda keys: ("XADD", keys.shard(0).log, "*", b"\xff", b"\xff", "r", b"\x91" * 10_000),
    "owner deleted": lambda keys: ("DEL", keys.shard(0).owner),
    "views replaced": lambda keys: ("SET", keys.shard(0).views, "x"),
    "views with garbage": lambda keys: ("HSET", keys.shard(0).views, "partial", b"\xc1", "oldest", "a b"),
    "listing with garbage": lambda keys: ("ZADD", keys.shard(0).index("stuck", "listens"), 0, b"\xff"),
    "agenda with infinity": lambda keys: ("ZADD", keys.shard(0).agenda, "inf", "nobody"),
    "views with a bad offset": lambda keys: ("HSET", keys.shard(0).views, "offset", b"\xff", "partial", b"\x80"),
    "oldest with infinity": lambda keys: ("HSET", keys.shard(0).views, "oldest", "r inf listens"),
    "holder with garbage": lambda keys: ("HSET", keys.shard(0).owner, "holder", b"\xff"),
    "seen replaced": lambda keys: ("SET", keys.shard(0).seen, "x"),
    "steps replaced": lambda keys: ("SET", keys.shard(0).steps, "x"),
    "details replaced": lambda keys: ("SET", keys.shard(0).details, "x"),
    "list of workflows overwritten": lambda keys: ("SET", keys.workflows, "x"),
    "list of queues overwritten": lambda keys: ("SET", keys.queues, "x"),
    "members with garbage": lambda keys: ("HSET", keys.members, "x", b"\xff", b"\xff", "{}"),
}
HARMLESS = {name for name in DAMAGE if "replaced" not in name}


@pytest.mark.parametrize("restart", [False, True], ids=["while running", "while stopped"])
@pytest.mark.parametrize("what", DAMAGE)
async def test_damage_to_one_shard_leaves_the_others_alone(serve: Serve, what: str, restart: bool) -> None:
    async with serve(app) as (client, daemon):
        runs: list[sf.Run[Any]] = [await client.start(listens) for _ in range(24)]
        for run in runs:
            await reduced(client, run.id)
        words = DAMAGE[what](client.keys)
        if not restart:
            await client.store.one(Call.plain(*words))
            await finish(client, runs, what)
            await seen(client, daemon, runs, what)
    if restart:
        await client.store.one(Call.plain(*words))
        async with serve(app) as (_, daemon):
            await finish(client, runs, what)
            await seen(client, daemon, runs, what)


FAR = "4102444800000"
"""The year 2100: a number, so it can't be told from a clock that was right. It is the time of that shard's new runs."""


@pytest.mark.parametrize("clock", ["x", "inf", "-inf", "nan", "1e300", "-5", "0x7fffffffffffffff", "9" * 30, "", FAR])
async def test_a_damaged_clock_of_a_shard_moves_no_daemons_clock(serve: Serve, clock: str) -> None:
    """Neither a running daemon's, nor that of one that starts; timers of that shard keep their time, too."""
    for _ in ("while running", "before the start"):
        async with serve(app, shards=2) as (client, daemon):
            damage = Call.plain("HSET", client.keys.shard(0).owner, "clock", clock)
            await client.store.one(damage)
            runs = [await client.start(naps) for _ in range(8)]
            assert max([await run.result(10) for run in runs]) < 5
            shard_of = (await client.read_namespace()).shard_of
            for run in runs:
                created = (await run.describe()).created.timestamp()
                assert abs(created - time.time()) < 60 or (clock == FAR and shard_of(run.id) == 0)
            assert abs(daemon._clock.now_ms() - time.time() * 1000) < 5000
            await client.store.one(damage)


async def finish(client: sf.Client, runs: list[sf.Run[Any]], what: str) -> None:
    shard_of = (await client.read_namespace()).shard_of
    for run in runs:
        if shard_of(run.id) != 0 or what in HARMLESS:
            await run.signal("go", 1)
            assert await run.result(10) == 1


async def seen(client: sf.Client, daemon: Daemon, runs: list[sf.Run[Any]], what: str) -> None:
    """Whoever looks at the status sees that something is wrong with the shard, and with no other."""
    if what in HARMLESS:
        return
    shard_of = (await client.read_namespace()).shard_of
    with contextlib.suppress(StoreError):  # its inbox may be what is damaged
        for run in runs:
            if shard_of(run.id) == 0:
                await run.signal("go", 1)

    await daemon.retention.check_types()  # else up to six minutes later, if nothing uses the key

    async def is_seen() -> bool:
        [row] = (await StatusCollector(client).collect()).daemons
        told = row.heartbeat
        named = {*told.broken, *told.impaired}
        assert named <= {"shard 0"}
        return bool(named) and told.stopped == len(told.broken)

    await until(is_seen)


@pytest.mark.parametrize("what", sorted(name for name in DAMAGE if "replaced" in name))
async def test_a_shard_goes_on_without_a_key_that_was_overwritten(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The runbook says so, for those who have no backup of it. What was in it is lost."""
    monkeypatch.setattr("streamflow.daemon.troubles.FIRST_PAUSE", 0.1)
    async with serve(app, shards=1) as (client, daemon):
        runs: list[sf.Run[Any]] = [await client.start(listens) for _ in range(3)]
        for run in runs:
            await reduced(client, run.id)
        words = DAMAGE[what](client.keys)
        key = str(words[1])
        await client.store.send([Call.plain("DEL", key), Call.plain(*words)])
        await seen(client, daemon, runs, what)
        await client.store.one(Call.plain("DEL", key))
        later = [await client.start(naps) for _ in range(3)]
        for run in later:
            assert await run.result(30) < 20


async def test_a_shard_that_was_stopped_goes_on_when_its_keys_are_repaired(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamflow.daemon.troubles.FIRST_PAUSE", 0.1)
    async with serve(app, shards=1) as (client, _):
        run = await client.start(listens)
        await reduced(client, run.id)
        log = client.keys.shard(0).log
        await client.store.one(Call.plain("RENAME", log, f"{log}:aside"))
        await client.store.one(Call.plain("SET", log, "x"))
        await run.signal("go", 1)

        async def stopped() -> bool:
            return (await run.describe()).version == 1 and "shard 0 is stopped" in caplog.text

        await until(stopped)
        await client.store.one(Call.plain("RENAME", f"{log}:aside", log))
        assert await run.result(10) == 1


async def test_listings_leave_out_damaged_runs_and_say_so(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(app, shards=2) as (client, _):
        runs = [await client.start(listens, tenant="t") for _ in range(12)]
        for run in runs:
            await reduced(client, run.id)
        shard_of = (await client.read_namespace()).shard_of
        bad = [run.id for run in runs if shard_of(run.id) == 0][:2]
        records = [client.keys.shard(0).run(run_id) for run_id in bad]
        listing = client.keys.shard(1).index("running", "listens")
        await client.store.one(Call.plain("LSET", records[0], 0, "garbage"))
        await client.store.send([Call.plain("DEL", records[1]), Call.plain("SET", records[1], "x")])
        rest = {run.id for run in runs} - set(bad)
        assert {run.id for run in await client.runs()} == rest
        assert {run.id for run in await client.runs(tenant="t")} == rest
        for run_id in bad:
            assert f"run {run_id} is damaged on the server and left out of the list" in caplog.text
        await client.store.send([Call.plain("DEL", listing), Call.plain("SET", listing, "x")])
        assert {run.id for run in await client.runs()} == {run_id for run_id in rest if shard_of(run_id) == 0}
        assert f"listing {listing} is damaged on the server" in caplog.text


async def test_a_sweep_passes_over_a_damaged_run_and_its_shard(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(app, shards=2, retention=3600) as (client, daemon):
        runs = [await client.start(listens) for _ in range(12)]
        for run in runs:
            await run.signal("go", 1)
            await run.result(10)
        shard_of = (await client.read_namespace()).shard_of
        bad = [next(run for run in runs if shard_of(run.id) == number) for number in (0, 1)]
        records = [client.keys.shard(number).run(run.id) for number, run in enumerate(bad)]
        damage = [("LSET", records[0], 0, "garbage"), ("DEL", records[1]), ("SET", records[1], "x")]
        damage += [("DEL", client.keys.shard(0).seen), ("SET", client.keys.shard(0).seen, "x")]
        await client.store.send([Call.plain(*words) for words in damage])
        daemon.retention._rules = RetentionRules(0.001)

        async def swept() -> bool:
            await daemon.retention.run_once()
            keys = [client.keys.shard(shard_of(run.id)).run(run.id) for run in runs]
            return sum(await client.store.send([Call.plain("EXISTS", key) for key in keys])) == 2

        await until(swept)
        for run in bad:
            assert f"the record of the ended run {run.id}" in caplog.text
        assert "shard 0 keeps the post numbers of clients that have gone" in caplog.text
        await client.store.send([Call.plain("DEL", key) for key in (*records, client.keys.shard(0).seen)])
        await daemon.retention.run_once()
        assert await client.runs() == []
