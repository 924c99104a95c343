"""claim_position: who reads a shard for a group."""

from __future__ import annotations

import pytest

from streamflow.store.kernel import Claimed, Reply
from tests.kernel.positions import IDENTITY, Group, committed
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


async def test_of_two_that_saw_the_same_token_one_gets_the_shard(shard: Shard) -> None:
    entries = await committed(shard, 1)
    group = Group(shard)
    await group.place("now")
    seen = await group.position()
    assert seen is not None
    answers: list[Claimed] = [
        await shard.do(shard.kernel.claim_position(0, "billing", IDENTITY, seen.token, nonce, holder))
        for nonce, holder in (("n1", "one"), ("n2", "two"))
    ]
    assert answers[0] == Claimed(Reply.OK, answers[0].token, "", entries[0])
    assert answers[1] == Claimed(Reply.CONFLICT, answers[0].token, "one")


async def test_who_repeats_a_claim_has_it(shard: Shard) -> None:
    await committed(shard, 1)
    group = Group(shard)
    await group.place()
    seen = await group.position()
    assert seen is not None
    call = shard.kernel.claim_position(0, "billing", IDENTITY, seen.token, "n1", "one")
    assert await shard.do(call) == await shard.do(call)


async def test_each_holder_has_another_token_and_the_one_before_is_fenced(shard: Shard) -> None:
    entries = await committed(shard, 2)
    group = Group(shard)
    await group.place("oldest")
    first = await group.claim("one", "n1")
    second = await group.claim("two", "n1")
    assert first.token != second.token
    assert (await group.acknowledge(entries[0], token=first.token)).code is Reply.FENCED
    assert (await group.acknowledge(entries[0], token=second.token)).code is Reply.OK
    assert (await group.claim("three", "n1")).offset == entries[0]


async def test_without_a_position_there_is_nothing_to_claim(shard: Shard) -> None:
    call = shard.kernel.claim_position(0, "billing", IDENTITY, "", "n1", "one")
    assert (await shard.assert_changes_nothing(call)).code is Reply.MISSING


async def test_a_key_of_another_type_is_left_alone(shard: Shard) -> None:
    key = shard.keys.positions
    shard.planted.add(key)
    await shard.plain("SET", key, "x")
    call = shard.kernel.claim_position(0, "billing", IDENTITY, "", "n1", "one")
    assert "WRONGTYPE" in str(await shard.assert_changes_nothing(call))
    await shard.plain("DEL", key)
