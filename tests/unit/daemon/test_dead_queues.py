"""Queues without workers: which the leading daemon finds, and what that costs."""

from __future__ import annotations

import pytest

from streamflow.daemon.dead_queues import DeadQueues
from streamflow.daemon.fleet import Fleet
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.store.queues import QueueFigures
from streamflow.store.workers import WorkerHeartbeat
from streamflow.views.attention import DeadQueue
from tests.support.fakes import FakeStore, context

pytestmark = pytest.mark.anyio


def fleet(*served: str, queues: list[str] | None, draining: bool = False) -> Fleet:
    return Fleet(queues, [WorkerHeartbeat(name="w", queues=list(served), draining=draining)], 0)


class Reads:
    """In place of `read_queues`: three steps wait in each queue, or it raises `error`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: StoreError | None = None

    async def __call__(self, store: object, keys: object, names: list[str], *more: object) -> list[QueueFigures]:
        self.asked.extend(names)
        if self.error is not None:
            raise self.error
        return [QueueFigures(name=name, waiting=3, oldest=7) for name in names]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    reads = Reads()
    monkeypatch.setattr("streamflow.daemon.dead_queues.read_queues", reads)
    return reads


def dead_queues() -> DeadQueues:
    return DeadQueues(context(FakeStore(), shards=4, rollup=1.0))


async def test_queues_with_workers_cost_no_read(reads: Reads) -> None:
    it = dead_queues()
    assert await it.look(fleet("gpu", "cpu", queues=["gpu", "cpu"]))
    assert it.found == []
    assert not await it.look(fleet("gpu", queues=["gpu"])), "nothing has changed"
    assert reads.asked == []


@pytest.mark.parametrize("workers", [fleet(queues=["gpu"]), fleet("cpu", queues=["gpu"])])
async def test_only_queues_without_a_live_worker_are_read(workers: Fleet, reads: Reads) -> None:
    it = dead_queues()
    assert await it.look(workers)
    assert reads.asked == ["gpu"]
    assert it.found == [DeadQueue("gpu", 3, 7)]


async def test_a_worker_that_drains_serves_no_queue_any_more(reads: Reads) -> None:
    await dead_queues().look(fleet("gpu", queues=["gpu"], draining=True))
    assert reads.asked == ["gpu"]


async def test_a_daemon_that_leads_no_more_knows_of_none(reads: Reads) -> None:
    it = dead_queues()
    await it.look(fleet(queues=["gpu"]))
    it.forget()
    assert it.found is None


async def test_what_was_known_stays_when_a_key_is_damaged(reads: Reads) -> None:
    it = dead_queues()
    await it.look(fleet(queues=["gpu"]))
    assert not await it.look(fleet(queues=None))
    reads.error = StoreError("WRONGTYPE")
    assert not await it.look(fleet(queues=["gpu"]))
    assert it.found == [DeadQueue("gpu", 3, 7)]
    reads.error = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable):
        await it.look(fleet(queues=["gpu"]))
