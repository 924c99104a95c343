"""Reading the starts that wait on the server: none is lost by an error, and none is read twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from streamflow.daemon.admission import Admission
from streamflow.daemon.shard import OwnedShard
from streamflow.daemon.starts import Starts
from streamflow.errors import StoreError
from streamflow.model.record import Header, Status
from streamflow.store.kernel import NextStarts, Reply
from tests.support.fakes import FakeStore, context, owned

pytestmark = pytest.mark.anyio

HEADER = Header(Status.PENDING, 0, "-", 5, 0, "flow", "", "").encode()
WHOLE: tuple[None, list[bytes]] = (None, [HEADER, b"input"])


class Bench:
    """An owner of one shard, whose server answers from a table."""

    def __init__(self, *records: Any, waiting: int = 3) -> None:
        self.shard = owned(1)
        self.starts = Starts(8)
        self.refused: list[OwnedShard] = []
        runs = [(f"r{number}", 17 + number) for number in range(len(records))]
        self.store = FakeStore(next_starts=NextStarts(Reply.OK, waiting, 0, runs), read_runs=list(records))
        owner: Any = SimpleNamespace(
            shards={1: self.shard},
            starts=self.starts,
            is_full=False,
            refused=lambda shard, _: self.refused.append(shard),
            wake_up=lambda: None,
            touch=lambda _: None,
        )
        self.admission = Admission(context(self.store, shards=2), owner)

    def held(self) -> list[str]:
        return list(self.starts.held)


async def test_starts_that_wait_are_held_once() -> None:
    it = Bench(WHOLE, WHOLE)
    await it.admission.run_once()
    await it.admission.run_once()
    assert it.held() == ["r0", "r1"]
    assert [len(held.messages) for held in it.starts.held.values()] == [1, 1]
    [message] = it.starts.held["r0"].messages
    assert (message.header, message.body, message.waited) == (HEADER, b"input", True)


async def test_a_start_whose_record_cannot_be_read_now_goes_on_waiting() -> None:
    it = Bench(WHOLE)
    it.store.answers["read_runs"] = StoreError("LOADING")
    await it.admission.run_once()
    assert (it.held(), it.shard.fetched, it.refused) == ([], set(), [it.shard])
    it.store.answers["read_runs"] = [WHOLE]
    await it.admission.run_once()
    assert it.held() == ["r0"]


async def test_starts_that_have_no_room_in_the_answer_go_on_waiting() -> None:
    it = Bench(WHOLE, (0, []), (1, [HEADER]))
    await it.admission.run_once()
    assert (it.held(), it.shard.fetched) == (["r0"], {"r0"})
    it.store.answers["read_runs"] = [WHOLE, WHOLE]
    await it.admission.run_once()
    assert it.held() == ["r0", "r1", "r2"]


async def test_a_record_that_is_damaged_or_gone_is_held_to_be_removed(caplog: pytest.LogCaptureFixture) -> None:
    it = Bench(StoreError("WRONGTYPE"), (None, []))
    await it.admission.run_once()
    assert [held.messages[0].header for held in it.starts.held.values()] == [b"", b""]
    assert "run r0, whose start waits, can't begin" in caplog.text


async def test_a_shard_without_any_is_not_asked_again() -> None:
    it = Bench(waiting=0)
    await it.admission.run_once()
    assert not it.shard.waits
    assert it.store.sent("read_runs") == []
