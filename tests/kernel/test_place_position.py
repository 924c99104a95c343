"""place_position: from where a group goes on in a shard's log."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Reply
from tests.kernel.positions import FOREVER, Group, committed, log, trim
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_a_group_begins_now_with_the_oldest_entry_or_at_a_time(shard: Shard) -> None:
    entries = await committed(shard, 3)
    first = int(entries[0].partition("-")[0])
    waiting: list[int] = []
    for name, to in (("a", "now"), ("b", "oldest"), ("c", str(first)), ("d", str(first + 3_600_000))):
        group = Group(shard, name)
        await group.place(to)
        waiting.append(await group.waiting())
    assert waiting == [0, 3, 3, 0]
    assert await Group(shard, "a").place() == entries[2]
    await committed(shard, 1)
    assert [await Group(shard, name).waiting() for name in "abc"] == [1, 4, 4]


async def test_in_an_empty_log_a_group_waits_for_the_first_entry(shard: Shard) -> None:
    group = Group(shard)
    assert await group.place("now") == "0-0"
    await committed(shard, 2)
    assert await group.waiting() == 2


async def test_a_position_stays_unless_it_is_to_be_replaced(shard: Shard) -> None:
    entries = await committed(shard, 2)
    group = Group(shard)
    await group.place("oldest")
    await group.claim()
    assert (await group.acknowledge(entries[0])).code is Reply.OK
    assert await group.place("now") == entries[0]
    assert (await group.acknowledge(entries[1])).code is Reply.OK, "the consumer still has the shard"
    assert await group.place("oldest", over=True) == "0-0"
    assert (await group.acknowledge(entries[1])).code is Reply.FENCED
    assert await group.waiting() == 2


async def test_a_group_of_another_identity_has_no_position(shard: Shard) -> None:
    await committed(shard, 1)
    await Group(shard).place("oldest")
    other = Group(shard, identity="id-2")
    assert (await other.claim()).code is Reply.MISSING
    await other.place("now")
    assert await other.waiting() == 0


async def test_what_only_a_removed_group_waited_for_is_trimmed(shard: Shard) -> None:
    entries = await committed(shard, 3)
    group = Group(shard)
    await group.place("oldest")
    await trim(shard, entries[2])
    assert await log(shard) == entries
    assert await group.place("") == ""
    assert await log(shard) == []
    assert await shard.plain("HGETALL", shard.keys.positions) == {}


async def test_a_time_far_behind_is_counted_about_and_exactly_once_all_is_read(shard: Shard) -> None:
    await shard.acquire()
    for number in range(1, 1502):
        await shard.plain("XADD", shard.keys.log, f"{1000 + number}-0", "r1", "x")
    group = Group(shard)
    await group.place("1500")
    assert 900 <= await group.waiting() <= 1100
    await group.claim()
    await group.acknowledge("2501-0", 1001)
    assert await group.waiting() == 0
    await shard.plain("XADD", shard.keys.log, "2502-0", "r1", "x")
    assert await group.waiting() == 1


@pytest.mark.parametrize("which", ["positions", "log", "views"])
async def test_a_key_of_another_type_is_left_alone(shard: Shard, which: str) -> None:
    key = getattr(shard.keys, which)
    shard.planted.add(key)
    await shard.plain("SET", key, "x")
    call = shard.kernel.place_position(0, "billing", "id", "now")
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(call))
    await shard.plain("DEL", key)


async def test_a_damaged_position_holds_nothing_up(shard: Shard) -> None:
    entries = await committed(shard, 3)
    await shard.plain("HSET", shard.keys.positions, "billing", "nonsense")
    await trim(shard, entries[2], held=FOREVER)
    assert await log(shard) == []
    await Group(shard).place("now")
    assert await Group(shard).waiting() == 0
