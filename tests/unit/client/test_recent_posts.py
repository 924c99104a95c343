"""Signals that a server loses after it has acknowledged them, and the client that still has them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamflow.client import recent_posts
from streamflow.client.pipelines import ServerBatcher
from streamflow.client.recent_starts import RecentStarts
from streamflow.store.kernel import Kernel, Message, Start
from streamflow.store.keys import NamespaceKeys
from tests.support.losing_server import LosingServer
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

KERNEL = Kernel(NamespaceKeys("ns"))
KEYS = KERNEL.keys.shard(0)


class Bench(LosingServer):
    """A client, and shard 0."""

    def __init__(self) -> None:
        super().__init__()
        self.recent = RecentStarts(self.store, KERNEL)
        self.store.on_other_history = self.recent.restore_soon
        self.batcher = ServerBatcher(self.store, KERNEL, self.recent)
        self.recent.posts.post = self.batcher.post

    async def start(self, run_id: str) -> None:
        await self.batcher.start(0, Start(run_id, "flow", "", b"input"))

    async def start_by_other(self, run_id: str) -> None:
        await self.store.one(KERNEL.start_runs(0, [Start(run_id, "flow", "", b"input")]))

    async def signal(self, run_id: str, body: bytes, kind: str = "signal") -> str:
        return await self.batcher.post(0, Message(kind, run_id, body))

    async def bodies(self) -> list[bytes]:
        entries = await self.plain("XRANGE", KEYS.inbox, "-", "+")
        return [fields[b"body"] for _, fields in entries if fields[b"kind"] != b"start"]

    async def identities(self) -> list[bytes]:
        entries = await self.plain("XRANGE", KEYS.inbox, "-", "+")
        return [fields[b"from"] for _, fields in entries if fields[b"kind"] != b"start"]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.batcher.close()
    await bench.recent.close()
    await bench.store.close()


async def test_what_was_lost_is_there_again_before_anything_new(bench: Bench) -> None:
    await bench.start("a")
    await bench.signal("a", b"1")
    saved = bench.saved()
    for body in (b"2", b"3"):
        await bench.signal("a", body)
    await bench.signal("a", b"4", "cancel")
    await bench.signal("a", b"5")
    expected = await bench.identities()
    bench.lose(saved, KEYS.owner)
    assert await bench.signal("a", b"6") == "a"
    assert await bench.bodies() == [b"1", b"2", b"3", b"4", b"5", b"6"]
    assert (await bench.identities())[:-1] == expected
    assert bench.recent.posts.again == 4


async def test_a_run_that_was_lost_with_its_signals_gets_them_behind_its_start(bench: Bench) -> None:
    saved = bench.saved()
    await bench.start("a")
    await bench.signal("a", b"1")
    bench.lose(saved, KEYS.owner)
    await bench.recent.restored()
    assert await bench.bodies() == [b"1"]


async def test_a_post_with_an_origin_is_accepted_once_whoever_posts_it(bench: Bench) -> None:
    await bench.start("a")
    for _ in range(2):
        letters = [bench.batcher.post(0, Message("signal", "a", b"%d" % n), ("client:x", n)) for n in (3, 7)]
        assert await asyncio.gather(*letters) == ["a", "a"]
    assert await bench.bodies() == [b"3", b"7"]
    assert (await bench.identities()) == [b"m:client:x.3.1", b"m:client:x.7.1"]


async def test_what_two_sources_have_lost_is_posted_again_under_each_s_numbers(bench: Bench) -> None:
    await bench.start("a")
    for body in (b"1", b"2", b"3"):
        await bench.signal("a", body)
    saved = bench.saved()
    await bench.batcher.post(0, Message("signal", "a", b"other"), ("client:x", 2))  # not above the own last number
    await bench.signal("a", b"4")
    expected = await bench.identities()
    bench.lose(saved, KEYS.owner)
    await bench.recent.restored()
    assert await bench.bodies() == [b"1", b"2", b"3", b"other", b"4"]
    assert await bench.identities() == expected


async def test_what_was_not_lost_is_not_posted_again(bench: Bench) -> None:
    await bench.start("a")
    await bench.signal("a", b"1")
    await bench.plain("XTRIM", KEYS.inbox, "MAXLEN", 0)  # it was taken
    await bench.signal("a", b"2")
    for _ in range(2):
        bench.lose(bench.saved(), KEYS.owner)
        await bench.recent.restored()
    assert await bench.bodies() == [b"2"]
    assert bench.recent.posts.again == 0


async def test_a_second_failover_loses_what_was_posted_again(bench: Bench) -> None:
    await bench.start("a")
    saved = bench.saved()
    await bench.signal("a", b"1")
    for _ in range(2):
        bench.lose(saved, KEYS.owner)
        await bench.signal("a", b"more")
    assert await bench.bodies() == [b"1", b"more", b"more"]


async def test_a_post_under_way_comes_behind_what_was_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number would hide that."""
    await bench.start("a")
    saved = bench.saved()
    await bench.signal("a", b"1")
    send = bench.store._execute

    async def loses(*args: Any, **named: Any) -> Any:
        monkeypatch.setattr(bench.store, "_execute", send)
        bench.lose(saved, KEYS.owner)
        return await send(*args, **named)

    monkeypatch.setattr(bench.store, "_execute", loses)
    assert await bench.signal("a", b"2") == "a"
    assert await bench.bodies() == [b"1", b"2"]


async def test_a_signal_waits_for_its_run_to_be_there_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_posts, "MISSING_PAUSE", 0.01)
    saved = bench.saved()
    await bench.start_by_other("a")
    await bench.signal("a", b"1")
    identities = await bench.identities()
    bench.lose(saved, KEYS.owner)
    await bench.recent.restored()
    assert await bench.bodies() == []
    await bench.start_by_other("a")

    async def is_there() -> bool:
        return await bench.bodies() == [b"1"]

    await until(is_there)
    assert await bench.identities() == identities
    bench.lose(bench.saved(), KEYS.owner)
    await bench.recent.restored()
    assert await bench.bodies() == [b"1"]


async def test_what_cannot_be_posted_again_is_said_once_for_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However many they are: all are tried together, less and less often."""
    monkeypatch.setattr(recent_posts, "MISSING_PAUSE", 0.01)
    monkeypatch.setattr(recent_posts, "MISSING_SECONDS", 0.1)
    saved = bench.saved()
    await bench.start_by_other("a")
    await asyncio.gather(*(bench.signal("a", b"%d" % number) for number in range(300)))
    bench.lose(saved, KEYS.owner)
    await bench.recent.restored()
    sent: list[int] = []
    send = bench.store.send

    async def counted(calls: Any, *args: Any, **named: Any) -> Any:
        sent.append(len(calls))
        return await send(calls, *args, **named)

    monkeypatch.setattr(bench.store, "send", counted)

    async def is_said() -> bool:
        return "they can't be posted again, to a" in caplog.text

    await until(is_said)
    assert caplog.text.count("lost 300 messages") == 1
    assert sum(sent) < 100, "not a call for each of them"


async def test_little_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_posts, "KEEP_BYTES", 700)
    await bench.start("a")
    saved = bench.saved()
    for body in (b"1", b"2", b"3"):
        await bench.signal("a", body)
    bench.lose(saved, KEYS.owner)
    await bench.recent.restored()
    assert await bench.bodies() == [b"2", b"3"]
