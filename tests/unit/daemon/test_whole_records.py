"""Records of many runs, read some at a time: each comes out once, whole, however replies divide them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamflow.daemon.whole_records import Record, whole_records
from streamflow.errors import StoreError
from streamflow.store.connection import Call
from tests.support.fakes import FakeStore, context

pytestmark = pytest.mark.anyio

SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.lists(st.integers(0, 9), max_size=8), max_size=8)


class Server:
    """Answers as `lua/read_runs.lua` does: a record ends with the element that reaches the limit."""

    def __init__(self, records: dict[str, list[bytes]], harmed: frozenset[str] = frozenset()) -> None:
        self.records = records
        self.harmed = harmed
        self.store = FakeStore(read_runs=self._read)

    def _read(self, call: Call[Any]) -> list[tuple[int | None, list[bytes]] | StoreError]:
        limit, *firsts = call.args
        size = 0
        reply: list[tuple[int | None, list[bytes]] | StoreError] = []
        for key, first in zip(call.keys, firsts, strict=True):
            run_id = key.rpartition(":")[2]
            if run_id in self.harmed:
                reply.append(StoreError(f"WRONGTYPE {run_id}"))
                continue
            record = self.records.get(run_id, [])
            at = first
            while at < len(record) and size < limit:
                size += len(record[at])
                at += 1
            reply.append((None if at == len(record) else at, record[first:at]))
        return reply

    async def read(self, *run_ids: str, limit: int) -> list[list[Record]]:
        return [some async for some in whole_records(context(self.store, shards=1), 0, run_ids, limit)]


@given(SIZES, st.integers(1, 30))
async def test_each_record_comes_out_once_and_whole(sizes: dict[str, list[int]], limit: int) -> None:
    records = {run_id: [b"x" * size for size in some] for run_id, some in sizes.items()}
    replies = await Server(records).read(*records, limit=limit)
    found = [one for some in replies for one in some]
    assert sorted(run_id for run_id, _ in found) == sorted(records)
    assert [one for one in found if one[1]] == [one for one in records.items() if one[1]]


async def test_a_record_larger_than_a_portion_is_put_together() -> None:
    records = {"a": [b"1" * 4], "large": [b"2" * 4] * 9, "z": [b"3" * 4]}
    server = Server(records)
    replies = await server.read("a", "large", "z", limit=10)
    assert [len(some) for some in replies] == [1, 0, 0, 2]
    assert [call.args[1:] for call in server.store.sent("read_runs")] == [[0, 0, 0], [2, 0], [5, 0], [8, 0]]
    assert dict(replies[0] + replies[-1]) == records


async def test_runs_that_are_gone_or_harmed_hold_up_nobody() -> None:
    server = Server({"a": [b"1"], "b": [b"2"]}, frozenset({"harmed"}))
    [some] = await server.read("a", "harmed", "gone", "b", limit=100)
    found = dict(some)
    assert isinstance(harmed := found.pop("harmed"), StoreError)
    assert "WRONGTYPE" in str(harmed)
    assert found == {"a": [b"1"], "gone": [], "b": [b"2"]}
    assert await server.read(limit=100) == []
    assert len(server.store.sent("read_runs")) == 1, "of no runs nothing is asked"


async def test_a_server_that_does_not_answer_ends_the_reading() -> None:
    server = Server({})
    server.store.answers["read_runs"] = StoreError("LOADING")
    with pytest.raises(StoreError, match="LOADING"):
        await server.read("a", limit=100)
