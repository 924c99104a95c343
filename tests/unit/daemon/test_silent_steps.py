"""Which steps the leading daemon finds silent: those that daemons and workers that live say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.daemon.silent_steps import SilentSteps
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.model.reports import StepBeat
from streamflow.store.workers import WorkerHeartbeat
from streamflow.views.attention import Silent
from streamflow.wire import Heartbeat
from tests.support.fakes import FakeStore, context

pytestmark = pytest.mark.anyio

CLOCK = 1_700_000_000_000
TIME = (CLOCK // 1000, 0)
SILENT = StepBeat("r", 1, 2, "crawl", 700.0, True)
SLOW = StepBeat("q", 1, 1, "crawl", 900.0)


def silent_steps(store: FakeStore) -> SilentSteps:
    return SilentSteps(context(store, shards=4, rollup=1.0))


def daemon(*beats: StepBeat, age: int = 0, ahead: int = 0) -> dict[bytes, bytes]:
    beat = Heartbeat(name="d", clock=CLOCK + ahead - age, ahead=ahead, silent=list(beats), silent_steps=len(beats))
    return {b"d": msgspec.json.encode(beat)}


def worker(*beats: StepBeat, age: int = 0) -> dict[bytes, bytes]:
    return {b"w": msgspec.json.encode(WorkerHeartbeat(name="w", timeout=5.0, sent=CLOCK - age, beats=list(beats)))}


class TwoHashes(FakeStore):
    """HGETALL answers with the daemons, then with the workers."""

    def __init__(self, members: dict[bytes, bytes], workers: dict[bytes, bytes]) -> None:
        super().__init__(TIME=TIME)
        self.hashes = {"members": members, "workers": workers}

    async def one(self, call: Any, **options: Any) -> Any:
        if call.args[0] == "HGETALL":
            self.answers["HGETALL"] = self.hashes[str(call.args[1]).rpartition(":")[2]]
        return await super().one(call, **options)


@pytest.mark.parametrize(
    ("members", "workers", "found"),
    [
        (daemon(SILENT), {}, [Silent("crawl", "r", 2, CLOCK - 700_000, "daemon d")]),
        (daemon(SILENT, ahead=3_600_000), {}, [Silent("crawl", "r", 2, CLOCK + 2_900_000, "daemon d")]),
        (daemon(SILENT, age=60_000), {}, []),
        (
            {},
            worker(SILENT, SLOW),
            [Silent("crawl", "r", 2, CLOCK - 700_000, "worker w")],
        ),
        ({}, worker(SILENT, age=60_000), []),
        ({b"x": b"\xff"}, {b"y": b"{"}, []),
    ],
)
async def test_steps_of_processes_that_live_are_found(
    members: dict[bytes, bytes], workers: dict[bytes, bytes], found: list[Silent]
) -> None:
    it = silent_steps(TwoHashes(members, workers))
    assert await it.look() is bool(found)
    assert it.found == found


async def test_a_look_takes_three_reads_in_ten_seconds() -> None:
    store = TwoHashes({}, {})
    it = silent_steps(store)
    for _ in range(11):
        await it.look()
    assert [call.args[0] for calls in store.calls for call in calls] == 2 * ["HGETALL", "HGETALL", "TIME"]
    it.forget()
    await it.look()
    assert len(store.sent("TIME")) == 3


async def test_a_damaged_key_changes_nothing_and_an_outage_is_passed_on() -> None:
    it = silent_steps(TwoHashes(daemon(SILENT), {}))
    await it.look()
    it._looks.forget()  # pyright: ignore[reportPrivateUsage]
    broken: Any = FakeStore(HGETALL=StoreError("WRONGTYPE"))
    it._store = broken  # pyright: ignore[reportPrivateUsage]
    assert await it.look() is False
    assert it.found == [Silent("crawl", "r", 2, CLOCK - 700_000, "daemon d")]
    with pytest.raises(StoreUnavailable):
        await silent_steps(FakeStore(HGETALL=StoreUnavailable("away"))).look()
