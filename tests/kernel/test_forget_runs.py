"""forget_runs: delete ended runs and take them off the listings."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.model.attributes import value_text
from streamflow.model.record import Header, decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, Checkpointed, LogLimits, Put, Start
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


async def ended(shard: Shard, run_id: str, status: str = "completed", tenant: str = "acme") -> Header:
    """Bring a run to its end, listed where an owner's commit lists it."""
    await shard.start(run_id, tenant=tenant)
    running, target = shard.keys.index("running", "flow"), shard.keys.index(status, "flow")
    await shard.advance(run_id, status, moves=[(run_id, running, target, NOW)])
    return decode_header(await shard.header(run_id))


async def forget(shard: Shard, *run_ids: str) -> Call[int]:
    return shard.kernel.forget_runs(0, [(run_id, decode_header(await shard.header(run_id))) for run_id in run_ids])


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_an_ended_run_and_its_listings_are_gone(shard: Shard, status: str) -> None:
    await shard.acquire()
    header = await ended(shard, "r1", status)
    assert await shard.do(shard.kernel.forget_runs(0, [("r1", header)])) == 1
    assert not await shard.plain("EXISTS", shard.keys.run("r1"))
    assert not [key for key in await shard.key_names() if ":index:" in key]


async def test_what_it_published_and_its_attributes_listings_go_with_it(shard: Shard) -> None:
    await shard.acquire()
    attributes = {"customer": "acme", "priority": 2}
    indexes = [shard.keys.attribute(name, value_text(value)) for name, value in attributes.items()]
    for run_id in ("r1", "r2"):
        await shard.start(run_id)
        write = await shard.write_of(run_id, "completed")
        write.header = msgspec.structs.replace(decode_header(write.header), attributes=attributes).encode()
        puts = [Put(shard.keys.published(run_id), "progress", b"x")]
        moves = [(run_id, "", index, NOW) for index in indexes]
        await shard.do(shard.commit(Batch(run_id, runs=[write], puts=puts, moves=moves)))
    await ended(shard, "plain")
    assert await shard.do(await forget(shard, "plain", "r1")) == 2
    assert [await shard.listed(index) for index in indexes] == [{"r2": NOW}] * 2
    assert not await shard.plain("EXISTS", shard.keys.published("r1"))
    assert await shard.plain("HGETALL", shard.keys.published("r2")) == {b"progress": b"x"}
    await shard.assert_wrong_types_leave_nothing_half_written(await forget(shard, "r2"))


async def logged(shard: Shard) -> set[str]:
    """The runs of which the log has something."""
    return {run_id for _, fields in await shard.stream(shard.keys.log) for run_id in fields}


async def checkpoint(shard: Shard, entry: str, partial: bytes = b"partial") -> Checkpointed:
    limits = LogLimits(10**9, 10**12)
    call = shard.kernel.checkpoint_views(0, shard.token, entry, partial, NOW, 100, limits, ["flow"])
    return await shard.do(call)


async def end_late(shard: Shard, run_id: str, at: int) -> str:
    """Bring a run to its end then, by the owner's clock; the log entry."""
    await shard.start(run_id)
    write = await shard.write_of(run_id, "completed")
    write.header = msgspec.structs.replace(decode_header(write.header), ended=at).encode()
    running, target = shard.keys.index("running", "flow"), shard.keys.index("completed", "flow")
    moves = [(run_id, running, target, at)]
    return (await shard.do(shard.commit(Batch(f"end-{run_id}", runs=[write], moves=moves)))).entry


async def server_ms(shard: Shard) -> int:
    seconds, _ = await shard.plain("TIME")
    return int(seconds) * 1000


async def test_nothing_of_it_stays_in_the_log_that_is_counted(shard: Shard) -> None:
    await shard.acquire()
    entry = await end_late(shard, "secret", await server_ms(shard))
    await checkpoint(shard, entry, b"counted")
    assert await logged(shard) == {"secret"}
    assert await shard.do(await forget(shard, "secret")) == 1
    assert await logged(shard) == set()
    stored = await shard.plain("HMGET", shard.keys.views, "base", "base_offset", "offset", "forget")
    assert stored == [b"counted", entry.encode(), entry.encode(), None], "the base counts what was trimmed"


async def test_what_is_not_counted_yet_goes_with_the_next_checkpoint(shard: Shard) -> None:
    await shard.acquire()
    first = await end_late(shard, "counted", await server_ms(shard))
    await checkpoint(shard, first, b"one")
    second = await end_late(shard, "secret", await server_ms(shard))
    await shard.do(await forget(shard, "secret"))
    assert "secret" in await logged(shard), "a log that no view counts is not trimmed"
    await checkpoint(shard, first, b"one")
    assert "secret" in await logged(shard)
    third = await end_late(shard, "later", await server_ms(shard) + 3_600_000)
    assert (await checkpoint(shard, third, b"three")).entries == 1
    assert await logged(shard) == {"later"}
    stored = await shard.plain("HMGET", shard.keys.views, "base", "base_offset", "trim", "forget")
    assert stored == [b"three", third.encode(), second.encode(), None]


async def test_a_run_that_ended_long_ago_leaves_the_log_alone(shard: Shard) -> None:
    await shard.acquire()
    now = await server_ms(shard)
    await end_late(shard, "old", now)
    entry = await end_late(shard, "young", now)
    await checkpoint(shard, entry)
    headers = {run_id: decode_header(await shard.header(run_id)) for run_id in ("old", "young")}
    long_ago = msgspec.structs.replace(headers["old"], created=now - 7_200_000, ended=now - 3_600_000)
    await shard.plain("LSET", shard.keys.run("old"), 0, long_ago.encode())
    assert await shard.do(shard.kernel.forget_runs(0, [("old", long_ago)])) == 1
    assert await logged(shard) == {"old", "young"}


async def test_forgotten_twice_changes_nothing(shard: Shard) -> None:
    await shard.acquire()
    header = await ended(shard, "r1")
    call = shard.kernel.forget_runs(0, [("r1", header)])
    await shard.do(call)
    assert await shard.assert_changes_nothing(call) == 0


async def test_a_run_that_is_named_twice_is_counted_once(shard: Shard) -> None:
    await shard.acquire()
    header = await ended(shard, "r1")
    assert await shard.do(shard.kernel.forget_runs(0, [("r1", header), ("r1", header)])) == 1


@pytest.mark.parametrize("status", ["pending", "running", "stuck"])
async def test_an_open_run_stays(shard: Shard, status: str) -> None:
    await shard.acquire()
    await shard.start("r1", tenant="acme")
    if status != "pending":
        await shard.advance("r1", status)
    assert await shard.assert_changes_nothing(await forget(shard, "r1")) == 0


async def test_a_run_that_was_started_again_under_the_same_id_stays(shard: Shard) -> None:
    await shard.acquire()
    header = await ended(shard, "r1")
    call = shard.kernel.forget_runs(0, [("r1", header)])
    await shard.do(call)
    await ended(shard, "r1")
    assert await shard.assert_changes_nothing(call) == 0


@pytest.mark.parametrize("lasts", [5, -1_800_000])
@pytest.mark.parametrize("behind", [0, 3_600_000])
async def test_a_later_run_of_the_id_is_created_later_whatever_the_clock(shard: Shard, behind: int, lasts: int) -> None:
    """Also when it stands still, or was set back, or the server's was ahead: then it ends before its start."""
    await shard.acquire()
    seen: list[int] = []
    for life in range(3):
        at = NOW - behind * life
        await shard.do(shard.kernel.start_runs(0, [Start("r1", "flow", "", b"x")], at))
        created = decode_header(await shard.header("r1")).created
        write = await shard.write_of("r1", "completed")
        header = msgspec.structs.replace(decode_header(write.header), ended=created + lasts)
        write.header = header.encode()
        await shard.do(shard.commit(Batch(f"c{life}", runs=[write]), now=at))
        assert await shard.do(await forget(shard, "r1")) == 1
        seen += sorted((created, header.ended))[-1 if lasts < 0 else 0 :]
    assert seen == sorted(set(seen))


async def test_others_in_the_listings_stay_and_each_run_is_judged_alone(shard: Shard) -> None:
    await shard.acquire()
    first, second = await ended(shard, "r1"), await ended(shard, "r2", tenant="")
    await ended(shard, "r3")
    await shard.start("open", tenant="acme")
    runs = [("r1", first), ("open", decode_header(await shard.header("open"))), ("r2", second), ("none", first)]
    assert await shard.do(shard.kernel.forget_runs(0, runs)) == 2
    assert await shard.listed(shard.keys.index("completed", "flow")) == {"r3": NOW}
    assert set(await shard.listed(shard.keys.tenant("acme"))) == {"r3", "open"}
    assert await shard.listed(shard.keys.index("running", "flow")) == {"open": NOW}


async def test_nothing_to_forget_is_zero(shard: Shard) -> None:
    assert await shard.do(shard.kernel.forget_runs(0, [])) == 0


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.acquire()
    runs = [("r1", await ended(shard, "r1")), ("r2", await ended(shard, "r2", "failed", tenant="globex"))]
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.forget_runs(0, runs))
