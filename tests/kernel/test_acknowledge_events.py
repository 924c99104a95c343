"""acknowledge_events: up to which entry a group has had all, for the consumer that has the shard."""

from __future__ import annotations

import random

import pytest

from streamflow.store.kernel import Acknowledged, Reply
from tests.kernel.positions import Group, committed, log, trim
from tests.kernel.support import FUTURE, Shard

pytestmark = pytest.mark.anyio


async def ready(shard: Shard, count: int) -> tuple[Group, list[str]]:
    entries = await committed(shard, count)
    group = Group(shard)
    await group.place("oldest")
    await group.claim()
    return group, entries


async def test_a_position_moves_and_never_goes_back(shard: Shard) -> None:
    group, entries = await ready(shard, 3)
    assert await group.acknowledge(entries[1], 2) == Acknowledged(Reply.OK, entries[1])
    assert await group.acknowledge(entries[0], 1) == Acknowledged(Reply.OK, entries[1])
    assert await group.waiting() == 1
    again = shard.kernel.acknowledge_events(0, "billing", group.token, entries[1], 2)
    await shard.assert_changes_nothing(again)


async def test_an_entry_that_the_log_never_had_is_refused(shard: Shard) -> None:
    group, _ = await ready(shard, 2)
    call = shard.kernel.acknowledge_events(0, "billing", group.token, "9999999999999-0", 1)
    assert (await shard.assert_changes_nothing(call)) == Acknowledged(Reply.BEHIND, "0-0")


async def test_an_entry_that_was_trimmed_counts(shard: Shard) -> None:
    group, entries = await ready(shard, 3)
    await group.acknowledge(entries[0])
    await trim(shard, entries[2], held=0, held_age=0, now=FUTURE)
    assert await log(shard) == []
    assert (await group.acknowledge(entries[1])).code is Reply.OK


async def test_a_released_shard_is_nobodys_and_its_token_void(shard: Shard) -> None:
    group, entries = await ready(shard, 2)
    assert (await group.acknowledge(entries[0], release=True)).code is Reply.OK
    position = await group.position()
    assert position is not None
    assert (position.holder, position.offset) == ("", entries[0])
    assert (await group.acknowledge(entries[0], release=True)).code is Reply.OK, "sent again"
    assert (await group.acknowledge(entries[1])).code is Reply.FENCED
    assert (await group.claim("two", "n2")).offset == entries[0]


async def test_what_was_waited_for_is_trimmed_as_soon_as_it_is_acknowledged(shard: Shard) -> None:
    group, entries = await ready(shard, 4)
    await trim(shard, entries[3])
    assert await log(shard) == entries
    await group.acknowledge(entries[1], 2)
    assert await log(shard) == entries[2:]
    assert await group.waiting() == 2
    await group.acknowledge(entries[3], 2)
    assert await log(shard) == []
    assert await group.waiting() == 0


async def test_the_group_that_is_furthest_behind_holds_the_log(shard: Shard) -> None:
    group, entries = await ready(shard, 3)
    slow = Group(shard, "slow")
    await slow.place("oldest")
    await trim(shard, entries[2])
    await group.acknowledge(entries[2], 3)
    assert await log(shard) == entries
    await slow.claim()
    await slow.acknowledge(entries[0])
    assert await log(shard) == entries[1:]


async def test_a_removed_group_acknowledges_nothing(shard: Shard) -> None:
    group, entries = await ready(shard, 1)
    token = group.token
    await group.place("")
    assert await group.acknowledge(entries[0], token=token) == Acknowledged(Reply.FENCED)


async def test_positions_and_tokens_are_those_of_a_model(shard: Shard) -> None:
    """Any order of claims, acknowledgements (late ones, too), releases, resets and commits."""
    chance = random.Random(15)
    group, entries = await ready(shard, 1)
    tokens = [group.token]
    holder, read = group.token, 0
    for step in range(150):
        action = chance.choice(["commit", "claim", "acknowledge", "acknowledge", "late", "release", "reset"])
        if action == "commit":
            entries += await committed(shard, chance.randint(1, 3))
        elif action == "claim":
            holder = (await group.claim(f"c{step}", f"n{step}")).token
            tokens.append(holder)
        elif action == "reset":
            if chance.random() < 0.2:
                await group.place("oldest", over=True)
                holder, read = "", 0
        else:
            token = chance.choice(tokens) if action == "late" else holder or "0:none"
            wanted = chance.randint(0, len(entries))
            is_release = action == "release" and chance.random() < 0.3
            offset = entries[wanted - 1] if wanted else ""
            answer = await group.acknowledge(offset, max(0, wanted - read), token=token, release=is_release)
            if token == holder:
                assert answer.code is Reply.OK
                read = max(read, wanted)
                holder = "" if is_release else holder
            else:
                assert answer.code is Reply.FENCED
        position = await group.position()
        assert position is not None
        assert position.offset == (entries[read - 1] if read else "0-0")
        assert position.read == read
        assert position.waiting == len(entries) - read


@pytest.mark.parametrize("which", ["positions", "log", "views"])
async def test_a_key_of_another_type_is_left_alone(shard: Shard, which: str) -> None:
    key = getattr(shard.keys, which)
    shard.planted.add(key)
    await shard.plain("SET", key, "x")
    call = shard.kernel.acknowledge_events(0, "billing", "1:n", "1-0", 1)
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(call))
    await shard.plain("DEL", key)
