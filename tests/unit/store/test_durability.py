"""The wait until writes are safe: what is shared, what is sent again, and what is said when nothing is confirmed."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from streamflow.errors import StoreError, StoreMisconfigured, StoreUnavailable, Unconfirmed, UsageError
from streamflow.store import durability as module
from streamflow.store.connection import Call, Elsewhere, OtherHistory
from streamflow.store.durability import Confirmation, Durability, use_durability
from tests.support.fakes import KERNEL

pytestmark = pytest.mark.anyio
WRITE: Call[Any] = Call.plain("SET", "a", "b")


class Server:
    """A store whose server answers waits from `replies`, the last one for ever."""

    def __init__(self, *replies: Any, fence: Any = b"OK") -> None:
        self.is_single = True
        self.replies = list(replies)
        self.fence = fence
        self.server_generation = 0
        self.confirmation: Confirmation | None = None
        self.patience = 10.0
        self.sent: list[str] = []
        self.turn = asyncio.Event()
        self.turn.set()

    def server_name(self, server: int) -> str:
        return ""

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
    with pytest.raises(Unconfirmed, match=r"within 0\.0 s only 1 of 2 replicas has"):
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


# --- in a cluster -----------------------------------------------------------------------------------------------------


class Servers:
    """A cluster of two: `at` has the server of each shard as clients know it, `really` where it is, `half` those that
    are half moved. `confirms`: how many replicas of each server do."""

    def __init__(self, level: str = "replicas:1") -> None:
        self.is_single = False
        self.patience = 10.0
        self.at = {0: 0, 1: 1, 2: 0}
        self.really = {**self.at}
        self.half: set[int] = set()
        self.confirms: list[Any] = [1, 1]
        self.histories = {0: 0, 1: 0, 2: 0}
        self.written: list[list[int]] = []
        self.waits: list[int] = []
        self.during_wait: Any = lambda: None
        self.confirmation: Confirmation | None = None
        assert use_durability(self, KERNEL, level)  # type: ignore[arg-type]

    @property
    def waiting(self) -> Confirmation:
        assert self.confirmation is not None
        return self.confirmation

    @staticmethod
    def shard(key: str) -> int:
        return int(key.partition("/")[2].partition("}")[0])

    def server_of(self, key: str) -> int:
        return self.at[self.shard(key)]

    def server_name(self, server: int) -> str:
        return f"10.0.0.{server}:6379"

    def history_of(self, key: str) -> int:
        return self.histories[self.shard(key)]

    async def send(self, calls: Any, patience: float | None = None, *, same_history: bool = False) -> list[Any]:
        await asyncio.sleep(0)
        self.written.append([self.shard(call.args[1]) for call in calls])
        return [b"OK"] * len(calls)

    async def send_to_one(self, server: int, calls: Any) -> list[Any]:
        await asyncio.sleep(0)
        self.waits.append(server)
        fence, _, *probes = calls
        if self.really[self.shard(fence.keys[0])] != server or self.shard(fence.keys[0]) in self.half:
            self.at = {**self.really}
            return [Elsewhere(), 7, *probes]
        answer = self.confirms[server]
        self.during_wait()
        shards = [self.shard(probe.args[1]) for probe in probes]
        gone = [self.really[shard] != server or shard in self.half for shard in shards]
        self.at = {**self.really}
        return [b"OK", answer, *(Elsewhere() if is_gone else None for is_gone in gone)]

    def writes(self, *shards: int) -> list[Call[Any]]:
        return [Call.plain("SET", KERNEL.keys.shard(shard).owner, "x") for shard in shards]


async def test_a_server_that_does_not_confirm_holds_up_its_own_writes_only() -> None:
    servers = Servers()
    servers.confirms[1] = 0
    late = asyncio.create_task(servers.waiting.send(servers.writes(1), math.inf, same_history=False))
    for _ in range(5):
        assert await servers.waiting.send(servers.writes(0, 2), 10.0, same_history=False) == [b"OK"] * 2
    assert not late.done()
    assert [one.server for one in servers.waiting.lacking(0.0)] == ["10.0.0.1:6379"]
    assert servers.waiting.lacking(0.0)[0].missing == 1
    said = r"the server 10\.0\.0\.1:6379 has it, but within \d\.\d s no replica has"
    for shards in ((1,), (0, 1)):
        with pytest.raises(Unconfirmed, match=said):
            await servers.waiting.send(servers.writes(*shards), 0.05, same_history=False)
    servers.confirms[1] = 1
    assert await late == [b"OK"]
    await servers.waiting.close()


async def test_what_was_moved_before_the_wait_is_confirmed_by_its_new_server() -> None:
    servers = Servers()
    servers.confirms[1] = 0

    def move() -> None:
        servers.really[2] = 1

    servers.during_wait = move
    sending = asyncio.create_task(servers.waiting.send(servers.writes(0, 2), 10.0, same_history=True))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not sending.done(), "the server that has it now has not confirmed it"
    assert servers.waits[0] == 0
    assert set(servers.waits[1:]) == {1}, "what is where it was is confirmed"
    servers.confirms[1] = 1
    assert await sending == [b"OK"] * 2
    assert servers.written == [[0, 2]], "its data were moved with it"


async def test_what_is_half_moved_is_confirmed_when_it_is_one_servers_again() -> None:
    servers = Servers()
    servers.half = {2}
    sending = asyncio.create_task(servers.waiting.send(servers.writes(0, 2), 10.0, same_history=True))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not sending.done()
    servers.half = set()
    servers.really[2] = 1
    await sending
    assert servers.waits[-1] == 1


@pytest.mark.parametrize("is_later", [False, True])
async def test_what_is_moved_away_no_longer_waits_for_its_former_server(is_later: bool) -> None:
    """`is_later`: it comes while others are waited for already."""
    servers = Servers()
    servers.confirms[0] = 0
    staying = asyncio.create_task(servers.waiting.send(servers.writes(0), 10.0, same_history=True))
    await asyncio.sleep(0.05 * is_later)
    moving = asyncio.create_task(servers.waiting.send(servers.writes(2), 10.0, same_history=True))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not moving.done()
    servers.really[2] = 1
    async with asyncio.timeout(5):
        await moving
    assert not staying.done()
    assert servers.waiting.lacking(0.0)[0].server == "10.0.0.0:6379"
    servers.confirms[0] = 1
    await staying
    assert servers.waiting.overdue == 0


@pytest.mark.parametrize("same_history", [False, True])
async def test_after_a_failover_of_one_server_only_its_part_is_sent_again(same_history: bool) -> None:
    servers = Servers()

    def fail_over() -> None:
        servers.histories[2] += not servers.histories[2]

    servers.during_wait = fail_over
    first, second = await servers.waiting.send(servers.writes(0, 2), 10.0, same_history=same_history)
    assert first == b"OK"
    assert servers.written == ([[0, 2]] if same_history else [[0, 2], [2]])
    assert isinstance(second, OtherHistory) == same_history


async def test_a_server_that_is_away_is_asked_until_another_has_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)
    servers = Servers()
    asked: list[int] = []

    async def away(server: int, calls: Any) -> list[Any]:
        if server == 0:
            asked.append(server)
            if len(asked) == 3:
                servers.at[2] = servers.really[2] = 1
            raise StoreUnavailable("it doesn't answer")
        return await Servers.send_to_one(servers, server, calls)

    servers.send_to_one = away  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        await servers.waiting.send(servers.writes(2), 10.0, same_history=True)
    assert len(asked) == 3
