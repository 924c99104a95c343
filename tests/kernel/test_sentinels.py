"""Store with Sentinels whose answers the test chooses: which server is believed to be the primary."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import pytest

from streamflow.embedded.server import EmbeddedServer
from streamflow.errors import StoreUnavailable
from streamflow.server_url import sentinels_of
from streamflow.store import link, sentinels
from streamflow.store.connection import Call, Store
from streamflow.store.node import Node
from streamflow.store.sentinels import Sentinels
from tests.support.lines import port_of
from tests.support.waiting import DEADLINE

pytestmark = pytest.mark.anyio


class FakeSentinel:
    """Says that the primary is at `ports[0]` of this machine; takes one out for each answer, as long as there are
    others behind it."""

    def __init__(self) -> None:
        self.ports: list[int] = [1]
        self.epoch = 1
        self.delay = 0.0
        self.refusal = ""
        self.server: asyncio.Server

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(10_000):
                await asyncio.sleep(self.delay)
                port = self.ports.pop(0) if len(self.ports) > 1 else self.ports[0]
                facts = ["ip", "127.0.0.1", "port", str(port), "config-epoch", str(self.epoch), "num-slaves", "0"]
                answer = "".join(f"${len(fact)}\r\n{fact}\r\n" for fact in facts)
                writer.write(f"-{self.refusal}\r\n".encode() if self.refusal else f"*{len(facts)}\r\n{answer}".encode())
        except (ConnectionError, asyncio.CancelledError):
            pass  # its client has its answer, or the test has ended
        finally:
            writer.close()


@pytest.fixture
async def trio() -> AsyncIterator[list[FakeSentinel]]:
    async with AsyncExitStack() as stack:
        fakes = [FakeSentinel() for _ in range(3)]
        for fake in fakes:
            fake.server = await stack.enter_async_context(await asyncio.start_server(fake.serve, "127.0.0.1", 0))
        yield fakes


@pytest.fixture
async def servers() -> AsyncIterator[list[EmbeddedServer]]:
    async with EmbeddedServer(memory=True) as one, EmbeddedServer(memory=True) as other:
        yield [one, other]


def url_of(*fakes: FakeSentinel) -> str:
    return f"redis+sentinel://{','.join(fake.address for fake in fakes)}/jobs"


def asked(*fakes: FakeSentinel) -> Sentinels:
    text = url_of(*fakes)
    url = sentinels_of(text)
    assert url is not None
    return Sentinels(url, text)


async def port_of_server(store: Store) -> int:
    info: dict[str, object] = await store.one(Call.plain("INFO", "server"))
    return int(str(info["tcp_port"]))


async def test_the_highest_epoch_is_believed(trio: list[FakeSentinel]) -> None:
    for fake, port, epoch in zip(trio, (1001, 1002, 1003), (4, 6, 5), strict=True):
        fake.ports, fake.epoch = [port], epoch
    assert await asked(*trio).primary() == ("127.0.0.1", 1002)


async def test_a_sentinel_that_is_behind_does_not_win_by_being_fast(trio: list[FakeSentinel]) -> None:
    behind, *others = trio
    service = asked(*trio)
    for fake in others:
        fake.ports, fake.epoch = [1002], 2
    assert await service.primary() == ("127.0.0.1", 1002)
    for fake in others:
        fake.delay = 0.5  # longer than is waited after an answer that may be the newest
    assert await service.primary() == ("127.0.0.1", 1002)
    assert behind.ports == [1]


async def test_sentinels_that_were_set_up_again_are_believed(trio: list[FakeSentinel]) -> None:
    """Their epochs begin again."""
    service = asked(*trio)
    for fake in trio:
        fake.epoch = 7
    await service.primary()
    for fake in trio:
        fake.ports, fake.epoch = [1003], 0
    assert await service.primary() == ("127.0.0.1", 1003)


async def test_a_former_primary_that_was_just_connected_to_is_left(
    trio: list[FakeSentinel], servers: list[EmbeddedServer]
) -> None:
    """It was named before the failover, and answers after it. What is written there would be lost."""
    primary, former = (port_of(server.url) for server in servers)
    fake = trio[0]
    fake.ports = [primary]
    store = Node(url_of(fake))
    dropped = 0

    def other_history() -> None:
        nonlocal dropped
        dropped += 1

    store.on_other_history = other_history
    try:
        assert await port_of_server(store) == primary
        store.replace_connections("the test wants it")
        fake.ports = [former, primary]
        assert await port_of_server(store) == primary
        assert dropped == store.server_generation == 0
    finally:
        await store.close()


async def test_a_heartbeat_does_not_believe_a_former_primary_either(
    trio: list[FakeSentinel], servers: list[EmbeddedServer]
) -> None:
    primary, former = (port_of(server.url) for server in servers)
    fake = trio[0]
    fake.ports = [primary]
    store = Node(url_of(fake))
    try:
        await store.one(Call.plain("PING"), urgent=True)
        store.replace_connections("the test wants it")
        fake.ports = [former, primary]
        await store.one(Call.plain("PING"), urgent=True)
        assert store.server_generation == 0
    finally:
        await store.close()


async def test_a_silent_primary_is_left_as_soon_as_another_is_named(
    trio: list[FakeSentinel], servers: list[EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power failure: nothing tells that a machine is gone but the Sentinels."""
    monkeypatch.setattr(link, "SILENT_TICKS", 1000)
    silent, promoted = servers
    fake = trio[0]
    fake.ports = [port_of(silent.url)]
    store = Node(url_of(fake), patience=60)
    try:
        await store.one(Call.plain("PING"))
        os.kill(silent.pid, signal.SIGSTOP)
        fake.ports = [port_of(promoted.url)]
        with anyio.fail_after(DEADLINE):
            assert await port_of_server(store) == port_of(promoted.url)
    finally:
        os.kill(silent.pid, signal.SIGCONT)
        await store.close()


async def test_doubts_about_sentinels_are_said(trio: list[FakeSentinel]) -> None:
    trio[0].ports, trio[0].epoch = [1001], 2
    trio[1].ports = [1002]
    trio[2].refusal = "ERR No such master with that name"
    behind, unknowing, alone = await asked(*trio).doubts()
    assert f"{trio[1].address} names 127.0.0.1:1002, and another one, with a higher epoch, 127.0.0.1:1001" in behind
    assert f"{trio[2].address} can't be asked: No such master" in unknowing
    assert "no replica" in alone


async def test_a_sentinel_that_never_answers_is_named(
    trio: list[FakeSentinel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinels, "ANSWER_SECONDS", 0.3)
    trio[1].delay = 60
    silent, _ = await asked(*trio).doubts()
    assert f"{trio[1].address} gives no answer" in silent


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ("NOAUTH Authentication required.", "Add sentinel_password=PASSWORD"),
        ("NOPERM this user has no permissions to run the 'sentinel|master' command", r"right \+sentinel\|master"),
        ("ERR No such master with that name", "`SENTINEL MASTERS` at one of them lists"),
        ("ERR unknown command 'SENTINEL', with args beginning with: 'MASTER'", "servers, not Sentinels"),
    ],
)
async def test_what_a_sentinel_refuses_comes_with_advice(trio: list[FakeSentinel], refusal: str, advice: str) -> None:
    for fake in trio:
        fake.refusal = refusal
    store = Node(url_of(*trio), patience=0.1)
    try:
        with pytest.raises(StoreUnavailable, match=advice) as caught:
            await store.one(Call.plain("PING"))
        assert "names a primary of 'jobs'" in str(caught.value)
    finally:
        await store.close()


async def test_a_primary_that_cannot_be_reached_is_named(trio: list[FakeSentinel]) -> None:
    """Sentinels in containers name addresses that are valid among them."""
    store = Node(url_of(*trio), patience=0.1)
    try:
        with pytest.raises(StoreUnavailable, match=r"that 127\.0\.0\.1:1, which the Sentinels name .*announce"):
            await store.one(Call.plain("PING"))
    finally:
        await store.close()
