"""The wait until writes are safe: what is shared, what is sent again, and what is said when nothing is confirmed."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from streamflow.errors import StoreError, StoreMisconfigured, Unconfirmed, UsageError
from streamflow.store import durability as module
from streamflow.store.connection import Call, OtherHistory
from streamflow.store.durability import Confirmation, Durability, use_durability
from tests.support.fakes import KERNEL

pytestmark = pytest.mark.anyio
WRITE: Call[Any] = Call.plain("SET", "a", "b")


class Server:
    """A store whose server answers waits from `replies`, the last one for ever."""

    def __init__(self, *replies: Any, fence: Any = b"OK") -> None:
        self.url = "redis://127.0.0.1:6379"
        self.replies = list(replies)
        self.fence = fence
        self.server_generation = 0
        self.confirmation: Confirmation | None = None
        self.patience = 10.0
        self.sent: list[str] = []
        self.turn = asyncio.Event()
        self.turn.set()

    async def send(self, calls: Any, patience: float | None = None, *, same_history: bool = False) -> list[Any]:
        await asyncio.sleep(0)
        name = "wait" if calls[-1].args[0] in ("WAIT", "WAITAOF") else "write"
        self.sent.append(name)
        if name == "write":
            return [b"OK"]
        await self.turn.wait()
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, OtherHistory):
            self.server_generation += 1
            return [reply, reply]
        return [self.fence, reply]


def made(server: Server, level: str = "replicas:2") -> Confirmation:
    assert use_durability(server, KERNEL, level)  # type: ignore[arg-type]
    assert server.confirmation is not None
    return server.confirmation


def test_levels_have_names() -> None:
    assert Durability.of("server") is None
    assert [str(Durability.of(level)) for level in ("disk", "replicas:3")] == ["disk", "replicas:3"]
    for level in ("", "replicas", "replicas:0", "replicas:-1", "DISK", "disk\n"):
        with pytest.raises(UsageError, match="server, disk, or replicas:N"):
            Durability.of(level)


async def test_too_few_confirmations_are_waited_for_again() -> None:
    server = Server(0, 1, 2)
    assert await made(server).send([WRITE], 10.0, same_history=False) == [b"OK"]
    assert server.sent == ["write", "wait", "wait", "wait"]
    server = Server([0, 0], [1, 0])
    await made(server, "disk").send([WRITE], 10.0, same_history=False)
    assert server.sent == ["write", "wait", "wait"]


async def test_after_a_failover_all_is_sent_again_but_what_was_decided_before() -> None:
    server = Server(OtherHistory("another history"), 2)
    await made(server).send([WRITE], 10.0, same_history=False)
    assert server.sent == ["write", "wait", "write", "wait"]
    server = Server(OtherHistory("another history"), 2)
    [answer] = await made(server).send([WRITE], math.inf, same_history=True)
    assert isinstance(answer, OtherHistory)
    assert server.sent == ["write", "wait"]


async def test_those_who_come_during_a_wait_share_the_next_one() -> None:
    server = Server(2)
    server.turn.clear()
    confirmation = made(server)
    first = asyncio.create_task(confirmation.wait(10.0))
    for _ in range(10):
        await asyncio.sleep(0)
    assert server.sent == ["wait"]
    others = [asyncio.create_task(confirmation.wait(10.0)) for _ in range(100)]
    await asyncio.sleep(0)
    server.turn.set()
    await asyncio.gather(first, *others)
    assert server.sent == ["wait", "wait"], "what was written during the first one isn't covered by it"


async def test_without_confirmation_a_caller_gives_up_and_others_go_on() -> None:
    server = Server(1)
    confirmation = made(server)
    with pytest.raises(Unconfirmed, match=r"within 0\.0 s fewer than 2 replicas have"):
        await confirmation.send([WRITE], 0.02, same_history=False)
    assert confirmation.overdue > 0
    server.replies = [2]
    await confirmation.send([WRITE], 10.0, same_history=False)
    assert confirmation.overdue == 0
    await confirmation.close()


async def test_a_user_who_may_not_wait_can_read_and_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAID_EVERY", 0.0)
    denied = StoreMisconfigured("no permission")
    confirmation = made(Server(2, fence=denied))
    await confirmation.wait(10.0)
    with pytest.raises(StoreMisconfigured):
        await confirmation.send([WRITE], 10.0, same_history=False)
    server = Server(denied, denied, 2)
    await made(server).send([WRITE], math.inf, same_history=False)
    assert server.sent == ["write", "wait", "wait", "wait"], "an owner waits until it is allowed again"


async def test_a_server_that_can_not_wait_is_refused_before_anything_begins() -> None:
    with pytest.raises(StoreMisconfigured, match=r"durability disk: unknown command.*needs Redis 7\.2"):
        await made(Server(StoreError("unknown command")), "disk").check()
    await made(Server([0, 0]), "disk").check()


async def test_who_waits_when_the_client_is_closed_gets_an_error() -> None:
    confirmation = made(Server(0))
    waiting = asyncio.create_task(confirmation.wait(math.inf))
    for _ in range(10):
        await asyncio.sleep(0)
    await confirmation.close()
    with pytest.raises(StoreError, match="the client was closed"):
        await waiting


# --- another level while somebody waits -----------------------------------------------------------------------------


async def test_a_lower_level_ends_the_waits_that_are_under_way() -> None:
    server = Server(0)
    confirmation = made(server)
    first = asyncio.create_task(confirmation.send([WRITE], math.inf, same_history=True))
    for _ in range(20):
        await asyncio.sleep(0)
    second = asyncio.create_task(confirmation.send([WRITE], math.inf, same_history=True))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.done()
    assert use_durability(server, KERNEL, "server")  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        assert await first == await second == [b"OK"]
    assert server.confirmation is None, "nothing is waited for any more"
    assert not use_durability(server, KERNEL, "server")  # type: ignore[arg-type]
    await confirmation.close()


async def test_another_level_is_what_is_waited_for_next() -> None:
    server = Server(1)
    confirmation = made(server)
    waiting = asyncio.create_task(confirmation.wait(math.inf))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert use_durability(server, KERNEL, "replicas:1")  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await waiting
    assert server.confirmation is confirmation
    assert str(confirmation.durability) == "replicas:1"


async def test_a_higher_level_counts_from_the_moment_it_is_set() -> None:
    server = Server(1, 1, 2)
    server.turn.clear()
    confirmation = made(server, "replicas:1")
    waiting = asyncio.create_task(confirmation.wait(math.inf))
    for _ in range(10):
        await asyncio.sleep(0)
    assert use_durability(server, KERNEL, "replicas:2")  # type: ignore[arg-type]
    server.turn.set()
    await waiting
    assert server.sent == ["wait"] * 3


async def test_a_level_that_is_not_allowed_can_be_lowered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAID_EVERY", 1000.0)
    server = Server(2, fence=StoreMisconfigured("no permission"))
    waiting = asyncio.create_task(made(server).send([WRITE], math.inf, same_history=True))
    for _ in range(20):
        await asyncio.sleep(0)
    assert use_durability(server, KERNEL, "server")  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        assert await waiting == [b"OK"]


async def test_a_former_wait_takes_no_later_level_away() -> None:
    server = Server(2)
    former = made(server)
    use_durability(server, KERNEL, "server")  # type: ignore[arg-type]
    assert server.confirmation is None
    present = made(server, "replicas:1")
    await former.wait(10.0)
    former.change(None)
    assert server.confirmation is present
