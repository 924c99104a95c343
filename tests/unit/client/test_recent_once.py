"""Messages that come once, which a server loses after it has acknowledged them, and the client that still has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from streamflow.client.pipelines import ServerBatcher
from streamflow.client.recent_starts import RecentStarts
from streamflow.client.with_start import once, put
from streamflow.errors import RunEnded
from streamflow.model.record import Header
from streamflow.store.connection import Call, Store
from streamflow.store.kernel import Kernel, Message, OnceMessage, PutOnce, Start
from streamflow.store.keys import NamespaceKeys

pytestmark = pytest.mark.anyio


class Server:
    """Has runs by id with the digests of what they have got, and loses all when it is told to."""

    confirmation: Any = None
    is_single = True

    def __init__(self) -> None:
        self.server_generation = 0
        self.clock = 100
        self.runs: dict[str, tuple[int, list[str]]] = {}
        self.ended: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.loses_next = False

    def history_of(self, key: str) -> int:
        return self.server_generation

    def lose(self) -> None:
        self.server_generation += 1
        self.runs.clear()

    async def send(self, calls: Sequence[Call[Any]], **_: Any) -> list[Any]:
        answers = [self._answer(call) for call in calls]
        if self.loses_next:
            self.loses_next = False
            self.lose()
        return answers

    def _answer(self, call: Call[Any]) -> Any:
        assert call.script in ("post_once", "peek_runs")
        run_id = next(key.rpartition(":")[2] for key in call.keys if ":run:" in key)
        if call.script == "peek_runs":
            return [(b"header", b"") if run_id in self.runs else (b"", b"")]
        now, identity, expected = str(call.args[0]), str(call.args[1]), call.args[4]
        self.calls.append(run_id)
        if run_id in self.ended and expected != self.ended[run_id]:
            return PutOnce("e", 1, self.ended[run_id])
        self.ended.pop(run_id, None)
        is_new = run_id not in self.runs
        if is_new:
            self.clock += 1
            self.runs[run_id] = (int(now.lstrip("=") or self.clock), [])
        created, got = self.runs[run_id]
        if identity in got:
            return PutOnce("d", created, b"header")
        got.append(identity)
        return PutOnce("+" if is_new else "a", created, b"header")


def client_of(server: Server) -> tuple[ServerBatcher, RecentStarts]:
    kernel, store = Kernel(NamespaceKeys("ns")), cast("Store", server)
    recent = RecentStarts(store, kernel)
    return ServerBatcher(store, kernel, recent), recent


def message(run_id: str, key: str) -> OnceMessage:
    return once(Message("signal", run_id, b"value"), key, 60, Start(run_id, "flow", "", b"input"))


async def test_what_was_lost_is_put_again_before_anything_else_is_asked() -> None:
    server = Server()
    batcher, recent = client_of(server)
    for run_id, key in (("a", "one"), ("a", "two"), ("b", "one")):
        await batcher.post_once(0, message(run_id, key))
    before = {run_id: (created, list(got)) for run_id, (created, got) in server.runs.items()}
    server.lose()
    assert (await batcher.peek(0, "b"))[0], "nobody learns that it was lost"
    assert server.runs == before, "each is the same run, with the same messages in the same order"
    assert recent.again == 2
    await batcher.peek(0, "a")
    assert len(server.calls) == 6, "put again once"


async def test_a_run_whose_end_is_known_does_not_begin_again() -> None:
    server = Server()
    batcher, recent = client_of(server)
    await batcher.post_once(0, message("a", "one"))
    recent.settled("a")
    server.lose()
    await batcher.peek(0, "a")
    assert server.runs == {}


async def test_what_is_lost_with_its_reply_under_way_is_put_again() -> None:
    server = Server()
    batcher, recent = client_of(server)
    server.loses_next = True
    assert (await batcher.post_once(0, message("a", "one"))).letter == "+"
    await recent.restored()
    assert list(server.runs) == ["a"]


async def test_an_ended_run_is_replaced_by_its_header_or_refused() -> None:
    server = Server()
    batcher, _ = client_of(server)
    header = Header("completed", 3, "c", 5, 9, "flow", "", "").encode()
    server.ended["a"] = header
    with pytest.raises(RunEnded):
        await put(batcher, 0, message("a", "one"), "reject")
    assert (await put(batcher, 0, message("a", "one"), "new")).letter == "+"
