"""Starts that a server loses after it has acknowledged them, and the clients that still have them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import anyio
import msgspec
import pytest

from streamflow.client import recent_starts
from streamflow.client.pipelines import ServerBatcher
from streamflow.client.recent_starts import RecentStarts
from streamflow.client.starting import replaced
from streamflow.model.record import Header
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Message, Start
from streamflow.store.keys import NamespaceKeys
from tests.support.losing_server import LosingServer

pytestmark = pytest.mark.anyio

HEADER = b"0 pending flow %d - 0"


class Server:
    """Has runs by id, and loses them when it is told to, in the middle of a pipeline if `loses_in` says which."""

    confirmation: Any = None
    is_single = True

    def __init__(self) -> None:
        self.server_generation = 0
        self.runs: dict[str, int] = {}
        self.clock = 100
        self.starts: list[list[str]] = []
        self.posted: list[tuple[int, str]] = []
        self.loses_in = ""
        self.before_reply: Callable[[], Awaitable[None]] | None = None
        """Awaited once, by the next pipeline that is sent."""

    def history_of(self, key: str) -> int:
        return self.server_generation

    def lose(self, *run_ids: str) -> None:
        self.server_generation += 1
        for run_id in run_ids:
            del self.runs[run_id]

    async def send(
        self, calls: Sequence[Call[Any]], *, same_history: bool = False, confirmed: bool = False
    ) -> list[Any]:
        if self.loses_in in [call.script for call in calls]:
            self.loses_in = ""
            self.lose(*list(self.runs))
        answers = [self._answer(call) for call in calls]
        if (before_reply := self.before_reply) is not None:
            self.before_reply = None
            await before_reply()
        return answers

    def _answer(self, call: Call[Any]) -> Any:
        ids = [key.rpartition(":")[2] for key in call.keys if ":run:" in key]
        if call.script == "start_runs":
            self.starts.append(ids)
            return [self._start(run_id, call.args[0]) for run_id in ids]
        if call.script == "peek_runs":
            return [(HEADER % self.runs[run_id] if run_id in self.runs else b"", b"") for run_id in ids]
        self.posted += [(call.args[1], run_id) for run_id in ids]
        return "".join("a" if run_id in self.runs else "m" for run_id in ids)

    def _start(self, run_id: str, now: int | str) -> bytes:
        if run_id in self.runs:
            return HEADER % self.runs[run_id]
        self.clock += 1
        self.runs[run_id] = int(str(now).lstrip("=") or self.clock)
        return b"+" + HEADER % self.runs[run_id]


def client_of(server: Server) -> tuple[ServerBatcher, RecentStarts]:
    kernel, store = Kernel(NamespaceKeys("ns")), cast("Store", server)
    recent = RecentStarts(store, kernel)
    return ServerBatcher(store, kernel, recent), recent


def start(run_id: str) -> Start:
    return Start(run_id, "flow", "", b"input")


async def test_a_lost_start_is_there_again_before_it_is_asked_for() -> None:
    server = Server()
    batcher, recent = client_of(server)
    for run_id in ("a", "b", "c"):
        await batcher.start(0, start(run_id))
    created = dict(server.runs)
    server.lose("b", "c")
    line, _ = await batcher.peek(0, "c")
    assert line, "nobody learns that it was lost"
    assert server.runs == created, "each with the time of its first start: it is the same run"
    assert recent.again == 2
    await batcher.peek(0, "b")
    assert len(server.starts) == 6, "sent again once"


@pytest.mark.parametrize("script", ["peek_runs", "post_messages"])
async def test_a_pipeline_under_way_while_starts_are_lost_is_asked_again(script: str) -> None:
    server = Server()
    batcher, _ = client_of(server)
    await batcher.start(0, start("a"))
    server.loses_in = script
    if script == "peek_runs":
        line, _ = await batcher.peek(0, "a")
        assert line
    else:
        assert await batcher.post(0, Message("signal", "a", b"")) == "a"
        assert server.posted == [(1, "a"), (2, "a")], "what no run has got is posted under another number"


@pytest.mark.parametrize("script", ["peek_runs", "post_messages"])
async def test_what_came_just_before_a_lost_start_was_back_is_asked_again(script: str) -> None:
    server = Server()
    batcher, recent = client_of(server)
    await batcher.start(0, start("a"))
    server.loses_in = script

    async def restored_meanwhile() -> None:
        await recent.restored()
        assert "a" in server.runs

    server.before_reply = restored_meanwhile
    if script == "peek_runs":
        line, _ = await batcher.peek(0, "a")
        assert line
    else:
        assert await batcher.post(0, Message("signal", "a", b"")) == "a"


async def test_a_start_that_is_lost_before_its_pipeline_returns_is_kept() -> None:
    server = Server()
    batcher, recent = client_of(server)

    async def lost_meanwhile() -> None:
        server.lose("a")
        recent.restore_soon()

    server.before_reply = lost_meanwhile
    await batcher.start(0, start("a"))
    line, _ = await batcher.peek(0, "a")
    assert line
    assert (recent.again, recent.is_needed) == (1, False)


async def test_what_was_not_created_here_is_not_started_again() -> None:
    server = Server()
    batcher, recent = client_of(server)
    server.runs["other"] = 7
    await batcher.start(0, start("other"))
    await batcher.start(0, start("gone"))
    recent.settled("gone")
    server.lose("other", "gone")
    assert await batcher.peek(0, "other") == (b"", b"")
    assert await batcher.peek(0, "gone") == (b"", b"")
    assert server.runs == {}


async def test_a_start_is_kept_for_longer_than_a_slow_failover_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    batcher, _ = client_of(server)
    await batcher.start(0, start("a"))
    later = time.monotonic() + 45.0
    monkeypatch.setattr(recent_starts, "time", SimpleNamespace(monotonic=lambda: later))
    await batcher.start(0, start("b"))
    server.lose("a", "b")
    line, _ = await batcher.peek(0, "a")
    assert line


async def test_little_is_kept_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_starts, "KEEP_BYTES", 1_000)
    server = Server()
    batcher, _ = client_of(server)
    for number in range(10):
        await batcher.start(0, start(f"run-{number}"))
    server.lose(*list(server.runs))
    await batcher.peek(0, "run-9")
    assert sorted(server.runs) == ["run-6", "run-7", "run-8", "run-9"]
    monkeypatch.setattr(recent_starts, "KEEP_SECONDS", 0.0)
    server.lose(*list(server.runs))
    await batcher.peek(0, "run-9")
    assert server.runs == {}


class Place:
    """A server that has one id, and what has it."""

    confirmation: Any = None
    is_single = True

    def __init__(self, has: Header | None) -> None:
        self.server_generation = 0
        self.has = has
        self.asked: list[bytes] = []
        self.answered = anyio.Event()

    def history_of(self, key: str) -> int:
        return self.server_generation

    async def send(self, calls: Sequence[Call[Any]], **_: Any) -> list[Any]:
        [call] = calls
        assert call.script == "replace_run"
        created, expected = int(call.args[0].lstrip("=")), call.args[1]
        self.asked.append(expected)
        self.answered.set()
        if self.has is None or (self.has.encode() == expected and self.has.ended):
            self.has = Header("pending", 0, "-", created, 0, "flow", "", "", start="i0a")
            return [b"+" + self.has.encode()]
        return [(b"=" if self.has.start == "i0a" else b"") + self.has.encode()]


BEFORE = Header("failed", 3, "c3", 50, 60, "flow", "", "")


async def replacing(server: Place) -> RecentStarts:
    """A client whose start has taken the place of `BEFORE`, when the server turns out to be another one."""
    recent = RecentStarts(cast("Store", server), Kernel(NamespaceKeys("ns")))
    kept = Start("r", "flow", "", b"input", "", "i0a", BEFORE.encode())
    recent.acknowledged(0, kept, b"+pending 0 - 100 0 flow - - - - i0a", 0)
    server.server_generation += 1
    await recent.restored()
    return recent


@pytest.mark.parametrize("has", [BEFORE, None], ids=["the run that had gone", "nothing"])
async def test_a_lost_run_takes_its_place_again_once(has: Header | None) -> None:
    server = Place(has)
    recent = await replacing(server)
    assert server.has is not None
    assert (server.has.start, server.has.created, recent.again) == ("i0a", 100, 1)
    server.server_generation += 1
    await recent.restored()
    assert recent.again == 1


async def test_another_end_of_the_run_that_had_gone_goes_as_well() -> None:
    server = Place(msgspec.structs.replace(BEFORE, commit="other", ended=70))
    await replacing(server)
    assert server.has is not None
    assert server.has.start == "i0a"
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", ["failed", "running"])
async def test_a_newer_run_of_the_id_stays(status: str) -> None:
    newer = Header(status, 1, "c", 200, 210 if status == "failed" else 0, "flow", "", "")
    server = Place(newer)
    recent = await replacing(server)
    assert server.has is newer
    assert (recent.again, len(server.asked)) == (0, 1)
    await recent.close()


async def test_the_run_that_had_gone_ends_again_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_starts, "TRY_AGAIN", 0.001)
    server = Place(msgspec.structs.replace(BEFORE, status="running", ended=0))
    recent = await replacing(server)
    assert recent.again == 0
    server.answered = anyio.Event()
    with anyio.fail_after(10):
        await server.answered.wait()
    server.has = BEFORE
    while recent.again == 0:  # noqa: ASYNC110
        await anyio.sleep(0.001)
    assert server.has.created == 100
    await recent.close()


async def test_the_real_scripts_bring_a_replacement_back() -> None:
    server = LosingServer()
    kernel = Kernel(NamespaceKeys("ns"))
    recent = RecentStarts(server.store, kernel)
    batcher = ServerBatcher(server.store, kernel, recent)
    keys = kernel.keys.shard(0)
    await server.plain("RPUSH", keys.run("r"), BEFORE.encode(), "", "transition")
    await server.plain("ZADD", keys.index("failed", "flow"), 60, "r")
    before = server.saved()

    wanted = Start("r", "flow", "", b"input", "", "i0a")
    found = await batcher.start(0, wanted)
    assert found == BEFORE.encode()
    header = await replaced(batcher, 0, wanted, found)
    assert header.startswith(b"+pending")

    server.lose(before, keys.owner)
    assert (await server.plain("LINDEX", keys.run("r"), 0)) == BEFORE.encode()
    await batcher.peek(0, "r")
    assert b"+" + await server.plain("LINDEX", keys.run("r"), 0) == header
    assert recent.again == 1
    assert await server.plain("ZCARD", keys.index("failed", "flow")) == 0
    assert await server.plain("XLEN", keys.inbox) == 1

    server.lose(server.saved(), keys.owner)  # it lacks nothing: its own run is not replaced
    await batcher.peek(0, "r")
    assert recent.again == 1
    assert await server.plain("XLEN", keys.inbox) == 1
    await recent.close()
    await batcher.close()
