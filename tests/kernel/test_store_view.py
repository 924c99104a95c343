"""store_view: store what a view of an app has counted of a shard, with the log entry up to which it counts."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from streamflow.store.connection import Call
from streamflow.store.kernel import Reply, view_position
from tests.kernel.positions import Group, committed, log, trim
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio


def call(shard: Shard, before: bytes, after: bytes, *removed: str, token: str = "", **cells: bytes) -> Call[Reply]:
    """The log is kept behind an entry whose number is the state."""
    held, offset = f"{before.decode()}-0".encode() if before else b"", f"{after.decode()}-0"
    return shard.kernel.store_view(
        0, "cost", token or shard.token, "state", before, after, held, offset, removed, list(cells.items())
    )


async def count(shard: Shard, held: str, offset: str, view: str = "cost") -> Reply:
    """A view that was at `held` counts up to `offset`."""
    before, after = held.encode(), offset.encode()
    return await shard.do(shard.kernel.store_view(0, view, shard.token, "state", before, after, before, offset))


async def stored(shard: Shard) -> dict[bytes, bytes]:
    return await shard.plain("HGETALL", shard.keys.app_view("cost"))


async def position(shard: Shard, view: str = "cost") -> bytes | None:
    return await shard.plain("HGET", shard.keys.positions, view_position(view))


async def test_position_and_cells_are_stored_together(shard: Shard) -> None:
    await shard.acquire()
    assert await shard.do(call(shard, b"", b"1", w1=b"a", w2=b"b")) is Reply.OK
    assert await stored(shard) == {b"state": b"1", b"w1": b"a", b"w2": b"b"}
    assert await position(shard) == b"1-0"
    assert await shard.do(call(shard, b"1", b"2", "w1", w2=b"c", w3=b"d")) is Reply.OK
    assert await stored(shard) == {b"state": b"2", b"w2": b"c", b"w3": b"d"}
    assert await position(shard) == b"2-0"


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
    assert await position(shard) is None


@pytest.mark.parametrize("name", ["app_view", "positions"])
async def test_a_key_of_another_type_is_refused_and_stays(shard: Shard, name: str) -> None:
    await shard.acquire()
    key = shard.keys.app_view("cost") if name == "app_view" else shard.keys.positions
    await shard.plain("SET", key, "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await shard.do(call(shard, b"", b"1", w=b"a"))
    assert await shard.plain("GET", key) == b"x"
    await shard.plain("DEL", key)


async def test_the_log_keeps_what_a_view_has_not_counted(shard: Shard) -> None:
    entries = await committed(shard, 4)
    everything = await log(shard)
    assert await count(shard, "", "0-0") is Reply.OK
    await trim(shard, entries[2])
    assert await log(shard) == everything
    assert await count(shard, "0-0", entries[1]) is Reply.OK
    assert await log(shard) == entries[2:], "what only waited for it is trimmed with the store"
    assert await count(shard, entries[1], entries[3]) is Reply.OK
    assert await log(shard) == entries[3:], "up to what was to be trimmed"


async def test_the_log_waits_for_the_last_of_views_and_groups(shard: Shard) -> None:
    group = Group(shard)
    entries = await committed(shard, 4)
    await group.place("oldest")
    await group.claim()
    await count(shard, "", entries[0])
    await count(shard, "", entries[3], view="other")
    await trim(shard, entries[3])
    assert entries[0] in await log(shard)
    await group.acknowledge(entries[2], 4)
    assert await log(shard) == entries[1:], "the view waits"
    await count(shard, entries[0], entries[3])
    assert await log(shard) == entries[3:], "the group waits"


async def test_beyond_the_limits_a_view_holds_nothing_and_is_told(shard: Shard) -> None:
    group = Group(shard)
    entries = await committed(shard, 4)
    await group.place("oldest")
    await group.claim()
    await group.acknowledge(entries[0], 2)
    await count(shard, "", entries[1])
    await count(shard, "", entries[3], view="other")
    await trim(shard, entries[2], held_age=1, now=NOW * 2)
    assert await log(shard) == entries[3:]
    assert await position(shard) is None
    assert await position(shard, "other") == entries[3].encode()
    found = await group.position()
    assert found is not None
    assert found.missed is not None
    assert found.missed.entries == 2
    assert await count(shard, entries[1], entries[3]) is Reply.STALE, "it has not counted what is gone"
    assert await stored(shard) == {b"state": entries[1].encode()}
    again = shard.kernel.store_view(
        0, "cost", shard.token, "state", entries[1].encode(), entries[1].encode(), b"", entries[1]
    )
    assert await shard.do(again) is Reply.OK
    assert await position(shard) == entries[1].encode()


async def test_a_position_is_noted_before_anything_is_counted(shard: Shard) -> None:
    await committed(shard, 1)
    call = shard.kernel.store_view(0, "cost", shard.token, "state", b"", b"", b"", "0-0")
    assert await shard.do(call) is Reply.OK
    assert await stored(shard) == {}
    assert await position(shard) == b"0-0"
