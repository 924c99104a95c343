"""What a daemon says about runs that the server has lost, compared with what it had in memory."""

from __future__ import annotations

import re

import pytest

from streamflow.daemon import lost_writes as module
from streamflow.daemon.lost_writes import LostWrites
from streamflow.daemon.shard import LiveRun, OwnedShard
from streamflow.daemon.starts import HeldStart
from streamflow.errors import StoreError, StoreUnavailable
from streamflow.model.record import decode_header
from streamflow.store.connection import Call
from tests.support.fakes import KERNEL, FakeStore, owned, put, start

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def header(version: int, commit: str = "", created: int = 900, status: str = "running") -> bytes:
    return f"{status} {version} {commit or f's.{version}'} {created} 0 flow - -".encode()


def shard_with(**runs: bytes) -> OwnedShard:
    shard = owned()
    for run_id, line in runs.items():
        shard.live[run_id] = LiveRun(None, decode_header(line), line, None)  # type: ignore[arg-type]
    return shard


class Server:
    """Has these headers, by run id."""

    def __init__(self, **headers: bytes | StoreError) -> None:
        self.headers = headers
        self.store = FakeStore(LINDEX=self._read)
        self.held: dict[str, HeldStart] = {}
        self.lost = LostWrites(self.store, KERNEL, self.held)  # type: ignore[arg-type]

    def _read(self, call: Call[object]) -> bytes | StoreError | None:
        return self.headers.get(call.args[1].rpartition(":")[2])


async def test_runs_are_named_by_what_became_of_them(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(
        same=header(3),
        back=header(2),
        rewritten=header(3, "other.1"),
        advanced=header(5),
        another=header(3, created=950),
        damaged=b"no header",
        refused=StoreError("WRONGTYPE"),
    )
    names = ("same", "back", "rewritten", "advanced", "another", "damaged", "refused", "missing")
    server.lost.dropped(shard_with(**dict.fromkeys(names, header(3))))
    server.lost.history_changed()
    await server.lost.report()
    assert re.findall("runs that are (.*)", caplog.text) == [
        "gone: another, missing",
        "set back: back (from transition 3 to 2), rewritten (from transition 3 to 3)",
    ]
    assert "of 8 runs that this daemon had in memory, 2 are gone and 2 were set back" in caplog.text
    assert server.lost.recent_count == 4


async def test_a_run_that_was_replaced_when_it_had_ended_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    with_identity = b"running 1 s.9 950 0 flow - - - - i0123456789abcdef"
    server = Server(replaced=with_identity, stopped=with_identity, started=header(1, created=950))
    ended = b"completed 3 s.3 900 920 flow - -"
    for run_id, line in (("replaced", ended), ("started", ended), ("stopped", header(3))):
        server.lost.left_memory(0, run_id, line)
    server.lost.history_changed()
    await server.lost.report()
    assert re.findall("runs that are (.*)", caplog.text) == ["gone: started, stopped"]


async def test_starts_in_memory_and_runs_that_have_just_ended_are_compared(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    server = Server(ended=header(1))
    server.lost.left_memory(0, "long-ended", header(9, status="completed"))
    clock.now += 60.0
    server.lost.left_memory(0, "ended", header(2, status="completed"))
    clock.now += 5.0
    shard = owned()
    put(shard, start("1-0", "unread", "flow"))
    server.lost.dropped(shard)
    server.held["held"] = HeldStart(shard, start("2-0", "held", "flow"))
    server.lost.history_changed()
    await server.lost.report()
    assert re.findall("runs that are (.*)", caplog.text) == [
        "gone: unread, held",
        "set back: ended (from transition 2 to 1)",
    ]


async def test_nothing_is_compared_before_the_history_changes(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    server = Server()
    server.lost.dropped(shard_with(long_gone=header(1)))
    await server.lost.report()
    clock.now += 31.0
    server.lost.dropped(shard_with(shortly=header(1)))
    await server.lost.report()
    assert server.store.calls == []
    clock.now += 5.0
    server.lost.history_changed()
    await server.lost.report()
    assert re.findall("runs that are (.*)", caplog.text) == ["gone: shortly"]
    await server.lost.report()
    assert len(server.store.calls) == 1, "it is said once"
    clock.now += 3601.0
    assert server.lost.recent_count == 0


async def test_a_server_that_cannot_be_asked_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.lost.dropped(shard_with(r=header(1)))
    server.lost.history_changed()
    server.store.answers["LINDEX"] = _away
    with pytest.raises(StoreUnavailable):
        await server.lost.report()
    server.store.answers["LINDEX"] = None
    await server.lost.report()
    assert "runs that are gone: r" in caplog.text


def _away(_: Call[object]) -> bytes:
    raise StoreUnavailable("away")


async def test_lists_of_runs_are_divided_and_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NAMED", 120)
    server = Server()
    server.lost.dropped(shard_with(**dict.fromkeys((f"r{number}" for number in range(130)), header(1))))
    server.lost.history_changed()
    await server.lost.report()
    lines = [line for line in caplog.messages if line.startswith("runs that are gone")]
    assert [len(line.split(", ")) for line in lines] == [50, 50, 20]
    assert "and 10 more runs that are gone" in caplog.text


async def test_what_nobody_can_know_is_said_with_the_runs_that_were_under_way(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """The owner has died with its server: in another moment it has lost nothing."""
    server = Server()
    lost, store = server.lost, server.store
    store.server_generation = 1

    def taken_over(number: int, history: int, *orphans: str, owner: str = "dead") -> None:
        shard = owned(number)
        shard.history, shard.lost_with, shard.orphans = history, owner, set(orphans)
        lost.found(shard)

    taken_over(0, 1, "before")
    await lost.report()
    assert not caplog.text
    lost.history_changed()
    taken_over(1, 1, "a", "b")
    taken_over(2, 1)
    taken_over(3, 0, "on another server")
    taken_over(4, 1, "of nobody", owner="")
    await lost.report()
    assert re.findall("runs that are (.*)", caplog.text) == ["perhaps set back: a, b"]
    assert "2 runs were under way in shards 1, 2" in caplog.text
    assert (lost.recent_count, lost.total) == (2, 2)
    clock.now += 61.0
    caplog.clear()
    taken_over(5, 1, "long after")
    await lost.report()
    assert not caplog.text


async def test_the_start_of_a_child_comes_again_from_its_parent(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    shard = owned()
    put(shard, start("1-0", "child", "flow", parent="p#1@5"))
    server.lost.dropped(shard)
    server.lost.history_changed()
    await server.lost.report()
    assert "gone" not in caplog.text


async def test_more_than_was_kept_counts_at_least_once_for_each_shard(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(back=header(2))
    server.lost.forgotten(3)
    server.lost.forgotten(4)
    await server.lost.report()
    assert "more of shards 3, 4 than this daemon had kept" in caplog.text
    assert server.lost.recent_count == 2
    server.lost.dropped(shard_with(back=header(3)))
    server.lost.forgotten(0)
    await server.lost.report()
    assert server.lost.recent_count == 3, "the run that is named"
