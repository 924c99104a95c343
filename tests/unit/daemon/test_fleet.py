"""What the leading daemon reads of queues and workers, and how often."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.daemon.fleet import FleetLooks
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.workers import WorkerHeartbeat
from tests.support.fakes import FakeStore, context

pytestmark = pytest.mark.anyio

CLOCK = 1_700_000_000_000
TIME = (CLOCK // 1000, 0)


def worker(name: str, age: int = 0) -> dict[bytes, bytes]:
    return {name.encode(): msgspec.json.encode(WorkerHeartbeat(name=name, timeout=5.0, sent=CLOCK - age))}


def looks(**answers: Any) -> tuple[FleetLooks, FakeStore]:
    store = FakeStore(TIME=TIME, **answers)
    return FleetLooks(context(store, shards=4, rollup=1.0)), store


async def test_queues_and_the_workers_that_live_are_read_in_one_pipeline() -> None:
    workers = {**worker("b"), **worker("a"), **worker("gone", age=60_000), b"x": b"\xff"}
    it, store = looks(HKEYS=[b"gpu"], HGETALL=workers)
    found = await it.look()
    assert found is not None
    assert (found.queues, [one.name for one in found.workers], found.clock) == (["gpu"], ["a", "b"], CLOCK)
    assert [[call.args[0] for call in calls] for calls in store.calls] == [["HKEYS", "HGETALL", "TIME"]]


async def test_it_looks_every_ten_seconds_and_as_soon_as_it_leads_again() -> None:
    it, store = looks()
    seen = [await it.look() is not None for _ in range(11)]
    assert [turn for turn, looked in enumerate(seen) if looked] == [0, 10]
    it.forget()
    assert await it.look() is not None
    assert len(store.calls) == 3


async def test_damaged_names_of_queues_leave_the_workers_known() -> None:
    it, _ = looks(HKEYS=StoreError("WRONGTYPE"), HGETALL=worker("a"))
    found = await it.look()
    assert found is not None
    assert (found.queues, [one.name for one in found.workers]) == (None, ["a"])


async def test_nothing_is_known_when_the_workers_cannot_be_read() -> None:
    it, _ = looks(HGETALL=StoreError("WRONGTYPE"))
    assert await it.look() is None


async def test_an_outage_is_passed_on() -> None:
    it, _ = looks(HGETALL=StoreUnavailable("away"))
    with pytest.raises(StoreUnavailable):
        await it.look()
