"""Forgetting of ended runs, against a store that answers from a table."""

from __future__ import annotations

import pytest

from streamflow.daemon import retention as module
from streamflow.daemon.retention import Retention
from streamflow.daemon.shard import OwnedShard
from tests.support.fakes import FakeOwner, FakeStore, context, owned

pytestmark = pytest.mark.anyio


def retention(store: FakeStore, *shards: OwnedShard, keep: float = 0.0) -> Retention:
    return Retention(context(store, shards=4, retention=keep), FakeOwner(*shards))  # type: ignore[arg-type]


async def test_a_sweep_asks_for_ended_runs_that_are_old_enough_and_forgets_them() -> None:
    shard = owned()
    shard.workflows = {"flow"}
    header = b"completed 3 c 900 950 flow - -"
    store = FakeStore(
        ZRANGEBYSCORE=lambda call: [b"a", b"b"] if "completed" in call.args[1] else [],
        peek_runs=[(header, b"x"), (b"", b"")],
        forget_runs=1,
    )
    assert not await retention(store, shard, keep=100.0).forget_once()
    asked = store.sent("ZRANGEBYSCORE")
    assert {call.args[1].rpartition(":")[0].rpartition(":")[2] for call in asked} == {
        "completed",
        "failed",
        "cancelled",
    }
    assert {call.args[3] for call in asked} == {900_000}
    [forgotten] = store.sent("forget_runs")
    assert forgotten.args == [1, "a", header], "and b is gone already"


async def test_a_sweep_says_when_there_is_more() -> None:
    shard = owned()
    shard.workflows = {"flow"}
    full = [f"r{n}".encode() for n in range(module.SWEEP_RUNS)]
    store = FakeStore(ZRANGEBYSCORE=full, peek_runs=[(b"", b"")] * module.SWEEP_RUNS, ZREM=module.SWEEP_RUNS)
    assert await retention(store, shard).forget_once()


async def test_a_sweep_that_can_forget_nothing_ends() -> None:
    shard = owned()
    shard.workflows = {"flow"}
    full = [f"r{n}".encode() for n in range(module.SWEEP_RUNS)]
    store = FakeStore(ZRANGEBYSCORE=full, peek_runs=[(b"", b"")] * module.SWEEP_RUNS, ZREM=0)
    assert not await retention(store, shard).forget_once()
