"""store_view: store what a view of an app has counted of a shard, with the log entry up to which it counts."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from streamflow.store.connection import Call
from streamflow.store.kernel import Reply
from tests.kernel.support import Shard

pytestmark = pytest.mark.anyio


def call(shard: Shard, before: bytes, after: bytes, *removed: str, token: str = "", **cells: bytes) -> Call[Reply]:
    return shard.kernel.store_view(
        0, "cost", token or shard.token, "state", before, after, removed, list(cells.items())
    )


async def stored(shard: Shard) -> dict[bytes, bytes]:
    return await shard.plain("HGETALL", shard.keys.app_view("cost"))


async def test_position_and_cells_are_stored_together(shard: Shard) -> None:
    await shard.acquire()
    assert await shard.do(call(shard, b"", b"1", w1=b"a", w2=b"b")) is Reply.OK
    assert await stored(shard) == {b"state": b"1", b"w1": b"a", b"w2": b"b"}
    assert await shard.do(call(shard, b"1", b"2", "w1", w2=b"c", w3=b"d")) is Reply.OK
    assert await stored(shard) == {b"state": b"2", b"w2": b"c", b"w3": b"d"}


async def test_a_call_that_is_sent_again_changes_nothing(shard: Shard) -> None:
    await shard.acquire()
    first = call(shard, b"", b"1", w=b"a")
    assert await shard.do(first) is Reply.OK
    assert await shard.do(first) is Reply.OK
    assert await stored(shard) == {b"state": b"1", b"w": b"a"}


async def test_what_follows_from_another_position_is_refused(shard: Shard) -> None:
    await shard.acquire()
    assert await shard.do(call(shard, b"", b"1", w=b"a")) is Reply.OK
    for before in (b"", b"0", b"11"):
        assert await shard.do(call(shard, before, b"2", "w", x=b"b")) is Reply.STALE
    assert await stored(shard) == {b"state": b"1", b"w": b"a"}


async def test_a_former_owner_stores_nothing(shard: Shard) -> None:
    await shard.acquire()
    former = shard.token
    await shard.acquire("two")
    assert await shard.do(call(shard, b"", b"1", token=former, w=b"a")) is Reply.FENCED
    assert await stored(shard) == {}


async def test_a_key_of_another_type_is_refused_and_stays(shard: Shard) -> None:
    await shard.acquire()
    await shard.plain("SET", shard.keys.app_view("cost"), "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await shard.do(call(shard, b"", b"1", w=b"a"))
    assert await shard.plain("GET", shard.keys.app_view("cost")) == b"x"
    await shard.plain("DEL", shard.keys.app_view("cost"))
