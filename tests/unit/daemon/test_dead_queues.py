"""How often the leading daemon looks for queues without workers, and what it reads."""

from __future__ import annotations

import msgspec
import pytest

from streamflow.daemon.dead_queues import DeadQueues
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.workers import WorkerHeartbeat
from streamflow.views.attention import DeadQueue
from tests.support.fakes import FakeStore, context

pytestmark = pytest.mark.anyio

CLOCK = 1_700_000_000_000
TIME = (CLOCK // 1000, 0)


def heartbeats(*queues: str, draining: bool = False, age: int = 0) -> dict[bytes, bytes]:
    worker = WorkerHeartbeat(name="w", queues=list(queues), timeout=5.0, sent=CLOCK - age, draining=draining)
    return {b"w": msgspec.json.encode(worker)}


def dead_queues(store: FakeStore) -> DeadQueues:
    return DeadQueues(context(store, shards=4, rollup=1.0))


async def test_queues_with_workers_cost_three_small_reads_in_ten_seconds() -> None:
    store = FakeStore(HKEYS=[b"gpu", b"cpu"], HGETALL=heartbeats("gpu", "cpu"), TIME=TIME)
    it = dead_queues(store)
    assert await it.look()
    assert it.found == []
    for _ in range(9):
        assert not await it.look()
    assert [call.args[0] for calls in store.calls for call in calls] == ["HKEYS", "HGETALL", "TIME"]
    assert not await it.look(), "nothing has changed"
    assert len(store.sent("HKEYS")) == 2


@pytest.mark.parametrize(
    "workers", [{}, heartbeats("cpu"), heartbeats("gpu", draining=True), heartbeats("gpu", age=60_000)]
)
async def test_only_queues_without_a_live_worker_are_read(
    workers: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def read_queues(store: object, keys: object, names: list[str], *more: object) -> list[object]:
        from streamflow.store.queues import QueueFigures

        asked.extend(names)
        return [QueueFigures(name=name, waiting=3, oldest=7) for name in names]

    monkeypatch.setattr("streamflow.daemon.dead_queues.read_queues", read_queues)
    it = dead_queues(FakeStore(HKEYS=[b"gpu"], HGETALL=workers, TIME=TIME))
    assert await it.look()
    assert asked == ["gpu"]
    assert it.found == [DeadQueue("gpu", 3, 7)]


async def test_a_daemon_that_leads_again_looks_at_once() -> None:
    store = FakeStore()
    it = dead_queues(store)
    await it.look()
    it.forget()
    assert it.found is None
    await it.look()
    assert len(store.sent("HKEYS")) == 2


async def test_what_was_known_stays_when_a_key_is_damaged() -> None:
    store = FakeStore()
    it = dead_queues(store)
    await it.look()
    it._looks.forget()
    store.answers["HKEYS"] = StoreError("WRONGTYPE")
    assert not await it.look()
    assert it.found == []
    it._looks.forget()
    store.answers["HKEYS"] = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await it.look()
