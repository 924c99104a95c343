"""forget_runs: delete ended runs and take them off the listings."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.model.attributes import value_text
from streamflow.model.record import Header, decode_header
from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, Put, Start
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
