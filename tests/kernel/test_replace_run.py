"""replace_run: create a run under an id whose run has ended, in place of that."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.model.attributes import value_text
from streamflow.model.record import Header, Status, decode_header
from streamflow.store.kernel import Start
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


async def ended(shard: Shard, run_id: str = "r1", ended_at: int = NOW + 5, status: str = "failed") -> bytes:
    """Put the record of a run that has ended, with all that it may have; returns its header."""
    header = Header(status, 3, "c", NOW, ended_at, "flow", "acme", "", {"customer": "x"})
    keys = shard.keys
    await shard.plain("RPUSH", keys.run(run_id), header.encode(), "", "one", "two")
    await shard.plain("HSET", keys.published(run_id), "progress", "x")
    await shard.plain("ZADD", keys.index(header.status, "flow"), ended_at, run_id)
    await shard.plain("ZADD", keys.tenant("acme"), NOW, run_id)
    await shard.plain("ZADD", keys.attribute("customer", value_text("x")), NOW, run_id)
    return header.encode()


def start(replaces: bytes, identity: str = "0a", tenant: str = "", word: str = "") -> Start:
    return Start("r1", "flow", tenant, b"input", "", f"{word}i{identity}", replaces)


async def test_the_new_run_takes_the_place_of_the_ended_one(shard: Shard) -> None:
    before = await ended(shard)
    answer = await shard.do(shard.kernel.replace_run(0, start(before), NOW + 100))
    header, body = await shard.record("r1")
    assert answer == b"+" + header
    found = decode_header(header)
    assert (found.status, found.version, found.created, found.ended, found.tenant) == ("pending", 0, NOW + 100, 0, "")
    assert (found.attributes, found.start, body) == ({}, "i0a", b"")
    keys = shard.keys
    assert await shard.listed(keys.index(Status.RUNNING, "flow")) == {"r1": NOW + 100}
    for key in (keys.index("failed", "flow"), keys.tenant("acme"), keys.attribute("customer", value_text("x"))):
        assert await shard.listed(key) == {}
    assert await shard.plain("EXISTS", keys.published("r1")) == 0
    assert await shard.inbox() == [{"kind": b"start", "run": b"r1", "header": header, "body": b"input"}]


async def test_a_call_that_comes_again_does_not_replace_its_own_run(shard: Shard) -> None:
    call = shard.kernel.replace_run(0, start(await ended(shard)), NOW + 100)
    answer = await shard.do(call)
    assert await shard.assert_changes_nothing(call) == b"=" + answer[1:]
    line = await shard.header("r1")  # also when the run has ended meanwhile
    over = msgspec.structs.replace(decode_header(line), status="completed", version=4, ended=NOW + 300)
    await shard.plain("LSET", shard.keys.run("r1"), 0, over.encode())
    assert await shard.assert_changes_nothing(call) == b"=" + over.encode()


async def test_an_open_run_and_one_that_has_changed_stay(shard: Shard) -> None:
    before = await ended(shard, status="running", ended_at=0)
    assert await shard.assert_changes_nothing(shard.kernel.replace_run(0, start(before), NOW + 9)) == before
    await shard.plain("DEL", shard.keys.run("r1"))
    other = await ended(shard, status="completed")
    assert await shard.assert_changes_nothing(shard.kernel.replace_run(0, start(before), NOW + 9)) == other


async def test_a_run_that_is_gone_is_in_nobodys_way(shard: Shard) -> None:
    before = await ended(shard)
    await shard.plain("DEL", shard.keys.run("r1"))
    assert (await shard.do(shard.kernel.replace_run(0, start(before), NOW + 9))).startswith(b"+pending")


async def test_the_new_run_was_created_later_whatever_the_clock(shard: Shard) -> None:
    before = await ended(shard, ended_at=NOW + 5000)
    answer = await shard.do(shard.kernel.replace_run(0, start(before), NOW - 5000))
    assert decode_header(answer[1:]).created == NOW + 5001


async def test_a_lost_run_is_the_same_again(shard: Shard) -> None:
    before = await ended(shard)
    call = shard.kernel.replace_run(0, start(before, word="d1000,"), FUTURE, created=NOW + 50)
    found = decode_header((await shard.do(call))[1:])
    assert (found.created, found.start) == (NOW + 50, f"b{NOW + 1050},i0a")


async def test_a_start_that_waits_for_its_turn_has_its_input_in_its_record(shard: Shard) -> None:
    large = Start("r1", "flow", "acme", b"x" * 10_000, "", "i0a", await ended(shard))
    await shard.do(shard.kernel.replace_run(0, large, NOW + 9))
    assert (await shard.record("r1"))[1:] == [b"x" * 10_000]
    assert await shard.listed(shard.keys.waiting) == {"r1": 1}
    assert await shard.listed(shard.keys.tenant("acme")) == {"r1": NOW + 9}


async def test_a_foreign_key_leaves_all_as_it_was(shard: Shard) -> None:
    call = shard.kernel.replace_run(0, start(await ended(shard)), NOW + 9)
    await shard.assert_wrong_types_leave_nothing_half_written(call)
