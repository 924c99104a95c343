"""heartbeat: a daemon's heartbeat, answered with those of all."""

from __future__ import annotations

import time

import pytest

from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_each_heartbeat_answers_with_those_of_all_members(shard: Shard) -> None:
    assert (await shard.do(shard.kernel.heartbeat("one", b"1"))).members == {"one": b"1"}
    assert (await shard.do(shard.kernel.heartbeat("two", b"\x00\xff"))).members == {"one": b"1", "two": b"\x00\xff"}
    assert (await shard.do(shard.kernel.heartbeat("one", b"2"))).members == {"one": b"2", "two": b"\x00\xff"}


async def test_the_same_heartbeat_again_changes_nothing(shard: Shard) -> None:
    call = shard.kernel.heartbeat("one", b"1")
    first = await shard.do(call)
    assert (await shard.assert_changes_nothing(call)).members == first.members


async def test_a_heartbeat_answers_with_the_servers_time(shard: Shard) -> None:
    before = int(time.time() * 1000)
    assert before <= (await shard.do(shard.kernel.heartbeat("one", b"1"))).clock <= int(time.time() * 1000)


async def test_an_empty_heartbeat_removes_the_member(shard: Shard) -> None:
    await shard.do(shard.kernel.heartbeat("one", b"1"))
    await shard.do(shard.kernel.heartbeat("two", b"1"))
    off = shard.kernel.heartbeat("one", b"")
    assert (await shard.do(off)).members == {"two": b"1"}
    assert (await shard.assert_changes_nothing(off)).members == {"two": b"1"}


async def test_only_a_heartbeat_that_joins_makes_a_member(shard: Shard) -> None:
    """One that arrives late, after its daemon has left, must not make it look alive."""
    late = shard.kernel.heartbeat("one", b"2", joins=False)
    await shard.do(shard.kernel.heartbeat("two", b"1"))
    assert (await shard.assert_changes_nothing(late)).members == {"two": b"1"}
    await shard.do(shard.kernel.heartbeat("one", b"1"))
    assert (await shard.do(late)).members == {"one": b"2", "two": b"1"}
    await shard.do(shard.kernel.heartbeat("one", b""))
    assert (await shard.assert_changes_nothing(late)).members == {"two": b"1"}


async def test_without_the_others_only_the_callers_heartbeat_is_answered(shard: Shard) -> None:
    """A worker need not know the other workers, of which there may be many."""
    await shard.do(shard.kernel.heartbeat("two", b"1"))
    assert (await shard.do(shard.kernel.heartbeat("one", b"1", others=False))).members == {"one": b"1"}
    assert (await shard.do(shard.kernel.heartbeat("three", b"1", joins=False, others=False))).members == {}
    assert (await shard.do(shard.kernel.heartbeat("one", b"", [("two", b"1")], others=False))).members == {}
    assert (await shard.do(shard.kernel.heartbeat("three", b"2"))).members == {"three": b"2"}


async def test_workers_have_heartbeats_of_their_own(shard: Shard) -> None:
    workers = shard.kernel.keys.workers
    assert (await shard.do(shard.kernel.heartbeat("one", b"1", members=workers))).members == {"one": b"1"}
    assert (await shard.do(shard.kernel.heartbeat("two", b"1"))).members == {"two": b"1"}


async def test_a_member_whose_heartbeat_does_not_change_is_removed(shard: Shard) -> None:
    for member in ("one", "two", "three"):
        await shard.do(shard.kernel.heartbeat(member, b"7"))
    dead = [("two", b"7"), ("three", b"7"), ("unknown", b"7")]
    assert (await shard.do(shard.kernel.heartbeat("one", b"8", dead))).members == {"one": b"8"}


async def test_a_member_whose_heartbeat_changed_after_all_stays(shard: Shard) -> None:
    await shard.do(shard.kernel.heartbeat("two", b"8"))
    assert (await shard.do(shard.kernel.heartbeat("one", b"1", [("two", b"7")]))).members == {"one": b"1", "two": b"8"}


async def test_hashes_that_are_wanted_come_in_the_same_reply(shard: Shard) -> None:
    keys = shard.kernel.keys
    await shard.plain("HSET", keys.paused, "queue:gpu", "{}")
    answer = await shard.do(shard.kernel.heartbeat("one", b"1", hashes=[keys.paused, keys.groups]))
    assert answer.members == {"one": b"1"}
    assert answer.hashes == [{b"queue:gpu": b"{}"}, {}]


async def test_a_hash_of_another_type_is_said_and_hinders_nothing(shard: Shard) -> None:
    keys = shard.kernel.keys
    await shard.plain("SET", keys.paused, "text")
    answer = await shard.do(shard.kernel.heartbeat("one", b"1", hashes=[keys.paused, keys.groups]))
    assert (answer.members, answer.hashes) == ({"one": b"1"}, [None, {}])
    await shard.plain("DEL", keys.paused)


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await shard.do(shard.kernel.heartbeat("two", b"1"))
    await shard.assert_wrong_types_leave_nothing_half_written(shard.kernel.heartbeat("one", b"1", [("two", b"1")]))
