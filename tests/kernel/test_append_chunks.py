"""append_chunks: what a running attempt emits, bounded, in order, and only from who runs it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.store.connection import Call
from streamflow.store.kernel import Batch, ChunkBatch, ChunkPage, Holder, Reply
from tests.kernel.support import NOW, Shard

pytestmark = pytest.mark.anyio

LIMIT, SECONDS = 100_000, 60


def batch(number: int = 1, *values: Any, **other: Any) -> ChunkBatch:
    body = msgspec.msgpack.encode([(NOW, value) for value in values])
    fields: dict[str, Any] = {
        "run_id": "r1", "created": NOW, "seq": 1, "attempt": 1, "execution": "a", "step": "write", "number": number,
        "count": len(values), "body": body,
    }  # fmt: skip
    return ChunkBatch(**{**fields, **other})


async def prepared(shard: Shard) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1")


def append(shard: Shard, what: ChunkBatch, *, limit: int = LIMIT, token: str | None = None) -> Call[str]:
    holder = Holder(shard.keys.owner, "token", shard.token if token is None else token)
    return shard.kernel.append_chunks(0, what, holder, limit, SECONDS)


async def page(shard: Shard, made: str = "", entry: int = 1) -> ChunkPage:
    return await shard.do(shard.kernel.read_chunks(0, "r1", made, entry, 1_000_000))


async def heads(shard: Shard) -> list[str]:
    """Of the entries: number of the first chunk, seq, attempt, restarts, over, step."""
    return [text.partition(b"\n")[0].decode() for _, text in (await page(shard)).entries]


async def test_chunks_are_numbered_through_the_run_with_those_that_were_missed(shard: Shard) -> None:
    await prepared(shard)
    assert await shard.do(append(shard, batch(1, "a", "b"))) == "a"
    assert await shard.do(append(shard, batch(1, "x", seq=2))) == "a"
    assert await shard.do(append(shard, batch(2, "c", missed=5))) == "a"
    assert await heads(shard) == ["1 1 1 0 0 write", "3 2 1 0 0 write", "9 1 1 0 0 write"]
    found = await page(shard)
    assert (found.first, found.next, found.total) == (1, 4, 9)
    assert found.entries[0][1].endswith(batch(1, "a", "b").body)


async def test_a_batch_that_is_sent_twice_is_there_once(shard: Shard) -> None:
    await prepared(shard)
    for number in (1, 2):
        call = append(shard, batch(number, "a", over=number == 2))
        assert await shard.do(call) == "a"
        assert await shard.assert_changes_nothing(call) == "a"
    assert len(await heads(shard)) == 2


async def test_another_attempt_or_execution_says_that_it_restarts_once(shard: Shard) -> None:
    await prepared(shard)
    for what in (
        batch(1, "a"),
        batch(1, "a", attempt=2, execution="b"),
        batch(2, "b", attempt=2, execution="b"),
        batch(1, "a", attempt=2, execution="c"),
        batch(1, "a", attempt=3, execution="d", seq=2),
    ):
        await shard.do(append(shard, what))
    assert [head.split(" ")[3] for head in await heads(shard)] == ["0", "1", "0", "1", "1"]


async def test_only_who_runs_the_attempt_appends(shard: Shard) -> None:
    await prepared(shard)
    former = shard.token
    await shard.acquire("two")
    assert await shard.assert_changes_nothing(append(shard, batch(1, "a"), token=former)) == "l"
    assert await shard.do(append(shard, batch(1, "a"))) == "a"


async def test_a_run_that_has_ended_or_is_another_one_takes_nothing(shard: Shard) -> None:
    await shard.acquire()
    assert await shard.assert_changes_nothing(append(shard, batch(1, "a"))) == "m"
    await shard.start("r1")
    assert await shard.assert_changes_nothing(append(shard, batch(1, "a", created=NOW - 1))) == "m"
    await shard.do(append(shard, batch(1, "a")))
    await shard.advance("r1", "completed")
    assert await shard.assert_changes_nothing(append(shard, batch(2, "a"))) == "e"
    assert len(await heads(shard)) == 1, "what was emitted stays"


async def test_the_oldest_entries_go_first_and_with_them_attempts_that_are_over(shard: Shard) -> None:
    await prepared(shard)
    size = len("x" * 200) + 130
    for number in range(1, 40):
        await shard.do(append(shard, batch(1, "x" * 200, seq=number, over=True), limit=10 * size))
    found = await page(shard)
    assert found.next == 40
    assert 25 < found.first < 32
    assert len(found.entries) == found.next - found.first
    fields = set(await shard.plain("HKEYS", shard.keys.chunks("r1")))
    assert {name for name in fields if name.isdigit()} == {str(number).encode() for number, _ in found.entries}
    assert sum(name.startswith(b"/") for name in fields) == len(found.entries)


async def test_an_entry_above_the_limit_is_kept_alone(shard: Shard) -> None:
    await prepared(shard)
    for number in (1, 2):
        await shard.do(append(shard, batch(number, "x" * 500), limit=100))
    assert [number for number, _ in (await page(shard)).entries] == [2]


async def test_they_expire_after_the_last_batch_and_another_run_has_its_own(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(append(shard, batch(1, "a")))
    assert 0 < await shard.plain("TTL", shard.keys.chunks("r1")) <= SECONDS
    await shard.plain("HSET", shard.keys.chunks("r1"), "created", NOW - 1)  # as if an earlier run had left them
    assert (await page(shard)).entries == []
    await shard.do(append(shard, batch(1, "b")))
    assert [number for number, _ in (await page(shard)).entries] == [1]


async def test_they_go_with_the_run(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(append(shard, batch(1, "a")))
    await shard.advance("r1", "completed")
    from streamflow.model.record import decode_header

    header = decode_header(await shard.header("r1"))
    assert await shard.do(shard.kernel.forget_runs(0, [("r1", header)])) == 1
    assert await shard.plain("EXISTS", shard.keys.chunks("r1")) == 0


async def test_wrong_key_types_leave_nothing_half_written(shard: Shard) -> None:
    await prepared(shard)
    await shard.do(append(shard, batch(1, "a")))
    await shard.assert_wrong_types_leave_nothing_half_written(append(shard, batch(2, "a")))


async def test_a_queues_entry_is_a_holder_as_well(shard: Shard) -> None:
    await prepared(shard)
    steps = shard.namespace.queue("gpu", 0).steps
    await shard.plain("HSET", steps, "r1/1", f"5-1 {NOW} 1 wanted")
    for entry, answer in (("4-1", "l"), ("5-1", "a")):
        holder = Holder(steps, "r1/1", f"{entry} {NOW} 1 wanted")
        assert await shard.do(shard.kernel.append_chunks(0, batch(1, "a"), holder, LIMIT, SECONDS)) == answer
    assert (await shard.do(shard.commit(Batch("c9")))).code is Reply.OK
