"""peek_runs: headers of runs, and the last transition of those that have ended."""

from __future__ import annotations

import pytest

from streamflow.errors import StoreError
from tests.kernel.support import NOTE, Shard

pytestmark = pytest.mark.anyio


async def test_a_run_that_does_not_exist_has_neither_header_nor_outcome(shard: Shard) -> None:
    assert await shard.assert_changes_nothing(shard.kernel.peek_runs(0, ["none"])) == [(b"", b"")]


@pytest.mark.parametrize("status", ["running", "stuck"])
async def test_an_open_run_shows_its_header_only(shard: Shard, status: str) -> None:
    await shard.acquire()
    await shard.start("pending", "open")
    await shard.advance("open", status)
    headers = [await shard.header("pending"), await shard.header("open")]
    answer = await shard.assert_changes_nothing(shard.kernel.peek_runs(0, ["pending", "open"]))
    assert answer == [(header, b"") for header in headers]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_a_run_that_has_ended_shows_its_last_transition(shard: Shard, status: str) -> None:
    await shard.acquire()
    await shard.start("r1")
    await shard.advance("r1")
    await shard.advance("r1", status)
    peek = shard.kernel.peek_runs(0, ["r1"])
    assert await shard.assert_changes_nothing(peek) == [(await shard.header("r1"), NOTE)]


async def test_the_answers_come_in_the_order_of_the_ids(shard: Shard) -> None:
    await shard.start("a", "b")
    answer = await shard.do(shard.kernel.peek_runs(0, ["b", "none", "a"]))
    assert [header for header, _ in answer] == [await shard.header("b"), b"", await shard.header("a")]
    assert await shard.do(shard.kernel.peek_runs(0, [])) == []


async def test_a_key_of_the_wrong_type_is_an_error_and_nothing_else(shard: Shard) -> None:
    shard.planted.add(shard.keys.run("r1"))
    await shard.plain("SET", shard.keys.run("r1"), "a string")
    answer = await shard.assert_changes_nothing(shard.kernel.peek_runs(0, ["r1"]))
    assert isinstance(answer, StoreError)
