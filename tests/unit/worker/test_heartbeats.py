"""A worker's heartbeats: when it joins, whose deaths are its business, and what is removed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streamflow.errors import StoreUnavailable
from streamflow.store.kernel import Heartbeats
from streamflow.store.workers import WorkerHeartbeat, live_workers
from streamflow.worker import heartbeats as module
from streamflow.worker.heartbeats import WorkerHeartbeats
from tests.support.fakes import KERNEL

NOW = 1_000_000
"""The server's clock at the first answer, ms."""


class FakeClock:
    now = 50.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    monkeypatch.setattr(module.time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def mine(clock: FakeClock) -> WorkerHeartbeats:
    return WorkerHeartbeats(KERNEL, "me", ["gpu"], lambda: WorkerHeartbeat(name="me", queues=["gpu"]))


def record(name: str, **facts: Any) -> bytes:
    usual = {"name": name, "timeout": 10.0, "sent": NOW, "queues": ["gpu"]}
    return msgspec.json.encode(usual | facts)


def beat(mine: WorkerHeartbeats, ended: dict[bytes, bytes] | None = None, **others: bytes) -> WorkerHeartbeat:
    """One heartbeat, which the server stores. Returns it."""
    raw: bytes = mine.calls()[0].args[1]
    mine.answered([Heartbeats(NOW, {"me": raw, **others}), ended or {}, None, {}])
    return msgspec.json.decode(raw, type=WorkerHeartbeat)


def test_a_heartbeat_says_when_it_is_sent_by_the_servers_clock(mine: WorkerHeartbeats, clock: FakeClock) -> None:
    assert beat(mine).sent == 0, "it has not answered yet"
    clock.now += 1.5
    second = beat(mine)
    assert (second.sent, second.started, second.beat) == (NOW + 1500, NOW, 2)


def test_a_worker_joins_and_joins_again_when_its_record_is_gone(mine: WorkerHeartbeats) -> None:
    assert [mine.calls()[0].args[2], mine.calls()[0].args[2]] == ["1", "1"], "nothing is answered yet"
    beat(mine)
    assert mine.calls()[0].args[2] == ""
    mine.answered([Heartbeats(NOW, {}), {}, None, {}])
    assert mine.calls()[0].args[2] == "1"


def test_only_what_the_server_has_stored_goes_to_the_process_beside_it(mine: WorkerHeartbeats) -> None:
    seen: list[bytes] = []
    mine.on_beat = seen.append
    beat(mine)
    mine.answered([Heartbeats(NOW, {}), {}, None, {}])
    mine.answered([StoreUnavailable("no permission"), {}, None, {}])
    assert len(seen) == 1


def test_deaths_of_workers_of_other_queues_are_left_to_others(mine: WorkerHeartbeats) -> None:
    ended = {b"a": record("a"), b"b": record("b", queues=["cpu"]), b"c": b"garbage", b"me": record("me")}
    beat(mine, ended)
    assert mine.died == {"a", "c"}
    mine.died.clear()
    beat(mine, ended)
    assert mine.died == set(), "each once"


def test_old_notes_on_deaths_are_removed(mine: WorkerHeartbeats) -> None:
    old, new = record("a", sent=NOW - 61_000), record("b")
    beat(mine, {b"a": old, b"b": new})
    *_, removes = mine.calls()
    assert (removes.keys, removes.args[4:]) == ([KERNEL.keys.ended], ["a", old])
    assert len(mine.calls()) == 4, "that is said once"


def test_workers_that_vanished_are_removed_and_silent_ones_are_not(mine: WorkerHeartbeats, clock: FakeClock) -> None:
    beat(mine)
    assert mine.calls()[0].args[3] == "", "the others aren't asked for"
    clock.now += 61
    vanished, silent = record("a", sent=NOW - 61_000), record("b", sent=NOW - 59_000)
    assert mine.calls()[0].args[3] == "1"
    beat(mine, a=vanished, b=silent)
    assert mine.calls()[0].args[3:] == ["", "a", vanished]


def test_nothing_is_sent_once_it_has_left(mine: WorkerHeartbeats) -> None:
    beat(mine)
    [repeated] = mine.repeat()
    assert repeated.args[1] != b""
    [last] = mine.leave()
    assert last.args[:2] == ["me", b""]
    assert (mine.calls(), mine.repeat()) == ([], [])


def test_a_worker_lives_for_its_own_time_out_whatever_the_clock_did() -> None:
    members = {
        b"a": record("a"),
        b"b": record("b", sent=NOW - 10_001),
        b"c": record("c", sent=NOW + 60_000),
        b"d": b"?",
    }
    assert [worker.name for worker in live_workers(members, NOW)] == ["a"]
