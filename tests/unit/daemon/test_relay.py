"""Messages between shards: in order, tried again, deleted from the outbox when they have arrived."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamflow.daemon import relay as relay_module
from streamflow.daemon import troubles as troubles_module
from streamflow.daemon.relay import OutboxEntry, Relay
from streamflow.errors import StoreError, StoreUnavailable, Unconfirmed
from streamflow.store.connection import Call
from streamflow.wire import OutboxMessage, encode_outbox, stream_order
from tests.support.examples import examples
from tests.support.fakes import KERNEL, FakeClock, FakeStore, owned

pytestmark = pytest.mark.anyio


def message(number: int, target: int = 1, body: bytes = b"x") -> OutboxEntry:
    return OutboxEntry(f"7-{number}", [OutboxMessage(target, "signal", f"r{number}", body)])


def numbers(call: Call[Any]) -> list[str]:
    """The outbox numbers that a delivery carries: `source, now, after`, then seven words a message."""
    return call.args[3::7]


async def test_messages_for_one_shard_are_delivered_together_and_then_deleted() -> None:
    store = FakeStore(deliver_messages="7-3")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    relay.hand_over(source, [message(1), message(2)])
    relay.hand_over(source, [message(3)])
    assert relay.waiting == 3
    assert await relay.run_once()
    [call] = store.sent("deliver_messages")
    assert numbers(call) == ["7-1", "7-2", "7-3"]
    assert call.args[1] == 1_000_000, "the owner's time"
    assert source.sent == ["7-1", "7-2", "7-3"]
    assert relay.waiting == 0


async def test_each_pair_of_shards_has_one_delivery_and_all_go_in_one_pipeline() -> None:
    store = FakeStore(deliver_messages="")
    relay, one, two = Relay(store, KERNEL, FakeClock()), owned(0), owned(1)  # type: ignore[arg-type]
    relay.hand_over(one, [message(1, target=2), message(2, target=3)])
    relay.hand_over(two, [message(1, target=2)])
    assert await relay.run_once()
    assert [call.args[0] for call in store.calls[0]] == ["shard:0", "shard:0", "shard:1"]
    assert len(store.calls) == 1


async def test_refused_messages_are_retried_and_the_others_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamflow.daemon.troubles.FIRST_PAUSE", 0.0)
    store = FakeStore(deliver_messages=lambda call: StoreError("full") if "ns/2" in call.keys[0] else "")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    relay.hand_over(source, [message(1, target=2), message(2, target=3), message(3, target=2)])
    assert not await relay.run_once()
    assert source.sent == ["7-2"]
    store.answers["deliver_messages"] = ""
    assert await relay.run_once()
    assert source.sent == ["7-2", "7-1", "7-3"]
    assert [numbers(call) for call in store.calls[-1]] == [["7-1", "7-3"]]


async def test_a_pipeline_has_a_limit_and_each_pair_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PIPELINE_BYTES", 1500)
    monkeypatch.setattr(relay_module, "BYTES", 1000)
    store = FakeStore(deliver_messages="")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    for target in (1, 2, 3):
        relay.hand_over(source, [message(10 * target + n, target, b"x" * 800) for n in range(2)])
    while relay.waiting:
        assert await relay.run_once()
    assert [[numbers(call) for call in calls] for calls in store.calls] == [
        [["7-10"], ["7-20"]],
        [["7-30"], ["7-11"]],
        [["7-21"], ["7-31"]],
    ]


async def test_nothing_is_lost_when_the_server_is_away() -> None:
    store = FakeStore()

    async def away(calls: Any, patience: Any = None, **_: Any) -> Any:
        raise StoreUnavailable("away")

    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    relay.hand_over(source, [message(1)])
    send, store.send = store.send, away
    assert not await relay.run_once()
    assert (relay.waiting, source.sent) == (1, [])
    store.send, store.answers["deliver_messages"] = send, ""
    assert await relay.run_once()
    assert source.sent == ["7-1"]


async def test_a_delivery_has_limits_and_the_rest_follows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MESSAGES", 2)
    monkeypatch.setattr(relay_module, "BYTES", 1000)
    store = FakeStore(deliver_messages="")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    bodies = [b"x", b"x", b"x", b"x" * 900, b"x" * 900, b"x" * 5000]
    relay.hand_over(source, [message(n, body=body) for n, body in enumerate(bodies)])
    while relay.waiting:
        assert await relay.run_once()
    sent = [numbers(call) for call in store.sent("deliver_messages")]
    assert sent == [["7-0", "7-1"], ["7-2", "7-3"], ["7-4"], ["7-5"]]


async def test_messages_of_a_shard_that_was_lost_are_left_to_its_next_owner() -> None:
    store = FakeStore(deliver_messages="")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    relay.hand_over(source, [message(1)])
    source.dropped = True
    assert await relay.run_once()
    assert store.calls == []
    assert relay.waiting == 0


async def test_a_shard_acquired_again_starts_from_its_outbox_and_not_twice() -> None:
    store = FakeStore(deliver_messages="")
    relay, before, after = Relay(store, KERNEL, FakeClock()), owned(), owned()  # type: ignore[arg-type]
    relay.hand_over(before, [message(1), message(2)])
    before.dropped = True
    relay.hand_over(after, [message(1), message(2)])
    assert await relay.run_once()
    assert [numbers(call) for call in store.sent("deliver_messages")] == [["7-1", "7-2"]]
    assert (before.sent, after.sent) == ([], ["7-1", "7-2"])


async def test_a_shard_acquired_again_during_a_delivery_keeps_its_messages() -> None:
    before, after = owned(), owned()

    def meanwhile(call: Call[Any]) -> str:
        if not before.dropped:
            before.dropped = True
            relay.hand_over(after, [message(1), message(2)])
        return ""

    store = FakeStore(deliver_messages=meanwhile)
    relay = Relay(store, KERNEL, FakeClock())  # type: ignore[arg-type]
    relay.hand_over(before, [message(1)])
    assert await relay.run_once()
    assert (relay.waiting, after.sent) == (2, [])
    assert await relay.run_once()
    assert after.sent == ["7-1", "7-2"]


@pytest.mark.parametrize(
    "spoilt",
    [
        OutboxMessage(1, "start", "r", b"\xc1"),
        OutboxMessage(1, "start", "r", b"\x94\xa1\xff"),
        OutboxMessage(-1, "signal", "r", b""),
    ],
)
async def test_a_corrupt_message_is_dropped_and_the_others_are_delivered(
    spoilt: OutboxMessage, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore(deliver_messages="")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    relay.hand_over(source, [OutboxEntry("7-1", [spoilt]), message(2)])
    relay.hand_over(source, [OutboxEntry("7-4", [OutboxMessage(1, "signal", "r3", b"x"), spoilt])])
    assert await relay.run_once()
    assert source.sent == ["7-1", "7-2", "7-4"]
    assert [numbers(call) for call in store.sent("deliver_messages")] == [["7-2", "7-3"]]
    for number in ("7-1", "7-4"):
        assert f"message {number} in the outbox of shard 0 can't be read and is dropped" in caplog.text


async def test_an_entry_is_deleted_when_all_of_its_messages_are_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamflow.daemon.troubles.FIRST_PAUSE", 0.0)
    store = FakeStore(deliver_messages=lambda call: StoreError("full") if "ns/3" in call.keys[0] else "")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    messages = [OutboxMessage(target, "signal", "r", b"x") for target in (2, 3, 2)]
    relay.hand_over(source, [OutboxEntry("7-5", messages)])
    assert not await relay.run_once()
    assert source.sent == []
    store.answers["deliver_messages"] = ""
    assert await relay.run_once()
    assert source.sent == ["7-5"]
    assert [numbers(call) for call in store.sent("deliver_messages")] == [["7-3", "7-5"], ["7-4"], ["7-4"]]


# --- a target that a failover sets back -------------------------------------------------------------------------------


def afters(store: FakeStore) -> list[tuple[str, list[str]]]:
    """What each delivery names as the message before it, and its messages."""
    return [(call.args[2], numbers(call)) for call in store.sent("deliver_messages")]


async def test_a_delivery_names_the_last_message_that_the_target_has() -> None:
    store = FakeStore(deliver_messages="")
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    for number in (1, 3):
        relay.hand_over(source, [message(number, target=1), message(number + 1, target=2)])
        assert await relay.run_once()
    again = owned()
    again.token = "8:other"
    relay.hand_over(again, [message(5, target=1)])
    assert await relay.run_once()
    assert afters(store) == [("", ["7-1"]), ("", ["7-2"]), ("7-1", ["7-3"]), ("7-2", ["7-4"]), ("", ["7-5"])]


async def test_a_target_that_has_lost_messages_gets_the_outbox_again(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.store.confirmation = confirmation = Confirmation()
    server.commit(1, 2)
    server.commit(1)
    await server.turn()
    server.accepted[1] = server.accepted[1][:1]
    server.commit(2, 1)
    server.commit(2)
    await server.turn()
    assert server.accepted[1] == ["7-0"], "not the message behind the gap"
    for _ in range(4):
        await server.turn()
    assert server.accepted == {1: ["7-0", "7-1", "7-3", "7-5"], 2: ["7-0", "7-2", "7-4", "7-6"]}
    assert caplog.text.count("shard 1 has lost messages that it had accepted from shard 0") == 1
    assert server.relay.waiting == 0
    assert server.source.sent == []
    confirmation.safe.set()
    await server.relay.confirm_once()
    assert set(server.source.sent) == set(server.everything)


async def test_what_a_target_has_lost_is_not_deleted_by_a_wait_that_began_before() -> None:
    server = Server()
    server.store.confirmation = confirmation = Confirmation()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.relay.run_confirming)
        server.commit(1)
        await server.turn()
        await anyio.wait_all_tasks_blocked()
        server.accepted[1] = server.accepted[1][:1]
        server.commit(1)
        await server.relay.run_once()
        confirmation.safe.set()
        await anyio.wait_all_tasks_blocked()
        assert server.source.sent == []
        await server.turn()
        assert server.accepted[1] == ["7-0", "7-1", "7-2"]
        tasks.cancel_scope.cancel()


async def test_without_a_durability_what_is_left_in_the_outbox_comes_again() -> None:
    server = Server()
    server.commit(1)
    await server.turn()
    server.accepted[1] = server.accepted[1][:1]
    server.commit(1)
    for _ in range(3):
        await server.turn()
    assert server.accepted[1] == ["7-0", "7-2"]


class Confirmation:
    """`wait` ends when it is let."""

    def __init__(self) -> None:
        self.safe = anyio.Event()

    async def wait(self, patience: float) -> None:
        await self.safe.wait()


async def test_an_entry_is_deleted_when_it_is_safe_at_its_targets() -> None:
    store = FakeStore(deliver_messages="")
    store.confirmation = confirmation = Confirmation()
    relay, source = Relay(store, KERNEL, FakeClock()), owned()  # type: ignore[arg-type]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run_confirming)
        relay.hand_over(source, [message(1)])
        assert await relay.run_once()
        await anyio.wait_all_tasks_blocked()
        relay.hand_over(source, [message(2)])
        assert await relay.run_once(), "the next delivery doesn't wait for that"
        assert source.sent == []
        confirmation.safe.set()
        await anyio.wait_all_tasks_blocked()
        assert source.sent == ["7-1", "7-2"]
        tasks.cancel_scope.cancel()


async def test_what_was_accepted_in_another_history_is_sent_again() -> None:
    server = Server()
    server.store.confirmation = confirmation = Confirmation()
    confirmation.safe.set()
    server.commit(1)
    await server.turn()
    server.store.server_generation += 1
    server.accepted.clear()
    await server.relay.confirm_once()
    assert server.source.sent == []
    for _ in range(3):
        await server.turn()
    await server.relay.confirm_once()
    assert server.accepted[1] == ["7-0", "7-1"]
    assert set(server.source.sent) == {"7-1"}


async def test_a_shard_that_was_lost_meanwhile_is_left_to_its_next_owner() -> None:
    server = Server()
    server.store.confirmation = confirmation = Confirmation()
    confirmation.safe.set()
    server.commit(1)
    await server.turn()
    server.store.server_generation += 1
    server.source.dropped = True
    await server.relay.confirm_once()
    await server.turn()
    assert server.store.sent("read_stream") == []


def in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(relay_module, "KEPT", 0.0)
    server = Server(is_single=False)
    server.store.answers["HLEN"] = 1
    return server


async def test_in_a_cluster_an_entry_is_kept_until_its_server_is_seen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = in_a_cluster(monkeypatch)
    server.commit(1)
    await server.relay.run_once()
    assert server.source.sent == []
    await server.relay.confirm_once()
    assert [call.args[1] for call in server.store.sent("HLEN")] == [KERNEL.keys.shard(1).owner]
    assert server.source.sent == ["7-1"]


async def test_a_server_that_has_lost_messages_when_seen_again_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    server = in_a_cluster(monkeypatch)

    def fail_over(_: Call[Any]) -> int:
        server.store.answers["HLEN"] = 1
        server.store.server_generation += 1
        server.accepted.clear()
        return 1

    server.store.answers["HLEN"] = fail_over
    server.commit(1)
    await server.relay.run_once()
    await server.relay.confirm_once()
    assert server.source.sent == []
    for _ in range(3):
        await server.turn()
    await server.relay.confirm_once()
    assert server.accepted[1] == ["7-0", "7-1"]
    assert server.source.sent == ["7-1"]


async def test_a_server_that_does_not_confirm_keeps_only_its_own_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    server = in_a_cluster(monkeypatch)
    server.store.server_of = lambda key: int("/2}" in key)  # type: ignore[method-assign]
    late = {KERNEL.keys.shard(2).owner}

    class OfServers:
        async def wait(self, patience: float, *keys: str) -> None:
            if late.intersection(keys):
                raise Unconfirmed("no replica has confirmed it")

    server.store.confirmation = OfServers()
    for targets in ((1,), (1, 2), (2,), (1,)):
        server.commit(*targets)
    await server.relay.run_once()
    await server.relay.confirm_once()
    assert set(server.source.sent) == {"7-1", "7-5"}
    late.clear()
    await server.relay.confirm_once()
    assert set(server.source.sent) == {"7-1", "7-3", "7-4", "7-5"}


async def test_an_entry_counts_from_its_first_message(monkeypatch: pytest.MonkeyPatch) -> None:
    server = in_a_cluster(monkeypatch)
    server.broken.add(2)
    server.commit(1, 2)
    await server.relay.run_once()
    server.store.server_generation += 1
    server.accepted.clear()
    server.broken.clear()
    server.relay._refused.clear()
    await server.relay.run_once()
    assert server.accepted == {2: ["7-0", "7-2"]}
    for _ in range(3):
        await server.relay.confirm_once()
        await server.turn()
    assert server.accepted == {1: ["7-0", "7-1"], 2: ["7-0", "7-2"]}
    assert not server.outbox


# --- a backlog --------------------------------------------------------------------------------------------------------


class Server:
    """The outbox of one shard on the server, and what its targets have accepted; those in `broken` refuse."""

    def __init__(self, most: int = 20 * 600, *, is_single: bool = True) -> None:
        self.outbox: dict[str, list[OutboxMessage]] = {}
        self.everything: dict[str, list[OutboxMessage]] = {}
        self.accepted: dict[int, list[str]] = {}
        self.broken: set[int] = set()
        self.store = FakeStore(deliver_messages=self._deliver, read_stream=self._read)
        self.store.is_single = is_single
        self.relay = Relay(self.store, KERNEL, FakeClock(), most)  # type: ignore[arg-type]
        self.source = owned()
        self.number = 0
        self.largest = 0

    def commit(self, *targets: int, size: int = 100, handed_over: bool = True) -> None:
        self.number += len(targets)
        messages = [OutboxMessage(target, "signal", "r", b"x" * size) for target in targets]
        self.outbox[f"7-{self.number}"] = self.everything[f"7-{self.number}"] = messages
        if handed_over:
            self.relay.hand_over(self.source, [OutboxEntry(f"7-{self.number}", messages)])

    def _deliver(self, call: Call[Any]) -> Any:
        target = next(n for n in range(10) if f"ns/{n}}}" in call.keys[0])
        if target in self.broken:
            return StoreError("full")
        last = self.accepted.setdefault(target, ["7-0"])
        if call.args[2] and stream_order(call.args[2]) > stream_order(last[-1]):
            return "GAP"
        for number in numbers(call):
            if stream_order(number) > stream_order(last[-1]):
                last.append(number)
        return last[-1]

    def _read(self, call: Call[Any]) -> Any:
        after, limit = call.args
        found: list[Any] = []
        for number, messages in self.outbox.items():
            if stream_order(number) > stream_order(after):
                found.append((number.encode(), {b"messages": encode_outbox(messages)}))
                limit -= sum(len(message.body) for message in messages)
                if limit <= 0:
                    return True, found
        return False, found

    async def turn(self) -> None:
        await self.relay.run_once()
        self.largest = max(self.largest, self.relay.waiting)
        for number in self.source.sent:  # the next commit deletes them
            self.outbox.pop(number, None)
        self.source.sent.clear()

    async def deliver_all(self) -> None:
        for _ in range(10_000):
            if not self.outbox:
                return
            await self.turn()
        raise AssertionError(f"{len(self.outbox)} entries are left")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(troubles_module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(relay_module, "PAGE_BYTES", 1000)
    monkeypatch.setattr(relay_module, "MESSAGES", 5)
    return Server()


async def test_a_broken_target_costs_bounded_memory_and_delays_no_other(server: Server) -> None:
    server.broken = {2}
    for _ in range(500):
        server.commit(1, 2, 2, 3)
        await server.turn()
    assert server.largest <= 40, "messages in memory"
    assert [len(server.accepted[target]) for target in (1, 3)] == [501, 501]
    assert len(server.outbox) == 500
    server.broken = set()
    await server.deliver_all()
    assert server.accepted[2][1:] == [f"7-{4 * n + m}" for n in range(500) for m in (2, 3)]
    assert server.largest <= 40
    assert server.relay.waiting == 0
    assert not server.relay._held
    server.commit(1, 2)
    await server.turn()
    assert not server.outbox, "delivered from memory, without a read"


async def test_a_takeover_holds_only_the_beginning_of_a_long_outbox(server: Server) -> None:
    for _ in range(500):
        server.commit(1, 2, handed_over=False)
    server.relay.read_on(server.source, "0-0")
    server.commit(1)
    await server.deliver_all()
    assert server.largest <= 30
    assert server.accepted[1][-1] == "7-1001"
    assert [len(accepted) for accepted in server.accepted.values()] == [502, 501]


async def test_an_outbox_that_cannot_be_read_stops_no_other_delivery(server: Server, caplog: Any) -> None:
    server.relay.read_on(server.source, "0-0")
    server.store.answers["read_stream"] = StoreError("WRONGTYPE")
    other = owned(5)
    server.relay.hand_over(other, [message(1)])
    assert not await server.relay.run_once()
    assert other.sent == ["7-1"]
    assert "shard 0 has an outbox that can't be read, will retry" in caplog.text


class Ticks:
    """A clock that moves with each look at it."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic(self) -> int:
        self.now += 1
        return self.now


@given(st.data())
@settings(max_examples=examples(150), deadline=None)
def test_each_target_gets_its_messages_in_order_whatever_is_broken(data: st.DataObject) -> None:
    """Nothing is left out, memory is bounded, and every entry is deleted in the end."""

    async def play() -> None:
        server = Server(most=data.draw(st.integers(2, 30)) * 600)
        for _ in range(data.draw(st.integers(0, 30))):
            server.commit(*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)), handed_over=False)
        if server.outbox:
            server.relay.read_on(server.source, "0-0")
        for _ in range(data.draw(st.integers(0, 30))):
            server.broken = data.draw(st.sets(st.integers(1, 4)))
            for _ in range(data.draw(st.integers(0, 5))):
                server.commit(*data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)))
            await server.turn()
        server.broken = set()
        sent = {
            target: [
                f"7-{int(last[2:]) - len(messages) + n + 1}"
                for last, messages in server.everything.items()
                for n, message in enumerate(messages)
                if message.target == target
            ]
            for target in range(1, 5)
        }
        await server.deliver_all()
        assert {target: server.accepted.get(target, [""])[1:] for target in sent} == sent
        assert (server.relay.waiting, server.relay._held) == (0, 0)

    with pytest.MonkeyPatch.context() as patch:
        ticks = Ticks()
        patch.setattr(relay_module, "time", ticks)
        patch.setattr(troubles_module, "time", ticks)
        patch.setattr(troubles_module, "FIRST_PAUSE", data.draw(st.integers(0, 12)))
        patch.setattr(troubles_module, "JITTER", 1.0)
        patch.setattr(relay_module, "PAGE_BYTES", 1000)
        patch.setattr(relay_module, "MESSAGES", 5)
        anyio.run(play)
