"""Forgetting of ended runs, against a store that answers from a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from streamflow.daemon import retention as module
from streamflow.daemon.retention import Retention
from streamflow.daemon.shard import OwnedShard, first_outbox
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.connection import Call
from tests.support.fakes import FakeClock, FakeOwner, FakeStore, context, owned

pytestmark = pytest.mark.anyio


def retention(store: FakeStore, *shards: OwnedShard, keep: float = 0.001) -> Retention:
    store.answers.setdefault("HGET", None)  # the namespace has no archive
    return Retention(context(store, shards=4, retention=keep), FakeOwner(*shards))  # type: ignore[arg-type]


HEADER = b"completed 3 c 900 950 flow - -"


def sweeping() -> OwnedShard:
    shard = owned()
    shard.workflows = {"flow"}
    return shard


def completed(*run_ids: bytes) -> Callable[[Call[Any]], list[bytes]]:
    """The answer of listings of which only that of completed runs has some, behind those that are passed over."""
    return lambda call: list(run_ids[call.args[5] :]) if "completed" in call.args[1] else []


async def test_a_sweep_asks_for_ended_runs_that_are_old_enough_and_forgets_them() -> None:
    store = FakeStore(
        ZRANGEBYSCORE=completed(b"a", b"b"),
        LINDEX=lambda call: HEADER if call.args[1].endswith(":a") else None,
        forget_runs=1,
        ZREM=1,
    )
    assert not await retention(store, sweeping(), keep=100.0).forget_once()
    asked = store.sent("ZRANGEBYSCORE")
    assert {call.args[1].rpartition(":")[0].rpartition(":")[2] for call in asked} == {
        "completed",
        "failed",
        "cancelled",
    }
    assert {call.args[3] for call in asked} == {900_000}
    [forgotten] = store.sent("forget_runs")
    assert forgotten.args == [1, "a", HEADER]
    [removed] = store.sent("ZREM")
    assert removed.args[2:] == [b"b"], "it has no record, so every sweep would find it"


async def test_a_shard_is_not_asked_for_ended_runs_before_one_is_due() -> None:
    clock = FakeClock()
    empty, full = owned(0), owned(1)
    for shard in (empty, full):
        shard.workflows = {"flow", "other"}
    oldest: list[Any] = [b"a", b"%d" % (clock.ms - 99_000)]
    store = FakeStore(
        ZRANGE=lambda call: oldest if call.args[1] == full.keys.index("failed", "flow") else [],
        ZRANGEBYSCORE=[],
        HLEN=0,
        HMGET=[None, None],
        ZCARD=1,
        XLEN=0,
        HGET=None,
    )
    sweep = Retention(context(store, clock=clock, shards=4, retention=100.0), FakeOwner(empty, full))  # type: ignore[arg-type]
    await sweep.run_once()
    assert (empty.forget_at, full.forget_at) == (math.inf, clock.ms + 1000)
    assert (len(store.sent("ZRANGE")), store.sent("ZRANGEBYSCORE")) == (12, [])
    await sweep.run_once()
    assert len(store.sent("ZRANGE")) == 12
    clock.ms += 1000
    await sweep.run_once()
    assert (len(store.sent("ZRANGE")), len(store.sent("ZRANGEBYSCORE"))) == (18, 6)
    assert {call.args[1].split(":")[1] for call in store.sent("ZRANGEBYSCORE")} == {full.keys.log.split(":")[1]}


async def test_a_commit_during_the_look_for_ended_runs_is_not_missed() -> None:
    shard = sweeping()
    store = FakeStore(ZRANGE=lambda _: setattr(shard, "forget_at", 0.0) or [])
    await retention(store, shard, keep=100.0).look_for_ended()
    assert shard.forget_at == 0.0


@pytest.mark.parametrize("failure", [StoreError("ZRANGE: WRONGTYPE"), StoreUnavailable("away")])
async def test_a_listing_that_cannot_be_read_is_asked_again(failure: StoreError) -> None:
    async def away(_: Any) -> Any:
        raise failure

    shard = sweeping()
    store = FakeStore(ZRANGE=failure)
    sweep = retention(store, shard, keep=100.0)
    if isinstance(failure, StoreUnavailable):
        sweep._store.send = away  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            await sweep.look_for_ended()
    else:
        await sweep.look_for_ended()
    assert shard.forget_at == 0.0


async def test_a_sweep_says_when_there_is_more() -> None:
    full = [f"r{n}".encode() for n in range(module.SWEEP_RUNS)]
    store = FakeStore(ZRANGEBYSCORE=full, LINDEX=None, ZREM=module.FORGET)
    assert await retention(store, sweeping()).forget_once()


async def test_a_sweep_that_takes_too_long_leaves_the_rest_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SWEEP", 0.0)
    full = [f"r{n}".encode() for n in range(module.SWEEP_RUNS)]
    store = FakeStore(
        ZRANGEBYSCORE=full, LINDEX=None, ZREM=1, ZRANGE=[b"r0", b"1"], HLEN=0, HMGET=[None, None], ZCARD=1, XLEN=0
    )
    sweep = retention(store, sweeping())
    await sweep.run_once()
    assert store.sent("ZRANGEBYSCORE") == []


async def test_a_sweep_that_can_forget_nothing_ends() -> None:
    full = [f"r{n}".encode() for n in range(module.SWEEP_RUNS)]
    store = FakeStore(ZRANGEBYSCORE=full, LINDEX=None, ZREM=0)
    assert not await retention(store, sweeping()).forget_once()


async def test_calls_and_pipelines_of_a_sweep_are_bounded() -> None:
    shard = sweeping()
    shard.workflows = {f"flow{n}" for n in range(100)}
    runs = [f"r{n}".encode() for n in range(module.SWEEP_RUNS)]
    store = FakeStore(ZRANGEBYSCORE=lambda call: runs if "failed:flow7" in call.args[1] else [], LINDEX=HEADER)
    store.answers["forget_runs"] = lambda call: call.args[0]
    await retention(store, shard).forget_once()
    assert sum(call.args[0] for call in store.sent("forget_runs")) == 10 * len(runs) + len(runs)
    assert max(len(calls) for calls in store.calls) <= module.PIPELINE
    assert max(call.args[0] for call in store.sent("forget_runs")) <= module.FORGET


@pytest.mark.parametrize("record", [b"garbage", StoreError("LINDEX: WRONGTYPE")])
async def test_a_run_whose_record_is_damaged_is_named_and_stays(
    record: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SWEEP_RUNS", 3)
    store = FakeStore(
        ZRANGEBYSCORE=completed(b"bad", b"a", b"b"),
        LINDEX=lambda call: record if call.args[1].endswith("bad") else HEADER,
        forget_runs=lambda call: call.args[0],
    )
    kept: dict[str, int] = {}
    sweep = retention(store, sweeping())
    assert await sweep.forget_once(kept)
    assert "the record of the ended run bad of shard 0 can't be read" in caplog.text
    assert store.sent("forget_runs")[0].args[1::2] == ["a", "b"]
    assert list(kept.values()) == [1]
    await sweep.forget_once(kept)
    assert store.sent("ZRANGEBYSCORE")[3].args[5] == 1, "the next page begins behind it"


async def test_a_run_with_another_damaged_key_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore(
        ZRANGEBYSCORE=completed(b"bad", b"a"),
        LINDEX=HEADER,
        forget_runs=lambda call: StoreError("forget_runs: WRONGTYPE x") if "bad" in call.args else 1,
    )
    await retention(store, sweeping()).forget_once()
    assert [call.args[1] for call in store.sent("forget_runs")] == ["bad", "bad", "a"]
    assert "the ended run bad of shard 0 stays, because of a key: forget_runs: WRONGTYPE x" in caplog.text


async def test_post_numbers_are_dropped_in_portions_and_a_damaged_key_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOURCE_AGE_MS", 1000)
    bad, good = owned(0), owned(1)
    pages = {0: (7, {b"client:old": b"3 1 aa", b"shard:1": b"5-1"}), 7: (0, {b"client:new": b"4 999999 a"})}
    store = FakeStore(
        HLEN=lambda call: StoreError("HLEN: WRONGTYPE") if call.args[1] == bad.keys.seen else 10_000,
        HSCAN=lambda call: pages[call.args[2]],
        HDEL=1,
    )
    await retention(store, bad, good).drop_sources()
    assert "shard 0 keeps the post numbers of clients that have gone" in caplog.text
    [dropped] = store.sent("HDEL")
    assert dropped.args[1:] == [good.keys.seen, b"client:old"]


async def test_a_name_of_which_no_run_is_left_is_forgotten() -> None:
    shard = owned()
    shard.workflows = {"gone", "left", "damaged"}
    store = FakeStore(
        ZCARD=lambda call: StoreError("ZCARD: WRONGTYPE") if "damaged" in call.args[1] else int("left" in call.args[1])
    )
    await retention(store, shard).drop_workflows()
    assert shard.workflows == {"left", "damaged"}


async def test_post_numbers_are_dropped_after_an_hour_by_the_servers_clock() -> None:
    """That clock is 500 s ahead of the daemon's."""
    clock = FakeClock(10_000_000)
    clock.ahead = -500_000
    seen = {b"client:old": b"3 6899999 a", b"client:new": b"3 6900000 a", b"shard:1": b"5-1"}
    store = FakeStore(HLEN=module.SOURCES + 9, HSCAN=(0, seen), HDEL=1)
    sweep = Retention(context(store, clock=clock, shards=4), FakeOwner(owned()))  # type: ignore[arg-type]
    await sweep.drop_sources()
    [dropped] = store.sent("HDEL")
    assert dropped.args[2:] == [b"client:old"]


async def test_no_post_number_is_dropped_soon_after_the_servers_clock_jumped() -> None:
    clock = FakeClock()
    clock.since_jump = 3599.0
    store = FakeStore(HLEN=module.SOURCES + 9, HSCAN=(0, {b"client:old": b"3 0 a"}), HDEL=1)
    await Retention(context(store, clock=clock, shards=4), FakeOwner(owned())).drop_sources()  # type: ignore[arg-type]
    assert store.sent("HDEL") == []


async def test_an_identity_is_dropped_when_its_source_has_committed_behind_it() -> None:
    """Shard 2 is down, or a failover has set it back: however old they are, its messages may come again."""
    now = 10 * module.LOST_MS
    at = now - 2 * module.SETTLED_MS
    mine = first_outbox("9:nonce")
    former = 5 << 32
    seen = {
        b"m:settled": b"9-%d %d shard:1" % (mine + 8, at),
        b"m:of a former owner": b"8-%d %d shard:1" % (former + 3, at),
        b"m:of an owner of an earlier release": b"7-6 %d shard:1" % at,
        b"m:lost by the source": b"8-%d %d shard:1" % (former + 4, at),
        b"m:lost with its owner": b"9-%d %d shard:1" % (mine + (1 << 32), at),
        b"m:lost long ago": b"8-%d %d shard:1" % (former + 4, now - module.LOST_MS - 1),
        b"m:young": b"9-%d %d shard:1" % (mine + 8, at + module.SETTLED_MS + 1),
        b"m:of one that stands still": b"9-%d %d shard:2" % (mine + 8, at),
        b"m:of one that can't be read": b"9-%d %d shard:3" % (mine + 8, at),
        b"m:of none": b"9-1 %d shard:9" % at,
        b"m:damaged": b"?",
        b"shard:1": b"5-1",
        b"shard:1/before": b"4-1",
    }
    sent = b"8-%d 7-6" % (former + 3)
    facts = {
        1: [b"9:nonce", b"%d" % (at + module.SETTLED_MS), sent],
        2: [b"9:nonce", b"%d" % (at + module.SETTLED_MS - 1), sent],
        3: [b"?", b"!", None],
    }
    store = FakeStore(
        HLEN=module.SOURCES + 9,
        HSCAN=(0, seen),
        HDEL=1,
        HMGET=lambda call: next(fields for shard, fields in facts.items() if f"ns/{shard}" in call.args[1]),
    )
    await Retention(context(store, clock=FakeClock(now), shards=4), FakeOwner(owned())).drop_sources()  # type: ignore[arg-type]
    [dropped] = store.sent("HDEL")
    assert dropped.args[2:] == [
        *(b"m:settled", b"m:of a former owner", b"m:of an owner of an earlier release"),
        *(b"m:lost long ago", b"m:damaged"),
    ]
    assert len(store.sent("HMGET")) == 3, "each source is asked once"


async def test_a_log_that_forget_has_not_trimmed_whole_is_trimmed_soon() -> None:
    marks = iter([[None, None], [b"1", None], [None, b"5-0"], StoreError("HMGET: WRONGTYPE")])
    shards = [owned(number) for number in range(4)]
    sweep = retention(FakeStore(HMGET=lambda call: next(marks)), *shards)
    await sweep.resume_trimming()
    assert [shard.trim_again == 0 for shard in shards] == [False, True, True, False]
    assert sweep._owner.touched == [1, 2], "the rollup looks at these again"  # type: ignore[attr-defined]
