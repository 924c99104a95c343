"""restore_run: put an ended run back from the archive."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from streamflow.model.attributes import value_text
from streamflow.model.record import Header, decode_header
from streamflow.store.connection import Call
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio

LATER = NOW + 86_400_000


def archived(status: str = "failed", ended_at: int = NOW + 5, tenant: str = "acme") -> bytes:
    return Header(status, 3, "c", NOW, ended_at, "flow", tenant, "", {"customer": "x"}).encode()


def restore(shard: Shard, header: bytes, transitions: int = 2, now: int = LATER) -> Call[bytes]:
    record = [header, b"", *(b"transition %d" % n for n in range(transitions))]
    return shard.kernel.restore_run(0, "r1", record, [("progress", b"x"), ("total", b"y")], now)


async def test_it_is_there_again_with_all_that_it_had(shard: Shard) -> None:
    header = archived()
    assert await shard.do(restore(shard, header)) == header
    assert await shard.record("r1") == [header, b"", b"transition 0", b"transition 1"]
    assert await shard.plain("HGETALL", shard.keys.published("r1")) == {b"progress": b"x", b"total": b"y"}
    keys = shard.keys
    assert await shard.listed(keys.index("failed", "flow")) == {"r1": LATER}, "its retention begins again"
    assert await shard.listed(keys.tenant("acme")) == {"r1": NOW}
    assert await shard.listed(keys.attribute("customer", value_text("x"))) == {"r1": NOW}


async def test_a_long_history_is_put_back_in_order(shard: Shard) -> None:
    await shard.do(restore(shard, archived(), transitions=2501))
    record = await shard.record("r1")
    assert record[2:] == [b"transition %d" % n for n in range(2501)]


async def test_a_call_that_comes_again_changes_nothing(shard: Shard) -> None:
    header = archived()
    await shard.do(restore(shard, header))
    assert await shard.assert_changes_nothing(restore(shard, header, now=LATER + 9)) == header


async def test_an_id_that_is_in_use_is_refused(shard: Shard) -> None:
    await shard.start("r1")
    other = await shard.header("r1")
    assert await shard.assert_changes_nothing(restore(shard, archived())) == other


async def test_a_run_without_tenant_is_in_no_listing_of_one(shard: Shard) -> None:
    await shard.do(restore(shard, archived(tenant="")))
    assert not [name for name in await shard.key_names() if "tenant" in name]


async def test_an_open_run_comes_from_no_archive(shard: Shard) -> None:
    answer = await shard.try_(restore(shard, archived(status="running", ended_at=0)))
    assert isinstance(answer, StoreError)
    assert "BADHEADER" in str(answer)
    assert not await shard.plain("EXISTS", shard.keys.run("r1"))


async def test_whoever_gets_the_id_later_was_created_later(shard: Shard) -> None:
    header = archived(ended_at=FUTURE)
    await shard.do(restore(shard, header))
    assert await shard.do(shard.kernel.forget_runs(0, [("r1", decode_header(header))])) == 1
    await shard.start("r1", now=NOW)
    assert decode_header(await shard.header("r1")).created > FUTURE


async def test_wrong_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.assert_wrong_types_leave_nothing_half_written(restore(shard, archived()))
