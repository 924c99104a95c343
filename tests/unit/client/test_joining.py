"""Joining payloads with the log, against a store that answers from a table."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from streamflow.client import joining as module
from streamflow.client.joining import Logged, join_payloads
from streamflow.errors import StoreError
from streamflow.events import SignalReceived, Transition, encode_transition, gone_bytes
from streamflow.model.logged import LoggedTransition, decode_logged, encode_logged
from streamflow.store.connection import Call
from tests.support.fakes import KERNEL, FakeStore

pytestmark = pytest.mark.anyio


def whole(number: int, size: int = 1000) -> Transition:
    """The transition that made version `number` of its run."""
    return Transition(number, [SignalReceived("s", Raw(msgspec.msgpack.encode("x" * size)))])


def logged(number: int, shard: int = 0, size: int = 1000) -> Logged:
    transition = whole(number, size)
    data = encode_logged(transition, number, 77) or encode_transition(transition.at, transition.events)
    return Logged(shard, "r", decode_logged(data))


async def joined(store: FakeStore, items: list[Logged]) -> list[Transition]:
    return [transition async for transition in join_payloads(store, KERNEL, items)]  # type: ignore[arg-type]


def recorded(call: Call[Any]) -> list[bytes | None]:
    """What `read_transitions` answers, with room for two of them."""
    numbers = call.args[2::2]
    found = [encode_transition(number, whole(number).events) for number in numbers]
    return [*found[:2], *[None] * (len(found) - 2)]


async def test_small_transitions_are_not_read_again() -> None:
    store = FakeStore()
    assert await joined(store, [logged(1, size=10), logged(2, size=10)]) == [whole(1, 10), whole(2, 10)]
    assert store.calls == []


async def test_what_does_not_fit_into_one_answer_is_read_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTION", 5)
    store = FakeStore(read_transitions=recorded)
    items = [logged(number, shard=number % 2, size=10 if number % 3 == 0 else 1000) for number in range(1, 20)]
    assert await joined(store, items) == [whole(n, 10 if n % 3 == 0 else 1000) for n in range(1, 20)]
    assert all(len(call.args) <= 11 for call in store.sent("read_transitions"))


@pytest.mark.parametrize(
    "answer", [b"", b"\xc1 damaged", encode_transition(1, whole(2).events), encode_transition(2, [])]
)
async def test_what_is_gone_or_another_transition_leaves_the_size(answer: bytes) -> None:
    """After a failover the record may have another transition of that number: its payload belongs to something else."""
    store = FakeStore(read_transitions=[answer])
    [transition] = await joined(store, [logged(2)])
    [event] = transition.events
    assert isinstance(event, SignalReceived)
    assert (transition.at, gone_bytes(event.value)) == (2, 1003)


async def test_a_refusal_is_raised() -> None:
    with pytest.raises(StoreError, match="refused"):
        await joined(FakeStore(read_transitions=StoreError("refused")), [logged(1)])


def test_a_logged_transition_without_a_number_is_whole() -> None:
    assert LoggedTransition(1, []).number == 0
