"""peek_positions: how far groups are, what waits for them, and what they have lost."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Missed
from tests.kernel.positions import IDENTITY, Group, committed, log, trim
from tests.kernel.support import FUTURE, NOW, Shard

pytestmark = pytest.mark.anyio


async def test_all_groups_of_a_shard_or_one(shard: Shard) -> None:
    entries = await committed(shard, 2)
    one, two = Group(shard, "one"), Group(shard, "two")
    await one.place("oldest")
    await two.place("now")
    await two.claim("c2")
    found = {group.group: group for group in await shard.do(shard.kernel.peek_positions(0))}
    assert found.keys() == {"one", "two"}
    assert (found["one"].identity, found["one"].waiting, found["one"].holder) == (IDENTITY, 2, "")
    assert found["one"].oldest == int(entries[0].partition("-")[0])
    assert (found["two"].waiting, found["two"].oldest, found["two"].holder) == (0, 0, "c2")
    assert [group.group for group in await shard.do(shard.kernel.peek_positions(0, "two"))] == ["two"]
    assert await shard.do(shard.kernel.peek_positions(0, "three")) == []


async def test_within_the_limits_a_group_that_is_behind_loses_nothing(shard: Shard) -> None:
    entries = await committed(shard, 5)
    group = Group(shard)
    await group.place("oldest")
    answer = await trim(shard, entries[4])
    assert await log(shard) == entries
    assert answer.again is not None
    assert answer.again > NOW, "it is looked at again later, not at once"
    position = await group.position()
    assert position is not None
    assert position.missed is None


async def test_beyond_the_age_it_is_noted_what_each_group_has_lost(shard: Shard) -> None:
    entries = await committed(shard, 5)
    behind, further = Group(shard, "behind"), Group(shard, "further")
    await further.place("oldest")
    await behind.place("oldest")
    await behind.claim()
    await behind.acknowledge(entries[1], 2)
    await trim(shard, entries[4], held_age=1, now=FUTURE)
    assert await log(shard) == []
    found = {group.group: group for group in await shard.do(shard.kernel.peek_positions(0))}
    assert found["further"].missed == Missed(5, "0-0", entries[4], FUTURE)
    assert found["behind"].missed == Missed(3, entries[1], entries[4], FUTURE)
    assert {group.waiting for group in found.values()} == {0}
    more = await committed(shard, 2)
    assert await behind.waiting() == 2
    assert (await behind.acknowledge(more[0])).missed == found["behind"].missed
    assert await behind.waiting() == 1
    await behind.place("now", over=True)
    position = await behind.position()
    assert position is not None
    assert position.missed is None, "who resets a group knows"


async def test_an_age_takes_only_what_is_older(shard: Shard) -> None:
    await shard.acquire()
    for ms in (1000, 2000, 3000):
        await shard.plain("XADD", shard.keys.log, f"{ms}-0", "r1", "x")
    group = Group(shard)
    await group.place("oldest")
    answer = await trim(shard, "3000-0", held_age=1000, now=2500)
    assert await log(shard) == ["2000-0", "3000-0"]
    assert answer.again is not None
    position = await group.position()
    assert position is not None
    assert position.missed == Missed(1, "0-0", "1999-9007199254740991", 2500)
    assert position.waiting == 2


async def test_beyond_the_bytes_the_oldest_go_and_the_rest_stays(real_shard: Shard) -> None:
    shard = real_shard
    await shard.acquire()
    for ms in range(1, 2001):
        await shard.plain("XADD", shard.keys.log, f"{ms}-0", "r1", "x" * 100)
    group = Group(shard)
    await group.place("oldest")
    size: int = await shard.plain("MEMORY", "USAGE", shard.keys.log)
    answer = await trim(shard, "2000-0", held=size // 2, now=3000)
    while answer.again == 0:
        answer = await trim(shard, "2000-0", held=size // 2, now=3000)
    left = await log(shard)
    assert 0 < len(left) < 1100
    position = await group.position()
    assert position is not None
    assert position.missed is not None
    assert position.missed.entries == 2000 - len(left)
    assert position.waiting == len(left)


async def test_a_key_of_another_type_is_left_alone(shard: Shard) -> None:
    key = shard.keys.positions
    shard.planted.add(key)
    await shard.plain("SET", key, "x")
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(shard.kernel.peek_positions(0)))
    await shard.plain("DEL", key)
